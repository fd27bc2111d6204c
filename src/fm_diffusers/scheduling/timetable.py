r"""From a configuration and the arguments of `set_timesteps` to a plan.

Where steps start comes from a calibration, the grid of the configuration, or the user's sigmas or
timesteps; the end of the grid follows them. Lists that say only how many steps are wanted
(`habits`) give way to a calibration, and to grids that are not diffusers' own.
"""

import reprlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion, windowed
from fm_diffusers.grids.spacing import FIXED_STARTS
from fm_diffusers.scheduling.checks import as_numbers, check_fed, check_steps
from fm_diffusers.scheduling.clock import ROUNDING, Clock
from fm_diffusers.scheduling.habits import steps_meant
from fm_diffusers.scheduling.parts import calibrated, ends, make_grid, make_solver
from fm_diffusers.scheduling.plan import Plan, evaluation_times, steps_through
from fm_diffusers.scheduling.rows import Bounds
from fm_diffusers.scheduling.shifting import is_moved, moved, unshifted
from fm_diffusers.solvers import Solver, Step

#: Rows of GRIDS whose times are those of a table.
ON_TABLES = {"ddim", "euler_discrete", "multistep"}
#: Rows that `from_config` takes from configurations of diffusers, so that nobody need have named
#: them.
FROM_THEIRS = {None, *FIXED_STARTS, "karras", "log_snr"}

Numbers = Sequence[float] | Tensor


def make_plan(
    config: Any,
    clock: Clock,
    num_inference_steps: int | None = None,
    device: str | torch.device | None = None,
    sigmas: Numbers | None = None,
    mu: float | None = None,
    timesteps: Numbers | None = None,
    noisy_steps: Sequence[int] | None = None,
) -> Plan:
    """Return the plan of a run; arguments are those of `GaussianFlowScheduler.set_timesteps`.

    Raises:
        ValueError: if nothing says where to go, `mu` is missing, or the model says nothing at one
            of the times.
    """
    sigmas, timesteps, ended = _lists(num_inference_steps, sigmas, timesteps)
    given = timesteps if sigmas is None else sigmas
    if given is not None and not ended and _gives_way(config, clock, sigmas, timesteps):
        num_inference_steps, given = len(given), None
    if given is None:
        solver, starts = _laid_out(config, clock, num_inference_steps, mu)
    else:
        solver = make_solver(config, clock)
        starts = _as_given(config, clock, solver, sigmas, mu, timesteps)
    # the times that float32 timesteps stand for, so that model and solver agree on them
    starts = torch.where((starts < 0) & (starts >= -ROUNDING), 0.0, starts)
    starts = clock.as_fed(starts)
    times = with_end(starts, ends(config, clock, solver)[1])
    if noisy_steps is not None:
        solver = replace(solver, diffusion=_window(solver, times, noisy_steps))
    if given is None and _is_ddim(config):
        steps = _ddim_steps(config, solver, times)
    else:
        steps = steps_through(clock, solver, times)
    nodes = evaluation_times(steps)
    if sigmas is None or timesteps is None:
        fed = clock.to_timestep(nodes)
    elif given is None:
        fed = clock.to_timestep(unshifted(config, clock, nodes, mu))
    else:
        fed = _between(clock, times, timesteps, nodes)
    plan = Plan(clock, solver, steps, times, fed.float(), bounds_of(config), device, config.noise)
    check_fed(plan.fed[plan.start_indices])
    return plan


def _lists(
    n: int | None, sigmas: Numbers | None, timesteps: Numbers | None
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Return sigmas without their end and timesteps, and whether the end was among them."""
    noise, fed = _numbers("sigmas", sigmas), _numbers("timesteps", timesteps)
    ended = noise is not None and len(noise) > 1 and bool(noise[-1] == 0) and fed is None
    noise = noise[:-1] if noise is not None and ended else noise
    counts = [len(given) for given in (noise, fed) if given is not None]
    if len(set(counts)) > 1:
        raise ValueError(
            f"sigmas and timesteps must have one length, got {counts[0]} and {counts[1]}: each "
            "of either is a start of a step, or give one of them alone"
        )
    if counts and n not in (None, counts[0]):
        raise ValueError(
            f"num_inference_steps={n} contradicts {counts[0]} sigmas or timesteps: leave it out"
        )
    return noise, fed, ended


def _numbers(name: str, given: Numbers | None) -> Tensor | None:
    """Return given numbers in float64 on the CPU, None for none."""
    if given is None:
        return None
    values = as_numbers(name, given, "a list of numbers").cpu().double()
    if values.ndim != 1:
        raise ValueError(
            f"{name} must be a list of numbers, got {reprlib.repr(given)}: give one for the start "
            "of each step"
        )
    return values


def _gives_way(config: Any, clock: Clock, sigmas: Tensor | None, timesteps: Tensor | None) -> bool:
    """Whether a calibration or the grid goes before a list; warn where neither has an effect."""
    given = timesteps if sigmas is None else sigmas
    assert given is not None
    fitted = calibrated(config, clock, len(given)) is not None
    if steps_meant(sigmas, timesteps, clock.num_train_timesteps) is not None:
        return fitted or config.grid not in FIXED_STARTS
    if fitted or config.grid not in FROM_THEIRS:
        name = "timesteps" if sigmas is None else "sigmas"
        unused = f"the calibration of {len(given)} steps" if fitted else f"grid={config.grid!r}"
        warnings.warn(
            f"{name}={reprlib.repr(given.tolist())} say where the steps start, {unused} has no "
            "effect on this run: pass num_inference_steps for it, or sigmas that end with 0 for "
            "these steps",
            stacklevel=4,
        )
    return False


def _window(solver: Solver, times: Tensor, noisy_steps: Sequence[int]) -> Diffusion:
    """Return the diffusion of a solver on some intervals only.

    Raises:
        ValueError: without a diffusion, or for intervals that do not exist or are the last one.
    """
    count = len(times) - 1
    listed = noisy_steps.tolist() if hasattr(noisy_steps, "tolist") else noisy_steps
    steps = list(listed) if isinstance(listed, Iterable) else [listed]
    if solver.diffusion is None:
        raise ValueError(
            f"noisy_steps={steps} need a coefficient of noise, and the scheduler has "
            'none: make it with a diffusion, diffusion="flow_grpo" for example'
        )
    whole = all(isinstance(i, Integral) and not isinstance(i, bool) for i in steps)
    if not whole or not all(0 <= i < count - 1 for i in steps):
        raise ValueError(
            f"noisy_steps must be intervals by their numbers, from 0 to {count - 2}, the last of "
            f"the {count} is never noisy; got {steps}"
        )
    return windowed(solver.diffusion, [times[i : i + 2].tolist() for i in sorted(set(steps))])


def bounds_of(config: Any) -> Bounds:
    """Return the bounds that a configuration sets on data predictions."""
    c = config
    return Bounds(
        clip=c.clip_sample_range if c.clip_sample and not c.thresholding else None,
        quantile=c.dynamic_thresholding_ratio if c.thresholding else None,
        most=c.sample_max_value,
        # DDIM keeps its noise prediction where its data prediction is clipped
        keep_noise=c.solver == "ddim" and c.diffusion is None,
    )


def _laid_out(config: Any, clock: Clock, n: int | None, mu: float | None) -> tuple[Solver, Tensor]:
    """Return the solver and where `n` steps start, as calibrated or as the grid says."""
    if (found := calibrated(config, clock, n)) is not None:
        return found[0], found[1][:-1]
    n, solver = check_steps(n), make_solver(config, clock)
    grid = make_grid(config, n, ends(config, clock, solver), clock.sampling_path, solver.noisy)
    starts = grid[:-1]
    if clock.model_path is not None and config.grid in ON_TABLES:
        starts = clock.sampling_path.time(clock.path.log_snr(starts))
    return solver, moved(config, clock, starts, mu)


def _as_given(
    config: Any,
    clock: Clock,
    solver: Solver,
    sigmas: Tensor | None,
    mu: float | None,
    timesteps: Tensor | None,
) -> Tensor:
    """Return where steps start by the user's sigmas, or else timesteps."""
    name, values = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    assert values is not None
    starts = clock.to_time(values) if sigmas is None else clock.time_of_sigma(values)
    last = ends(config, clock, solver)[1]
    scale = clock.to_timestep if sigmas is None else clock.sigma
    noise, data = scale(torch.tensor([0.0, last], dtype=torch.float64)).tolist()
    if not len(values) or not ((starts >= -ROUNDING) & (starts < last)).all():
        raise ValueError(
            f"{name} must be numbers from {noise:g}, pure noise, to the end of the grid at "
            f"{data:g}, which is added to them; got {values.tolist()}"
        )
    if not (starts.diff() > 0).all():
        raise ValueError(
            f"{name} must run strictly from the noise at {noise:g} to the data at {data:g}, got "
            f"{values.tolist()}"
        )
    if name == "timesteps" and len(values) > 1 and clock.counts_steps and values.max() <= 1:
        raise ValueError(
            f"timesteps={values.tolist()} look like noise levels, the network's scale goes from "
            f"{noise:g} to {data:g}: pass them as sigmas, or multiplied by num_train_timesteps"
        )
    return starts.clamp(min=0.0) if sigmas is None else moved(config, clock, starts, mu)


def _is_ddim(config: Any) -> bool:
    like_ddim = config.solver == config.grid == "ddim" and config.diffusion is None
    return like_ddim and not is_moved(config)


def _ddim_steps(config: Any, solver: Solver, times: Tensor) -> tuple[Step, ...]:
    """Return steps of DDIM's own length.

    DDIM steps by `num_train_timesteps // n` whatever the spacing, so that its steps do not end
    where the next one starts if they are spaced by something else.
    """
    starts, count = times[:-1], config.num_train_timesteps
    stops = starts + (count // len(starts)) / count
    stops = torch.where(stops > 1 - 0.5 / count, times[-1], stops)
    return tuple(step for pair in torch.stack([starts, stops], 1) for step in solver.plan(pair))


def _between(clock: Clock, times: Tensor, fed: Tensor, nodes: Tensor) -> Tensor:
    """Return what the network is fed at nodes, linear between what is given for the starts.

    Where the end is at an infinite timestep no line leads to it: in the last step the network is
    fed as much more than at its start as the clock's own timestep is.
    """
    count, end = len(times) - 1, clock.to_timestep(times[-1:])
    fed = torch.cat([fed, end])
    cell = (torch.searchsorted(times, nodes, right=True) - 1).clamp(0, count - 1)
    share = (nodes - times[cell]) / (times[cell + 1] - times[cell])
    found = torch.lerp(fed[cell], fed[cell + 1], share)
    if not end.isfinite():
        more = clock.to_timestep(nodes) - clock.to_timestep(times[-2:-1])
        found = torch.where(cell == count - 1, fed[-2] + more, found)
    return torch.where(share == 0, fed[cell], found)


def with_end(starts: Tensor, last: float) -> Tensor:
    """Return the starts of intervals, and the end."""
    return torch.cat([starts, starts.new_tensor([last])])
