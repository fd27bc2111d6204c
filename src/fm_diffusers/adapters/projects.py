"""The projects' words in ours: paths, predictions, and the schedulers that read them."""

import math
from typing import Any

from torch import nn

from fm_diffusers.adapters.network import AdaptedNetwork
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.tables import look_up

SIT_PATHS = {"Linear": "linear", "GVP": "cosine", "VP": "variance_preserving"}
SIT_PREDICTIONS = {"velocity": "velocity", "score": "score", "noise": "epsilon"}
REPA_PATHS = {"linear": "linear", "cosine": "cosine"}

#: Rows of PATHS with their parameters.
META_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "CondOT": ("linear", {}),
    "Cosine": ("cosine", {}),
    "VP": ("variance_preserving", {}),
    "LinearVP": ("interpolant", {"base": "linear_vp"}),
    "Polynomial": ("polynomial", {}),
}
META_PREDICTIONS = {"velocity": "velocity", "target": "sample", "epsilon": "epsilon"}

#: Parameters of `Interpolant`; the noise of a bridge vanishes at both ends, whatever its sigma.
TORCHCFM_MATCHERS: dict[str, dict[str, Any]] = {
    "ConditionalFlowMatcher": {"base": "linear"},
    "TargetConditionalFlowMatcher": {"base": "target"},
    "VariancePreservingConditionalFlowMatcher": {"base": "cosine"},
    "ExactOptimalTransportConditionalFlowMatcher": {"base": "linear", "coupled": True},
    "SchrodingerBridgeConditionalFlowMatcher": {"base": "linear", "coupled": True, "sigma": 0.0},
}

#: Networks that are fed t itself, or 1 - t.
RAW_TIME = {"time_convention": "ascending", "num_train_timesteps": 1}
RAW_REVERSE = {"time_convention": "descending", "num_train_timesteps": 1}

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
    path = look_up("path_type", SIT_PATHS, path)
    scheduler = GaussianFlowScheduler(**RAW_TIME, path=path, prediction_type=kind)
    return AdaptedNetwork(network=network, signature="sit", **options), scheduler


def from_repa(network: nn.Module, path: str = "linear", **options: Any) -> Adapted:
    """Adapt a network of REPA, or of another project whose time runs from 1, noise, to 0, data.

    It predicts the derivative by its own time, `eps - z` on the linear path. REPA's own SDE is
    `diffusion="linear"`. Its null label is `num_classes`.

    Args:
        network: called as `network(x, tau, y=labels)`; REPA's returns `(prediction, features)`.
        path: its `path_type`: `linear` or `cosine`.
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: for other names.
    """
    path = look_up("path_type", REPA_PATHS, path)
    unet = AdaptedNetwork(network=network, signature="sit", **options)
    return unet, GaussianFlowScheduler(**RAW_REVERSE, path=path, prediction_type="flow_prediction")


def from_meanflow(network: nn.Module, **options: Any) -> Adapted:
    """Adapt a network of MeanFlow as the velocity that it is between equal times.

    Its mean velocities over long steps are not used: this samples in many steps, as an ODE or SDE.

    Args:
        network: called as `network(x, tau, tau, y=labels)`, with times from 1, noise, to 0, data.
        **options: of `AdaptedNetwork`.
    """
    unet = AdaptedNetwork(network=network, signature="meanflow", **options)
    return unet, GaussianFlowScheduler(**RAW_REVERSE, prediction_type="flow_prediction")


def from_meta(
    network: nn.Module,
    scheduler: str = "CondOT",
    scheduler_kwargs: dict[str, float] | None = None,
    prediction: str = "velocity",
    **options: Any,
) -> Adapted:
    """Adapt a model of Meta's flow_matching.

    Args:
        network: called as `network(x=x, t=t, label=labels)`, as by their `ODESolver`.
        scheduler: the one of its path: `CondOT`, `Cosine`, `VP`, `LinearVP` or `Polynomial`.
        scheduler_kwargs: its parameters, `{"n": 3}` for example.
        prediction: `velocity`, `target` (x_1) or `epsilon` (x_0).
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: for other names, or a `Polynomial` without n.
    """
    path, fixed = look_up("scheduler", META_SCHEDULERS, scheduler)
    kind = look_up("prediction", META_PREDICTIONS, prediction)
    given = {{"n": "degree"}.get(k, k): v for k, v in (scheduler_kwargs or {}).items()}
    if path == "polynomial" and "degree" not in given:
        raise ValueError(
            f"scheduler_kwargs of 'Polynomial' must have its n, got {scheduler_kwargs}: pass "
            '{"n": 2} for alpha = t^2'
        )
    if fixed and given:
        raise ValueError(
            f"{scheduler!r} has no parameters, got {scheduler_kwargs}: leave them out"
        )
    unet = AdaptedNetwork(network=network, signature="meta", **options)
    settings = {"path": path, "path_kwargs": fixed | given or None, "prediction_type": kind}
    return unet, GaussianFlowScheduler(**RAW_TIME, **settings)


def from_torchcfm(
    network: nn.Module,
    matcher: str = "ConditionalFlowMatcher",
    sigma: float = 0.0,
    **options: Any,
) -> Adapted:
    r"""Adapt a velocity model of torchcfm that was trained to carry standard normal noise to data.

    With the `sigma` of its matcher its marginals are those of an `Interpolant`: samples end with
    that much noise, as an ODE and as an SDE. The matchers by optimal transport pair noise with
    data: their scheduler refuses a diffusion.

    Args:
        network: called as `network(t, x, y=labels)`.
        matcher: name of the class that it was trained with, one of `TORCHCFM_MATCHERS`.
        sigma: the `sigma` of that matcher, which has no bearing on a Schrodinger bridge.
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: for another name, or a sigma that its path cannot have.
    """
    kwargs = {"sigma": float(sigma), **look_up("matcher", TORCHCFM_MATCHERS, matcher)}
    settings = {"path": "interpolant", "path_kwargs": kwargs}
    if not kwargs["sigma"] and not kwargs.get("coupled"):
        settings = {"path": {"cosine": "cosine"}.get(kwargs["base"], "linear")}
    unet = AdaptedNetwork(network=network, signature="torchcfm", **options)
    return unet, GaussianFlowScheduler(**RAW_TIME, **settings)


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

    EDM's `VPPrecond`, `VEPrecond`, `iDDPMPrecond` and k-diffusion's wrappers are such a D too,
    with other c inside, and know their range of noise levels.

    Args:
        network: D, called as `network(x, sigma, class_labels=rows)`.
        raw: whether it is F instead, called as `network(c_in x, c_noise, class_labels=rows)`.
        sigma_min: last noise level before 0.
        sigma_max: first noise level.
        sigma_data: standard deviation of the data in the c of EDM; only a raw network needs it.
        one_hot: whether labels are one-hot rows, as in EDM; False for k-diffusion's integers.
        **options: of `AdaptedNetwork`.

    Raises:
        ValueError: unless `0 < sigma_min < sigma_max` are finite and levels that the network says
            it was trained for, and `sigma_data` is positive.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"0 < sigma_min < sigma_max < inf must hold, got {sigma_min} and {sigma_max}: pass "
            "the last and the first noise level of the sampling, EDM's are 0.002 and 80"
        )
    lowest = float(getattr(network, "sigma_min", 0.0))
    highest = float(getattr(network, "sigma_max", math.inf))
    if not lowest <= sigma_min < sigma_max <= highest:
        raise ValueError(
            f"sigma_min and sigma_max must be noise levels of the network, from {lowest:.6g} to "
            f"{highest:.6g}, got {sigma_min} and {sigma_max}: pass its own, or levels inside"
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
