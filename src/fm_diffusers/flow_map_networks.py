r"""Networks of two times: which are told how far a step leads, beside where it begins.

They are called as diffusers calls a `UNet2DConditionModel` that is told more than the time,
`network(x_t, timestep, condition, timestep_cond=...)`, where `timestep_cond` are the features of
:math:`v - u` on the clock :math:`u = \alpha/(\alpha + \beta)` that `second_time.step_features`
returns. For a step of no length all of them are 0, so that a network which is not told any is that
of the ODE: without `timestep_cond` it runs under every scheduler.

`UNet2DConditionModel` has such a place itself. `UNet2DModel` and `DiTTransformer2DModel` have one
for labels only: here their label embedding becomes one of labels and features, which are handed on
side by side in one tensor; nothing else of them changes.
"""

import copy
import inspect
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from fm_diffusers.paths.base import is_number
from fm_diffusers.second_time import FEATURES, LabelsAndFeatures, side_by_side

#: Arguments that networks of two times have beside those of diffusers.
MORE = {"time_cond_proj_dim": FEATURES, "distilled_guidance": None}


def _with_more(init: Any) -> Any:
    """Return the signature of a network's constructor with these too, for `from_config`."""
    given = [p for p in inspect.signature(init).parameters.values() if p.name not in MORE]
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=value) for name, value in MORE.items()]
    return inspect.Signature([*given, *more])


class FlowMapUNet2DModel(UNet2DModel):
    """A `UNet2DModel` of two times; arguments are those of `UNet2DModel`.

    Args:
        time_cond_proj_dim: number of features that it is told; see
            `fm_diffusers.second_time.step_features`.
        distilled_guidance: the guidance scale that it has learned, or the lowest and the highest
            of those among which it is told one; None for none.
    """

    def __init__(
        self,
        *args: Any,
        time_cond_proj_dim: int = FEATURES,
        distilled_guidance: float | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.config.class_embed_type is not None:
            raise ValueError(
                f"class_embed_type={self.config.class_embed_type!r} leaves no place for a second "
                "time: a network of two times takes num_class_embeds or no classes"
            )
        _register(self, time_cond_proj_dim, distilled_guidance)
        width = self.config.block_out_channels[0] * 4
        labels: Any = self.class_embedding
        told = LabelsAndFeatures(labels, time_cond_proj_dim, width)
        self.class_embedding: LabelsAndFeatures = told

    vars(__init__)["__signature__"] = _with_more(UNet2DModel.__init__)

    @property
    def told(self) -> list[LabelsAndFeatures]:
        """The modules that are told labels and features."""
        return [self.class_embedding]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Return the average slope, or what stands for it; without features that of the ODE."""
        told = side_by_side(self, class_labels, timestep_cond, sample)
        return super().forward(sample, timestep, told, return_dict)


class FlowMapDiTTransformer2DModel(DiTTransformer2DModel):
    """A `DiTTransformer2DModel` of two times; arguments are those of `FlowMapUNet2DModel`."""

    def __init__(
        self,
        *args: Any,
        time_cond_proj_dim: int = FEATURES,
        distilled_guidance: float | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _register(self, time_cond_proj_dim, distilled_guidance)
        for block in self.transformer_blocks:
            own = block.norm1.emb
            own.class_embedder = LabelsAndFeatures(
                own.class_embedder, time_cond_proj_dim, self.inner_dim
            )

    vars(__init__)["__signature__"] = _with_more(DiTTransformer2DModel.__init__)

    @property
    def told(self) -> list[LabelsAndFeatures]:
        """The modules that are told labels and features."""
        return [block.norm1.emb.class_embedder for block in self.transformer_blocks]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Return the average slope, or what stands for it; without features that of the ODE."""
        told = side_by_side(self, class_labels, timestep_cond, hidden_states)
        return super().forward(hidden_states, timestep, told, cross_attention_kwargs, return_dict)


class FlowMapUNet2DConditionModel(UNet2DConditionModel):
    """A `UNet2DConditionModel` of two times; arguments are those of `FlowMapUNet2DModel`."""

    def __init__(
        self,
        *args: Any,
        time_cond_proj_dim: int = FEATURES,
        distilled_guidance: float | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, time_cond_proj_dim=time_cond_proj_dim, **kwargs)
        _register(self, time_cond_proj_dim, distilled_guidance)
        nn.init.zeros_(self.time_embedding.cond_proj.weight)

    vars(__init__)["__signature__"] = _with_more(UNet2DConditionModel.__init__)


def _register(
    network: ModelMixin, num_features: int, guidance: float | list[float] | None
) -> None:
    """Write into a network's configuration what it is told; see `FlowMapUNet2DModel`.

    Raises:
        ValueError: for a guidance that is no number, and no ascending pair of two.
    """
    pair = list(guidance) if isinstance(guidance, list | tuple) else None
    numbers: list[Any] = [guidance] if pair is None else pair
    if (
        guidance is not None
        and not all(map(is_number, numbers))
        or pair is not None
        and not (len(numbers) == 2 and numbers[0] < numbers[1])
    ):
        raise ValueError(
            "distilled_guidance must be the guidance scale that the network has learned, or the "
            f"lowest and the highest of several, [1.0, 4.0] for example, got {guidance!r}"
        )
    count = 2 if pair else 1
    if num_features % (2 * count):
        raise ValueError(
            f"time_cond_proj_dim must be a multiple of {2 * count}, a sine and a cosine for each "
            f"of {count} numbers, got {num_features}"
        )
    known = numbers if pair else guidance
    network.register_to_config(time_cond_proj_dim=num_features, distilled_guidance=known)


#: The network of two times that begins as one of one time.
OF_TWO_TIMES = {
    UNet2DModel: FlowMapUNet2DModel,
    DiTTransformer2DModel: FlowMapDiTTransformer2DModel,
    UNet2DConditionModel: FlowMapUNet2DConditionModel,
}


def is_of_two_times(network: nn.Module) -> bool:
    """Return whether a network can be told features of a step."""
    return isinstance(unwrap_module(network), tuple(OF_TWO_TIMES.values()))


def distilled_guidance(network: nn.Module) -> float | list[float] | None:
    """Return the guidance scale that a network has learned, the ends of several, or None."""
    if not is_of_two_times(network):
        return None
    config: Any = network.config
    return config.distilled_guidance


def with_two_times(
    network: ModelMixin, distilled_guidance: float | list[float] | None = None
) -> ModelMixin:
    """Return a network of two times that predicts what `network` does, whatever it is told.

    Args:
        network: a `UNet2DModel`, a `DiTTransformer2DModel` or a `UNet2DConditionModel`; one that
            is of two times already is copied, and can begin to learn another scale.
        distilled_guidance: the guidance scale that it will learn, or the ends of several.

    Raises:
        ValueError: for another network, or one of several scales where one is to be learned, or
            the reverse, or of other ends.
    """
    if is_of_two_times(network):
        known = network.config.distilled_guidance
        several = any(isinstance(scale, list | tuple) for scale in (known, distilled_guidance))
        if several and known != distilled_guidance:
            raise ValueError(
                f"distilled_guidance={distilled_guidance} contradicts the network, which has "
                f"learned {known}: begin with a network of one time"
            )
        two = copy.deepcopy(network)
        _register(two, network.config.time_cond_proj_dim, distilled_guidance)
        return two
    made: Any = OF_TWO_TIMES.get(type(network))
    if made is None or network.config.get("time_cond_proj_dim"):
        known = ", ".join(cls.__name__ for cls in OF_TWO_TIMES)
        raise ValueError(
            f"a {type(network).__name__} cannot be given a second time: pass one of {known} "
            "without time_cond_proj_dim"
        )
    number = 2 if isinstance(distilled_guidance, list | tuple) else 1
    two = made.from_config(
        network.config,
        time_cond_proj_dim=number * FEATURES,
        distilled_guidance=distilled_guidance,
    )
    renamed = {_renamed(name, two): value for name, value in network.state_dict().items()}
    two.load_state_dict(renamed, strict=False)  # what is new begins at zero
    weights = next(network.parameters())
    if weights.dtype != torch.float32:
        two = two.to(weights.dtype)
    return two.to(weights.device).train(network.training)


def _renamed(name: str, network: nn.Module) -> str:
    """Return the name that a weight of a network of one time has in that of two."""
    if not isinstance(network, UNet2DConditionModel):
        for part in ("class_embedding.", "class_embedder."):
            name = name.replace(part, f"{part}labels.")
    return name
