"""Solvers of the sampling ODE and SDE, cut at one model evaluation."""

from collections.abc import Callable
from functools import partial

from fm_diffusers.solvers.adaptive import integrate_adaptive
from fm_diffusers.solvers.base import Solver
from fm_diffusers.solvers.calibrated import Calibrated
from fm_diffusers.solvers.drive import integrate, trajectory
from fm_diffusers.solvers.exponential import Multistep
from fm_diffusers.solvers.interpolation import FORMS, RULES, VARIABLES
from fm_diffusers.solvers.runge_kutta import (
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    FlowMap,
    RungeKutta,
    Tableau,
)
from fm_diffusers.solvers.steps import Noise, Step, combine, memory_size, update
from fm_diffusers.solvers.stochastic import EulerMaruyama, StochasticHeun

#: The solvers by their names in a saved configuration, made with `(path, prediction, diffusion,
#: model_path)` and parameters of their own by name. An entry is a class, or a `partial` of one:
#:
#:     SOLVERS["adams_4"] = partial(Multistep, variable="clock", solver_order=4)
#:
#:     @dataclass(frozen=True)
#:     class Damped(Solver):  # Euler's method with a share of every step
#:         share: float = 0.9
#:         order: ClassVar[int] = 1
#:         evaluations: ClassVar[int] = 1
#:
#:         def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
#:             return self.convert("velocity", t)  # weights of the sample and the model output
#:
#:         def steps(self, grid: Tensor) -> Iterator[Step]:
#:             slopes = torch.stack(self.slope(grid[:-1]), 1).tolist()
#:             for (t, s), slope in zip(pairwise(grid.tolist()), slopes):
#:                 yield Step(t, (t, s), tuple(slope), ((1.0, self.share * (s - t)),))
#:
#:     SOLVERS["damped"] = Damped
#:     scheduler = GaussianFlowScheduler(solver="damped", solver_kwargs={"share": 0.8})
#:
#: Whoever loads a scheduler saved with such a name must do the same first.
SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": partial(RungeKutta, tableau=EULER),
    "midpoint": partial(RungeKutta, tableau=MIDPOINT),
    "heun": partial(RungeKutta, tableau=HEUN),
    "rk4": partial(RungeKutta, tableau=RK4),
    "ddim": partial(RungeKutta, tableau=EULER, clock="snr"),
    "flow_map": FlowMap,
    "adams_bashforth": partial(Multistep, variable="clock"),
    "exponential_multistep": partial(Multistep, form="data"),
    "res_multistep": partial(Multistep, form="data", variable="log_snr"),
    "dpm_solver++": partial(Multistep, form="data", variable="log_snr", solver_type="midpoint"),
    "unipc": partial(
        Multistep,
        form="data",
        variable="log_snr",
        corrector=True,
        solver_type="bh2",
        lower_order_final=True,
    ),
    "predictor_corrector": partial(Multistep, corrector=None, lower_order_final=None, fitted=None),
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
    "FlowMap",
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
