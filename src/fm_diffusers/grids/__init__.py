"""Time grids by name, and the default one."""

import math
from collections.abc import Callable

from torch import Tensor

from fm_diffusers.grids.continuous import (
    beta,
    exponential,
    karras,
    log_snr,
    logistic,
    logit_normal,
    polynomial,
    shifted,
    uniform,
)
from fm_diffusers.grids.noise import (
    RESPACINGS,
    noise_of_time,
    on_path,
    respace,
    shift_times,
    time_of_noise,
    warp,
)
from fm_diffusers.grids.spacing import (
    ddim,
    euler_discrete,
    flow_match,
    flow_multistep,
    multistep,
)

#: The default grid: `logistic`, with these parameters for the ODE by the number of steps up to
#: which they hold, and for SDEs. Measured (`benchmarks/`): few steps must not be spent on the last
#: details; noise is put back until the end, so that an SDE needs more steps near the data.
ODE_PARAMETERS = {
    6: {"shift": 1.25, "scale": 1.0},
    12: {"scale": 1.1},
    math.inf: {"scale": 1.4},
}
SDE_PARAMETERS = {"shift": 0.7, "scale": 1.2}


def default_parameters(n: int, noisy: bool) -> dict[str, float]:
    """Return the parameters of `logistic` that make the default grid of `n` steps."""
    if noisy:
        return SDE_PARAMETERS
    return next(parameters for most, parameters in ODE_PARAMETERS.items() if n <= most)


#: The grids by their names in a saved configuration, called as `(n, path, t_min, t_max)` with
#: parameters of their own. `GRIDS["mine"] = my_grid` adds one; whoever loads a scheduler saved
#: with it must do the same first.
GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "logistic": logistic,
    "shifted": shifted,
    "logit_normal": logit_normal,
    "log_snr": log_snr,
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "polynomial": polynomial,
    "flow_match": flow_match,
    "flow_multistep": flow_multistep,
    "ddim": ddim,
    "euler_discrete": euler_discrete,
    "multistep": multistep,
}

__all__ = [
    "GRIDS",
    "RESPACINGS",
    "beta",
    "ddim",
    "default_parameters",
    "euler_discrete",
    "exponential",
    "flow_match",
    "flow_multistep",
    "karras",
    "log_snr",
    "logistic",
    "logit_normal",
    "multistep",
    "noise_of_time",
    "on_path",
    "polynomial",
    "respace",
    "shift_times",
    "shifted",
    "time_of_noise",
    "uniform",
    "warp",
]
