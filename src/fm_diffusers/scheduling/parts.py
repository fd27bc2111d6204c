r"""What a configuration names: its paths, its clock, its solver, its grid.

Each function reads a few keys of a configuration and returns the object that they stand for.
"""

import inspect
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion, get_diffusion
from fm_diffusers.grids import GRIDS, RESPACINGS, default_parameters
from fm_diffusers.paths import PATHS, GaussianPath, Linear
from fm_diffusers.scheduling.clock import Clock
from fm_diffusers.scheduling.rules import fitted_rows
from fm_diffusers.solvers import SOLVERS, Calibrated, Solver
from fm_diffusers.tables import make

#: Where a default grid starts if the model says nothing at t = 0: alpha/(alpha + beta) there.
INSIDE = 0.01

#: Rows of PATHS and GRIDS whose parameters are keys of the configuration by diffusers' names.
CONFIGURED = {"discrete", "flow_match", "flow_multistep", "ddim", "euler_discrete", "multistep"}


def make_clock(config: Any) -> Clock:
    """Return the clock of a configuration."""
    path = _make(config, "path", PATHS, config.path, config.path_kwargs)
    sampling_path, name = path, config.sampling_path
    if name is not None:
        sampling_path = _make(config, "path", PATHS, name, config.sampling_path_kwargs)
    return Clock(path, sampling_path, config.time_convention, config.num_train_timesteps)


def make_diffusion(config: Any) -> Diffusion | None:
    """Return the coefficient of dW, or None for the ODE."""
    name, parameters = config.diffusion, config.diffusion_kwargs
    if name is None:
        return None
    return make("diffusion", {name: partial(get_diffusion, name)}, name, parameters)


def model_kwargs(config: Any, clock: Clock) -> dict[str, Any]:
    """Return what a solver is told about the model."""
    prediction = config.prediction_type
    return {
        "path": clock.sampling_path,
        "prediction": prediction,
        "model_path": clock.model_path,
    }


def make_solver(config: Any, clock: Clock) -> Solver:
    """Return the solver of a configuration."""
    given = model_kwargs(config, clock) | {"diffusion": make_diffusion(config)}
    return make("solver", SOLVERS, config.solver, config.solver_kwargs, **given)


def make_grid(
    config: Any, n: int, ends: tuple[float, float], path: GaussianPath, noisy: bool
) -> Tensor:
    """Return the times of the grid of a configuration with `n` steps, shape `(n + 1,)`."""
    name, parameters = config.grid, config.grid_kwargs
    if name is None:
        name, parameters = "logistic", default_parameters(n, noisy) | (parameters or {})
    given = {"n": n, "path": path, "t_min": ends[0], "t_max": ends[1]}
    return _make(config, "grid", GRIDS, name, parameters, **given)


def check_parts(config: Any, clock: Clock) -> Solver:
    """Return the solver; raise a `ValueError` for a grid or a solver that cannot be made."""
    make_grid(config, 2, (0.0, 1.0), Linear(), noisy=False)
    return make_solver(config, clock)


def _make(
    config: Any,
    kind: str,
    table: dict[str, Any],
    name: str,
    parameters: dict[str, Any] | None,
    **given: Any,
) -> Any:
    """Make an entry of a table, with parameters of the configuration for some; see `make`."""
    if name in CONFIGURED:
        known = inspect.signature(table[name]).parameters
        given |= {k: config[k] for k in known if k in config and k not in given}
    return make(kind, table, name, parameters, **given)


# --- the ends of a grid, and what a calibration puts between them --------------------------------


def ends(config: Any, clock: Clock, solver: Solver) -> tuple[float, float]:
    """Return the first and the last time of a grid."""
    first = first_time(clock, solver) if config.t_min is None else config.t_min
    return first, 1.0 if config.t_max is None else config.t_max


def first_time(clock: Clock, solver: Solver) -> float:
    """Return the first time at which the model is fed a number and says where the data is."""
    begin = solver.path.time(clock.path.log_snr(0.0)).item()
    for t in (0.0, begin):
        fed = clock.to_timestep(torch.tensor(t, dtype=torch.float64))
        if solver.exists(t) and all(map(math.isfinite, (fed, *solver.convert("sample", t)))):
            return t
    return solver.path.time(torch.logit(torch.tensor(INSIDE, dtype=torch.float64))).item()


def calibrated_for(config: Any) -> dict[str, Any]:
    """Return the part of a configuration under which a calibration holds."""
    names = ["solver", "solver_kwargs", "grid", "grid_kwargs", "t_min", "t_max", "shift"]
    names += ["shift_terminal", "use_dynamic_shifting"]
    names += [f"use_{kind}_sigmas" for kind in RESPACINGS]
    return {name: config[name] for name in names}


def calibrated_times(config: Any, clock: Clock, log_snr: list[float]) -> Tensor:
    """Return the grid with these log-SNRs between its ends."""
    first, last = ends(config, clock, make_solver(config, clock))
    inner = clock.sampling_path.time(torch.tensor(log_snr, dtype=torch.float64))
    return torch.tensor([first, *inner.tolist(), last], dtype=torch.float64)


def calibrated(config: Any, clock: Clock, n: int | None) -> tuple[Solver, Tensor] | None:
    """Return the solver and the grid fitted for `n` steps, if there are, and if they hold."""
    calibration = config.calibration or {}
    found = calibration.get("steps", {}).get(str(n))
    now = calibrated_for(config)
    if found is None or now | calibration["for"] != now or make_solver(config, clock).noisy:
        return None
    method = model_kwargs(config, clock) | found["method"]
    solver = Calibrated(**method, rows=fitted_rows(found))
    return solver, calibrated_times(config, clock, found["log_snr"])
