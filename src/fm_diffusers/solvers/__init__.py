"""Solvers of the sampling ODE and SDE, cut at one model evaluation."""

from collections.abc import Callable
from functools import partial

from fm_diffusers.solvers.base import Noise, Solver, Step, combine, integrate, trajectory, update
from fm_diffusers.solvers.exponential import ExponentialMultistep
from fm_diffusers.solvers.runge_kutta import EULER, HEUN, MIDPOINT, RK4, RungeKutta, Tableau
from fm_diffusers.solvers.stochastic import EulerMaruyama, StochasticHeun

#: The solvers by their names in a saved configuration, made with `(path, prediction, diffusion)`.
#: `SOLVERS["mine"] = MySolver` adds one; whoever loads a scheduler saved with it must do the same.
SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": partial(RungeKutta, tableau=EULER),
    "midpoint": partial(RungeKutta, tableau=MIDPOINT),
    "heun": partial(RungeKutta, tableau=HEUN),
    "rk4": partial(RungeKutta, tableau=RK4),
    "ddim": partial(RungeKutta, tableau=EULER, clock="snr"),
    "exponential_multistep": ExponentialMultistep,
    "euler_maruyama": EulerMaruyama,
    "stochastic_heun": StochasticHeun,
}

__all__ = [
    "SOLVERS",
    "EulerMaruyama",
    "ExponentialMultistep",
    "Noise",
    "RungeKutta",
    "Solver",
    "Step",
    "StochasticHeun",
    "Tableau",
    "combine",
    "integrate",
    "trajectory",
    "update",
]
