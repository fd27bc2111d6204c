r"""Networks trained elsewhere: a project's convention is a row, and a scheduler's settings.

With :math:`x = \alpha_t z + \beta_t \varepsilon`, t = 0 noise and t = 1 data, shape `(batch,)`:

===============  =======================================  ========================================
from             is called as                             predicts
===============  =======================================  ========================================
`from_sit`       `network(x, t, y=labels)`                dx/dt, the noise or the score
`from_meta`      `network(x=x, t=t, label=labels)`        dx/dt
`from_torchcfm`  `network(t, x, y=labels)`                dx/dt
`from_edm`       `D(x, sigma, class_labels=rows)`         z; :math:`x = z + \sigma \varepsilon`
same, `raw`      `F(c_in x, c_noise, class_labels=rows)`  :math:`(z - c_{skip} x)/c_{out}`
===============  =======================================  ========================================

Each function returns the network as pipelines call a `UNet2DModel`, and the scheduler that reads
it; nothing is retrained::

    size = {"in_channels": 4, "sample_size": 32, "num_classes": 1000, "null_label": True}
    unet, scheduler = from_sit(sit, **size)
    pipe = FlowMatchingPipeline(unet, scheduler, null_label=1000)
    latents = pipe(class_labels=[207], guidance_scale=4.0, output_type="latent").images
    pipe.scheduler = GaussianFlowScheduler.from_config(scheduler.config, diffusion="memoryless")

Guidance is `uncond + w (cond - uncond)` on all channels; Meta's w is one less, and SiT guides
three channels of four.

References: Ma et al., https://arxiv.org/abs/2401.08740 (SiT); Lipman et al.,
https://arxiv.org/abs/2412.06264 (Meta's flow_matching); Tong et al.,
https://arxiv.org/abs/2302.00482 (torchcfm); Karras et al., https://arxiv.org/abs/2206.00364 (EDM).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.tables import look_up

Call = Callable[[nn.Module, Tensor, Tensor, dict[str, Any]], Tensor]

#: The keyword of a project's labels, and how its networks are called with samples and timesteps.
SIGNATURES: dict[str, tuple[str, Call]] = {
    # a variance may follow the prediction, as more channels
    "sit": ("y", lambda f, x, t, more: f(x, t, **more)[:, : x.shape[1]]),
    "meta": ("label", lambda f, x, t, more: f(x=x, t=t, **more)),
    "torchcfm": ("y", lambda f, x, t, more: f(t, x, **more)),
    "edm": ("class_labels", lambda f, x, t, more: f(x, torch.exp(4 * t), **more)),
    # F has no default for its labels
    "edm_raw": ("class_labels", lambda f, x, t, more: f(x, t, **{"class_labels": None, **more})),
}

#: The projects' words in ours.
SIT_PATHS = {"Linear": "linear", "GVP": "cosine", "VP": "variance_preserving"}
SIT_PREDICTIONS = {"velocity": "velocity", "score": "score", "noise": "epsilon"}
META_SCHEDULERS = {"CondOT": "linear", "Cosine": "cosine", "VP": "variance_preserving"}
META_SCHEDULERS |= {"Polynomial": "polynomial"}

#: Networks that are fed t itself.
RAW_TIME = {"time_convention": "ascending", "num_train_timesteps": 1}


class AdaptedNetwork(ModelMixin, ConfigMixin):
    """A network of another project, called as diffusers calls a `UNet2DModel`.

    It is put into evaluation mode, as `from_pretrained` does: in training mode SiT drops labels.
    It cannot be saved, since whoever loads it would not know the class of the network inside; save
    that network's `state_dict` and the scheduler.

    Args:
        network: the other project's module.
        signature: how it is called, a name in `SIGNATURES`.
        in_channels: channels of its samples.
        sample_size: their height and width; None if latents are always given.
        num_classes: number of classes; None for unconditional networks.
        null_label: whether it knows the label `num_classes` as "no class", which guidance needs.
        label_name: the keyword of its labels, where it is not the signature's.
        one_hot: whether it takes labels as one-hot rows, zeros being "no class".
        extras: more keyword arguments, the same in every call.
    """

    ignore_for_config = ["network"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        network: nn.Module,
        signature: str,
        in_channels: int,
        sample_size: int | tuple[int, int] | None = None,
        num_classes: int | None = None,
        null_label: bool = False,
        label_name: str | None = None,
        one_hot: bool = False,
        extras: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if null_label if num_classes is None else num_classes < 1:
            raise ValueError(
                "num_classes must be at least 1, or None where there is no null_label, got "
                f"{num_classes}: pass the number of classes, the null label not counted"
            )
        self.network = network
        self.register_to_config(num_class_embeds=num_classes and num_classes + null_label)
        self.eval()

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return what the network predicts at the scheduler's timestep.

        Args:
            sample: shape `(batch, channels, ...)`.
            timestep: of the scheduler, or one for each sample; the network gets `(batch,)`, in
                float32 or better, because rounding t to bfloat16 would move it.
            class_labels: integers, shape `(batch,)`; None calls the network without labels.
            return_dict: whether to return a `UNet2DOutput` or a tuple.
        """
        c, (label, call) = self.config, SIGNATURES[self.config.signature]
        dtype = torch.promote_types(sample.dtype, torch.float32)
        t = torch.as_tensor(timestep, dtype=dtype, device=sample.device).expand(len(sample))
        if c.one_hot and class_labels is not None:
            class_labels = one_hot(class_labels, c.num_class_embeds)[:, : c.num_classes].to(dtype)
        labels = {} if class_labels is None else {c.label_name or label: class_labels}
        output = call(self.network, sample, t, (c.extras or {}) | labels)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raise a `NotImplementedError` that says what to save instead."""
        raise NotImplementedError(
            "an adapted network cannot be saved: diffusers could not make its "
            f"{type(self.network).__name__} when loading. Save `unet.network.state_dict()` and "
            "`scheduler.save_pretrained(folder)`, and adapt the network again"
        )


Adapted = tuple[AdaptedNetwork, GaussianFlowScheduler]


def from_sit(
    network: nn.Module, path: str = "Linear", prediction: str = "velocity", **options: Any
) -> Adapted:
    """Adapt a network of SiT; its null label is `num_classes`.

    Args:
        network: called as `network(x, t, y=labels)`.
        path: its `path_type`: `Linear`, `GVP` or `VP`.
        prediction: `velocity`, `score` or `noise`.
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: for other names.
    """
    kind = look_up("prediction", SIT_PREDICTIONS, prediction)
    path = look_up("path", SIT_PATHS, path)
    scheduler = GaussianFlowScheduler(**RAW_TIME, path=path, prediction_type=kind)
    return AdaptedNetwork(network=network, signature="sit", **options), scheduler


def from_meta(
    network: nn.Module,
    scheduler: str = "CondOT",
    scheduler_kwargs: dict[str, float] | None = None,
    **options: Any,
) -> Adapted:
    """Adapt a velocity model of Meta's flow_matching.

    Args:
        network: called as `network(x=x, t=t, label=labels)`, as by their `ODESolver`.
        scheduler: the one of its path: `CondOT`, `Cosine`, `VP` or `Polynomial`.
        scheduler_kwargs: its parameters, `{"n": 3}` for example.
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: for other names, or a `Polynomial` without n.
    """
    path = look_up("scheduler", META_SCHEDULERS, scheduler)
    parameters = {{"n": "degree"}.get(k, k): v for k, v in (scheduler_kwargs or {}).items()}
    if path == "polynomial" and "degree" not in parameters:
        raise ValueError(
            f"scheduler_kwargs of 'Polynomial' must have its n, got {scheduler_kwargs}: pass "
            '{"n": 2} for alpha = t^2'
        )
    unet = AdaptedNetwork(network=network, signature="meta", **options)
    return unet, GaussianFlowScheduler(**RAW_TIME, path=path, path_kwargs=parameters or None)


def from_torchcfm(network: nn.Module, **options: Any) -> Adapted:
    """Adapt a velocity model of torchcfm, trained on the linear path with a `sigma` of about 0.

    Sample it as an ODE if noise and data were paired by optimal transport: then they are not
    independent, and the velocity does not determine the score that an SDE needs.

    Args:
        network: called as `network(t, x, y=labels)`.
        **options: of `AdaptedNetwork`.
    """
    unet = AdaptedNetwork(network=network, signature="torchcfm", **options)
    return unet, GaussianFlowScheduler(**RAW_TIME)


def from_edm(
    network: nn.Module,
    raw: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    one_hot: bool = True,
    **options: Any,
) -> Adapted:
    r"""Adapt a denoiser :math:`D(x; \sigma) = c_{skip} x + c_{out} F(c_{in} x; \ln(\sigma)/4)`.

    Args:
        network: D, called as `network(x, sigma, class_labels=rows)`.
        raw: whether it is F instead, called as `network(c_in x, c_noise, class_labels=rows)`.
        sigma_min: last noise level before 0.
        sigma_max: first noise level.
        sigma_data: standard deviation of the data in the c of EDM; only a raw network needs it.
        one_hot: whether labels are one-hot rows, as in EDM; False for k-diffusion's integers.
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: unless `0 < sigma_min < sigma_max` are finite and `sigma_data` is positive.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"0 < sigma_min < sigma_max < inf must hold, got {sigma_min} and {sigma_max}: pass "
            "the last and the first noise level of the sampling, EDM's are 0.002 and 80"
        )
    levels = {"sigma_max": sigma_max}
    settings = {"path": "noise_level", "path_kwargs": levels, "prediction_type": "sample"}
    if raw:
        settings = {"path": "cosine", "path_kwargs": {"data_std": sigma_data}}
        settings |= {"sampling_path": "noise_level", "sampling_path_kwargs": levels}
        settings |= {"prediction_type": "edm"}
    options |= {"signature": "edm_raw" if raw else "edm", "one_hot": one_hot}
    return AdaptedNetwork(network=network, **options), GaussianFlowScheduler(
        **settings,
        time_convention="log_sigma",
        grid="karras",
        grid_kwargs={"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": 7.0},
    )
