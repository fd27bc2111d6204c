r"""The grids of diffusers' schedulers, which swapped pipelines keep.

The noise level here is :math:`\sigma = \beta/(\alpha + \beta)`, which on the linear path is
:math:`1 - t`. A grid of `n` steps are `n` starts; the end of the path follows them.

- Flow models: `flow_match` is `FlowMatchEulerDiscreteScheduler`'s grid, `flow_multistep` that of
  `UniPCMultistepScheduler` and `DPMSolverMultistepScheduler`, both before `shift_times`.
- DDPM tables: `ddim` and `multistep` are the integer timesteps of DDIM, DDPM, PNDM and of
  DPM-Solver, UniPC, DEIS, which lay out one step more and leave out the last; `euler_discrete` are
  those of Euler, Heun, LMS and KDPM2, whose linspace is not rounded.

Reference: Lin et al., https://arxiv.org/abs/2305.08891 (leading, trailing, linspace).
"""

import torch
from torch import Tensor

from fm_diffusers.grids.noise import on_path, shift_noise
from fm_diffusers.paths import GaussianPath
from fm_diffusers.paths.base import check_finite, check_positive

#: Where diffusers' schedulers put the timesteps of a table.
SPACINGS = ("leading", "linspace", "trailing")

#: The grids here, which start where diffusers' schedulers do whatever `t_min` says.
FIXED_STARTS = ("flow_match", "flow_multistep", "ddim", "euler_discrete", "multistep")


def flow_match(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    num_train_timesteps: int = 1000,
    shift: float = 1.0,
    use_dynamic_shifting: bool = False,
) -> Tensor:
    """Return equal steps of sigma between the first and the last level of the training.

    These levels are shifted already, so that a static shift acts on the last one twice. That is
    how diffusers samples (its issue 13243).
    """
    check_positive(num_train_timesteps=num_train_timesteps, shift=shift)
    ends = torch.tensor([1.0, 1 / num_train_timesteps], dtype=torch.float64)
    if not use_dynamic_shifting:
        ends = shift_noise(ends, shift)
    first, last = ends.tolist()
    sigmas = torch.linspace(first, last, n, dtype=torch.float64)
    return _with_end("flow_match", _times("flow_match", path, sigmas), t_max)


def flow_multistep(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    num_train_timesteps: int = 1000,
    first: float | None = None,
    last: float = 0.0,
) -> Tensor:
    """Return `n` equal steps of sigma from `first`, else `1 - 1/num_train_timesteps`, to `last`.

    DPM-Solver's are the default; UniPC's go from just below 1 to `1/num_train_timesteps`.
    """
    check_positive(num_train_timesteps=num_train_timesteps)
    first = 1 - 1 / num_train_timesteps if first is None else first
    check_finite(first=first, last=last)
    if not 0 <= last < first <= 1:
        raise ValueError(
            f"0 <= last < first <= 1 must hold, got last={last} and first={first}: they are noise "
            "levels beta/(alpha + beta), 1 for pure noise"
        )
    sigmas = torch.linspace(first, last, n + 1, dtype=torch.float64)[:-1]
    return _with_end("flow_multistep", _times("flow_multistep", path, sigmas), t_max)


def ddim(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    num_train_timesteps: int = 1000,
    timestep_spacing: str = "leading",
    steps_offset: int = 0,
) -> Tensor:
    """Return the times of DDIM's timesteps of a table.

    Raises:
        ValueError: for an unknown spacing, or more steps than timesteps.
    """
    indices = _indices(n, num_train_timesteps, timestep_spacing, steps_offset)
    return _on_table("ddim", indices, num_train_timesteps, t_max)


def euler_discrete(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    num_train_timesteps: int = 1000,
    timestep_spacing: str = "linspace",
    steps_offset: int = 0,
) -> Tensor:
    """Return the times of Euler's timesteps of a table; see `ddim`."""
    if timestep_spacing != "linspace":
        return ddim(n, path, t_min, t_max, num_train_timesteps, timestep_spacing, steps_offset)
    _check_table(num_train_timesteps, steps_offset)
    indices = torch.linspace(num_train_timesteps - 1, 0, n, dtype=torch.float64)
    return _on_table("euler_discrete", indices, num_train_timesteps, t_max)


def multistep(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    num_train_timesteps: int = 1000,
    timestep_spacing: str = "linspace",
    steps_offset: int = 0,
) -> Tensor:
    """Return the times of DPM-Solver's timesteps of a table; see `ddim`."""
    extra = timestep_spacing != "trailing"
    indices = _indices(n + extra, num_train_timesteps, timestep_spacing, steps_offset)[:n]
    return _on_table("multistep", indices, num_train_timesteps, t_max)


def _indices(n: int, count: int, spacing: str, offset: int) -> Tensor:
    if spacing not in SPACINGS:
        raise ValueError(f"timestep_spacing must be one of {SPACINGS}, got {spacing!r}")
    _check_table(count, offset)
    if n > count:
        raise ValueError(
            f"a table of {count} timesteps has no grid of {n}: take fewer steps, or a grid in "
            'continuous time such as grid="logistic"'
        )
    whole = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":
        indices = (whole * (count // n)).flip(0) + offset
        if not 0 <= indices[-1] <= indices[0] < count:
            raise ValueError(
                f"steps_offset={offset} moves {n} leading timesteps to {indices[-1]:g} to "
                f"{indices[0]:g}, but the table has 0 to {count - 1}: take fewer steps, another "
                "timestep_spacing, or steps_offset=0"
            )
        return indices
    if spacing == "trailing":
        return (count - whole * (count / n)).round() - 1
    return torch.linspace(0, count - 1, n, dtype=torch.float64).round().flip(0)


def _check_table(count: int, offset: int) -> None:
    check_positive(num_train_timesteps=count)
    check_finite(steps_offset=offset)


def _on_table(grid: str, indices: Tensor, count: int, t_max: float) -> Tensor:
    """Return the times of a table's steps, and the end."""
    return _with_end(grid, 1 - (indices + 1) / count, t_max)


def _times(grid: str, path: GaussianPath, sigmas: Tensor) -> Tensor:
    try:
        return on_path(path, path.time(torch.logit(1 - sigmas)))
    except ValueError as error:
        raise ValueError(
            f"grid={grid!r} goes from the noise level {sigmas[0].item():g} to "
            f"{sigmas[-1].item():g}, and {error}, or a grid in continuous time such as grid=None"
        ) from error


def _with_end(grid: str, starts: Tensor, t_max: float) -> Tensor:
    """Return starts of steps, and the end.

    Raises:
        ValueError: if they are not distinct, or do not lie before the end.
    """
    if (starts.diff() <= 0).any():
        raise ValueError(
            f"grid={grid!r} has no {len(starts)} distinct starts: it goes from t = "
            f"{starts[0].item()} to {starts[-1].item()}; take fewer steps, or more "
            "num_train_timesteps"
        )
    if not starts[-1] <= t_max:
        raise ValueError(
            f"t_max={t_max} lies before the last start of grid={grid!r}, t = "
            f"{starts[-1].item():.6g}, which is where diffusers' schedulers put it: leave t_max "
            "out, or take a grid in continuous time such as grid=None"
        )
    return torch.cat([starts, starts.new_tensor([t_max])])
