"""Time grids by name, and the default one."""

import math
from collections.abc import Callable
from functools import partial

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
from fm_diffusers.grids.named import ays, bong_tangent, normal, sgm_uniform, simple
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

#: The default grid: `logistic`, with these parameters by the number of steps up to which they
#: hold, for the ODE and for SDEs. Measured (`benchmarks/`): few steps must not be spent on the
#: last details; noise is put back until the end, so that an SDE needs more steps near the data.
ODE_PARAMETERS = {
    6: {"shift": 1.25, "scale": 1.0},
    12: {"scale": 1.1},
    math.inf: {"scale": 1.4},
}
SDE_PARAMETERS = {
    6: {"shift": 0.7, "scale": 1.2},
    math.inf: {"shift": 0.5},
}


def default_parameters(n: int, noisy: bool) -> dict[str, float]:
    """Return the parameters of `logistic` that make the default grid of `n` steps."""
    table = SDE_PARAMETERS if noisy else ODE_PARAMETERS
    return next(parameters for most, parameters in table.items() if n <= most)


#: The grids by their names in a saved configuration. An entry is a function with this signature,
#: and parameters of its own by name:
#:
#:     def dense_at_the_end(
#:         n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0, power: float = 2.0
#:     ) -> Tensor:
#:         """Return n + 1 times, float64 and strictly increasing, from t_min to t_max."""
#:         left = torch.linspace(1, 0, n + 1, dtype=torch.float64) ** power
#:         return t_max + (t_min - t_max) * left
#:
#:     GRIDS["dense_at_the_end"] = dense_at_the_end
#:     scheduler = GaussianFlowScheduler(grid="dense_at_the_end", grid_kwargs={"power": 3.0})
#:
#: Whoever loads a scheduler saved with such a name must do the same first.
GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "logistic": logistic,
    "shifted": shifted,
    "logit_normal": logit_normal,
    "log_snr": log_snr,
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "beta57": partial(beta, alpha=0.7, beta=0.5),  # of u; 0.5, 0.7 of the noise level 1 - u
    "polynomial": polynomial,
    "simple": simple,
    "normal": normal,
    "sgm_uniform": sgm_uniform,
    "bong_tangent": bong_tangent,
    "ays": ays,
    "flow_match": flow_match,
    "flow_multistep": flow_multistep,
    "ddim": ddim,
    "euler_discrete": euler_discrete,
    "multistep": multistep,
}

__all__ = [
    "GRIDS",
    "RESPACINGS",
    "ays",
    "beta",
    "bong_tangent",
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
    "normal",
    "on_path",
    "polynomial",
    "respace",
    "sgm_uniform",
    "shift_times",
    "shifted",
    "simple",
    "time_of_noise",
    "uniform",
    "warp",
]
