"""Solvers of the sampling ODE and SDE, cut at one model evaluation."""

from collections.abc import Callable
from functools import partial

from fm_diffusers.solvers.adaptive import integrate_adaptive
from fm_diffusers.solvers.base import (
    Noise,
    Solver,
    Step,
    combine,
    memory_size,
    update,
)
from fm_diffusers.solvers.calibrated import Calibrated
from fm_diffusers.solvers.drive import integrate, trajectory
from fm_diffusers.solvers.exponential import FORMS, RULES, VARIABLES, Multistep
from fm_diffusers.solvers.runge_kutta import EULER, HEUN, MIDPOINT, RK4, RungeKutta, Tableau
from fm_diffusers.solvers.stochastic import EulerMaruyama, StochasticHeun

#: The solvers by their names in a saved configuration. An entry makes a `Solver`, with
#: `(path, prediction, diffusion, model_path)` and parameters of its own by name:
#:
#:     @dataclass(frozen=True)
#:     class MyHeun(RungeKutta):
#:         tableau: Tableau = HEUN
#:
#:     SOLVERS["my_heun"] = MyHeun
#:
#: Whoever loads a scheduler saved with such a name must do the same first.
SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": partial(RungeKutta, tableau=EULER),
    "midpoint": partial(RungeKutta, tableau=MIDPOINT),
    "heun": partial(RungeKutta, tableau=HEUN),
    "rk4": partial(RungeKutta, tableau=RK4),
    "ddim": partial(RungeKutta, tableau=EULER, clock="snr"),
    "adams_bashforth": partial(Multistep, variable="clock"),
    "exponential_multistep": partial(Multistep, form="data"),
    "dpm_solver++": partial(Multistep, form="data", variable="log_snr", solver_type="midpoint"),
    "unipc": partial(
        Multistep,
        form="data",
        variable="log_snr",
        corrector=True,
        solver_type="bh2",
        lower_order_final=True,
    ),
    "predictor_corrector": partial(Multistep, corrector=None, lower_order_final=None),
    "euler_maruyama": EulerMaruyama,
    "stochastic_heun": StochasticHeun,
}

__all__ = [
    "FORMS",
    "RULES",
    "SOLVERS",
    "VARIABLES",
    "Calibrated",
    "EulerMaruyama",
    "Multistep",
    "Noise",
    "RungeKutta",
    "Solver",
    "Step",
    "StochasticHeun",
    "Tableau",
    "combine",
    "integrate",
    "integrate_adaptive",
    "memory_size",
    "trajectory",
    "update",
]
