r"""Guidance: how several predictions of one network become the one that is stepped with.

`guidance_scale` is the short form of classifier-free guidance,
:math:`q_\varnothing + w\,(q_c - q_\varnothing)`. Every other kind is one of diffusers' guiders.
Where the weights of a guider sum to one its arithmetic is the same for every kind of prediction,
since these are one affine map apart. Where it takes norms, projections or zeros it is not: such a
guider is handed what its paper is about, and its answer is converted back. So a field has the same
guided samples whatever its network predicts, and on whichever path it was trained.

References: Ho, Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598;
Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution
Quality in Diffusion Models", https://arxiv.org/abs/2404.07724 (`start` and `stop`); Fan et al.,
"CFG-Zero*", https://arxiv.org/abs/2503.18886; Sadat et al., "Eliminating Oversaturation and
Artifacts of High Guidance Scales in Diffusion Models", https://arxiv.org/abs/2410.02416; Kwon et
al., "TCFG: Tangential Damping Classifier-free Guidance", https://arxiv.org/abs/2503.18137; Karras
et al., "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507;
Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
https://arxiv.org/abs/2403.17377; Hong, "Smoothed Energy Guidance",
https://arxiv.org/abs/2408.00760.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor, nn

from fm_diffusers.diffusers_internals import acts_always, identifier, is_enabled, step_of
from fm_diffusers.pipelines.skipping import hooked, own_copy
from fm_diffusers.predictions import CANONICAL, conversion
from fm_diffusers.scheduler import GaussianFlowScheduler

#: The condition of nothing in particular, and that of what is asked; None of unconditional ones.
Conditions = tuple[Tensor | None, Tensor | None]
#: Returns predictions of a network under conditions, which have names, in their order.
Ask = Callable[[list[Tensor | None], list[str]], list[Tensor]]


class Assumption(NamedTuple):
    """What a guider takes for granted.

    Attributes:
        prediction: what its arithmetic is about; None where any prediction gives the same.
        null: whether it leads away from the condition of nothing; else from a worse network under
            the same condition.
        hooks: whether it makes the network worse by hooks on its layers, for one evaluation.
    """

    prediction: str | None = None
    null: bool = True
    hooks: bool = False


#: Guiders of diffusers by name. `canonical` is the velocity `z - eps` of the linear path, which is
#: finite from noise to data: CFG-Zero* is about velocities; noise predictions, of which TCFG
#: speaks, are all alike at pure noise. A guider of one's own is an entry:
#:
#:     GUIDERS["MyGuidance"] = Assumption("sample")
GUIDERS = {
    "ClassifierFreeGuidance": Assumption(),
    "ClassifierFreeZeroStarGuidance": Assumption(CANONICAL),
    "AdaptiveProjectedGuidance": Assumption("sample"),
    "AdaptiveProjectedMixGuidance": Assumption("sample"),
    "TangentialClassifierFreeGuidance": Assumption(CANONICAL),
    "AutoGuidance": Assumption(null=False, hooks=True),
    "PerturbedAttentionGuidance": Assumption(hooks=True),
    "SkipLayerGuidance": Assumption(hooks=True),
    "SmoothedEnergyGuidance": Assumption(hooks=True),
}
#: Guiders that cannot serve here, and why.
REFUSED = {
    "MagnitudeAwareGuidance": "its scale falls with the ratio of norms of two predictions, so "
    "that its alpha belongs to the kind of prediction and the path of one network",
    "FrequencyDecoupledGuidance": "it splits predictions into pyramids of image sizes by kornia, "
    "which codes of a vae and small images have not, and scales them apart",
    "LTX2Guidance": "it guides sound and pictures of LTX-2 together",
}


def assumption(guider: Any) -> Assumption:
    """Return what a guider assumes.

    Raises:
        ValueError: for what is no guider, or one that cannot serve, and why.
    """
    if not isinstance(guider, BaseGuidance):
        raise ValueError(
            "guider must be a guider of diffusers, ClassifierFreeGuidance(guidance_scale=2.0) for "
            f"example, got {guider!r}"
        )
    names = [cls.__name__ for cls in type(guider).__mro__]
    for name in names:
        if name in REFUSED:
            raise ValueError(f"{names[0]} cannot guide a flow on any path: {REFUSED[name]}")
        if name in GUIDERS:
            return GUIDERS[name]
    raise ValueError(
        f"{names[0]} is not known: take one of {', '.join(GUIDERS)}, or say what it is about by "
        f'guidance.GUIDERS["{names[0]}"] = Assumption("sample")'
    )


def resting_scale(guider: BaseGuidance) -> float:
    """Return the scale at which a guider does nothing: w of `c + w (c - u)` or `u + w (c - u)`."""
    return 0.0 if guider.use_original_formulation else 1.0


def leads_away(guider: BaseGuidance) -> bool:
    """Return whether a guider compares with the condition of nothing at some step."""
    if not assumption(guider).null or not is_enabled(guider):
        return False
    return not math.isclose(guider.guidance_scale, resting_scale(guider))


def as_scale(asked: Any, use: str) -> float:
    """Return the scale of classifier-free guidance of what a call asks for, at every time alike.

    Args:
        asked: with its `scale` and its `guider`.
        use: what it is for.

    Raises:
        ValueError: for a guider that does something else, or in some of the steps only.
    """
    guider = asked.guider
    if guider is None or not is_enabled(guider):
        return asked.scale
    plain = type(guider).__name__ == "ClassifierFreeGuidance" and not guider.guidance_rescale
    if not plain or not acts_always(guider):
        raise ValueError(
            f"{use} has no steps, in which {type(guider).__name__} acts: it takes the "
            "guidance_scale of classifier-free guidance alone; set pipe.guider to None, or leave "
            "out the guider"
        )
    return guider.guidance_scale + 1 - resting_scale(guider)


def check_guider(guider: BaseGuidance, network: nn.Module) -> None:
    """Raise a `ValueError` for a guider that cannot serve, or not with this network."""
    if not assumption(guider).hooks:
        return
    trial = own_copy(guider)  # in no interval yet, so that all that it does is tried
    for batch in trial.prepare_inputs({"condition": torch.zeros(())}):
        try:
            with hooked(trial, network, identifier(batch)):
                pass
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{type(guider).__name__} cannot skip these layers of a {type(network).__name__} "
                f"({error}): a DiTTransformer2DModel has them as transformer_blocks, other "
                "networks are told by a LayerSkipConfig with fqn, indices and what to skip"
            ) from error


@dataclass(frozen=True)
class Guidance:
    """A guider in one loop: its state is that of this loop alone.

    Attributes:
        guider: a copy of the user's.
        there: :math:`(c_x, c_q)` from what the network predicts to what the guider is about, for
            every timestep of the loop; None where they are the same.
        back: likewise, from there to what the network predicts.
    """

    guider: BaseGuidance
    there: tuple[tuple[float, float], ...] | None = None
    back: tuple[tuple[float, float], ...] | None = None

    def at(self, index: int, timesteps: Tensor, scale: float, has_null: bool) -> "Guidance":
        """Return this guidance at one of the loop's timesteps.

        Args:
            index: which one.
            timesteps: all of them.
            scale: its scale there, which a callback may have changed.
            has_null: whether the condition still has its null half.
        """
        needs = assumption(self.guider).null
        self.guider.guidance_scale = scale if has_null or not needs else resting_scale(self.guider)
        self.guider.set_state(index, len(timesteps), timesteps[index])
        return self

    def __call__(self, ask: Ask, network: nn.Module, x: Tensor, conditions: Conditions) -> Tensor:
        """Return the guided prediction.

        Args:
            ask: the network at the samples and the timestep.
            network: the same, for hooks.
            x: the samples as the network is fed them.
            conditions: of nothing, and of what is asked.
        """
        null, condition = conditions
        row, guider = assumption(self.guider), self.guider
        told = (condition, null if row.null else condition)
        batches = guider.prepare_inputs({"condition": told})
        names = [identifier(batch) for batch in batches]
        wanted = [told[name == "pred_uncond"] for name in names]
        short = [name.removeprefix("pred_") for name in names]
        if row.hooks:
            outputs = []
            for name, one, called in zip(names, wanted, short, strict=True):
                with hooked(guider, network, name):
                    outputs += ask([one], [called])
        else:
            outputs = ask(wanted, short)
        for batch, output in zip(batches, outputs, strict=True):
            batch.noise_pred = self._converted(self.there, x, output)
        return self._converted(self.back, x, guider(batches).pred)

    def _converted(self, weights: tuple[Any, ...] | None, x: Tensor, q: Tensor) -> Tensor:
        if weights is None:
            return q
        c_x, c_q = weights[step_of(self.guider)]
        return torch.add(c_q * q, x, alpha=c_x)


def guidance_of(given: float | BaseGuidance, scheduler: Any) -> "float | Guidance":
    """Return the guidance of one loop through the timesteps of a scheduler.

    Args:
        given: a scale, which is returned as it is, or a guider.
        scheduler: after `set_timesteps`.

    Raises:
        ValueError: if what the network predicts cannot be turned into what the guider is about.
    """
    if not isinstance(given, BaseGuidance):
        return given
    wanted, guider = assumption(given).prediction, own_copy(given)
    if wanted is None and guider.guidance_rescale:
        wanted = CANONICAL  # standard deviations of predictions, which are not alike
    if wanted is None:
        return Guidance(guider)
    model = scheduler
    if not isinstance(model, GaussianFlowScheduler):
        model = GaussianFlowScheduler.from_config(scheduler.config)
    source, fed = model.config.prediction_type, scheduler.timesteps.cpu().double()
    clock = model.clock
    t = clock.convention.time(clock.path, clock.num_train_timesteps, fed)
    weights = [
        torch.stack(conversion(model.path, known, asked, t), 1)
        for known, asked in ((source, wanted), (wanted, source))
    ]
    if not torch.stack(weights).isfinite().all():
        raise ValueError(
            f"{type(guider).__name__} needs the {wanted} at every timestep, which a network that "
            f"predicts {source!r} does not determine at one of them: begin or end inside, with "
            "t_min and t_max of the scheduler"
        )
    return Guidance(guider, *(tuple(map(tuple, pair.tolist())) for pair in weights))
