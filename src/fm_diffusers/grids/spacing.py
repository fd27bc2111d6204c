r"""The grids of diffusers' schedulers, which swapped pipelines keep.

The noise level here is :math:`\sigma = \beta/(\alpha + \beta)`, which on the linear path is
:math:`1 - t`. A grid of `n` steps are `n` starts; the end of the path follows them.

- Flow models: `flow_match` is `FlowMatchEulerDiscreteScheduler`'s grid, `flow_multistep` that of
  `UniPCMultistepScheduler` and `DPMSolverMultistepScheduler`, both before `warp`.
- DDPM tables: `ddim` and `multistep` are the integer timesteps of DDIM, DDPM, PNDM and of
  DPM-Solver, UniPC, DEIS, which lay out one step more and leave out the last; `euler_discrete` are
  those of Euler, Heun, LMS and KDPM2, whose linspace is not rounded.

References: Esser et al., https://arxiv.org/abs/2403.03206 (shift); Lin et al.,
https://arxiv.org/abs/2305.08891 (leading, trailing, linspace); Karras et al.,
https://arxiv.org/abs/2206.00364; Lee et al., https://arxiv.org/abs/2407.12173 (beta).
"""

import math

import torch
from scipy import special
from torch import Tensor

from fm_diffusers.paths import GaussianPath

#: Where diffusers' schedulers put the timesteps of a table.
SPACINGS = ("leading", "linspace", "trailing")


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
    ends = torch.tensor([1.0, 1 / num_train_timesteps], dtype=torch.float64)
    if not use_dynamic_shifting:
        ends = shift_noise(ends, shift)
    return _times(path, torch.linspace(*ends.tolist(), n, dtype=torch.float64), t_max)


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
    first = 1 - 1 / num_train_timesteps if first is None else first
    return _times(path, torch.linspace(first, last, n + 1, dtype=torch.float64)[:-1], t_max)


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
    return _on_table(indices, num_train_timesteps, t_max)


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
    indices = torch.linspace(num_train_timesteps - 1, 0, n, dtype=torch.float64)
    return _on_table(indices, num_train_timesteps, t_max)


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
    return _on_table(indices, num_train_timesteps, t_max)


def _indices(n: int, count: int, spacing: str, offset: int) -> Tensor:
    if spacing not in SPACINGS:
        raise ValueError(f"timestep_spacing must be one of {SPACINGS}, got {spacing!r}")
    if n > count:
        raise ValueError(
            f"a table of {count} timesteps has no grid of {n}: take fewer steps, or a grid in "
            'continuous time such as grid="logistic"'
        )
    whole = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":
        return (whole * (count // n)).flip(0) + offset
    if spacing == "trailing":
        return (count - whole * (count / n)).round() - 1
    return torch.linspace(0, count - 1, n, dtype=torch.float64).round().flip(0)


def _on_table(indices: Tensor, count: int, t_max: float) -> Tensor:
    """Return the times of a table's steps, and the end."""
    return torch.cat([1 - (indices + 1) / count, indices.new_tensor([t_max])])


def _times(path: GaussianPath, sigmas: Tensor, t_max: float) -> Tensor:
    return torch.cat([path.time(torch.logit(1 - sigmas)), sigmas.new_tensor([t_max])])


def shift_noise(sigmas: Tensor, shift: float) -> Tensor:
    r"""Return :math:`s\sigma/(1 + (s - 1)\sigma)`: every SNR :math:`\alpha/\beta` divided by s."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def warp(sigmas: Tensor, shift: float, shift_terminal: float | None = None) -> Tensor:
    """Return the noise levels shifted, then stretched so that the last is `shift_terminal`."""
    sigmas = shift_noise(sigmas, shift)
    if not shift_terminal:
        return sigmas
    if sigmas[-1] == 1:
        raise ValueError(
            "shift_terminal needs a second timestep: with one, at pure noise, there is nothing to "
            "stretch"
        )
    return 1 - (1 - sigmas) * (1 - shift_terminal) / (1 - sigmas[-1])


def respace(kind: str, n: int, first: float, last: float) -> Tensor:
    """Return `n` noise levels from `first` to `last`, in equal steps of a variable of `kind`."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    if kind == "karras":
        start, stop = first ** (1 / 7), last ** (1 / 7)
        return (start + u * (stop - start)) ** 7
    if kind == "exponential":
        return torch.exp(math.log(first) + u * (math.log(last) - math.log(first)))
    quantiles = torch.as_tensor(special.betaincinv(0.6, 0.6, (1 - u).numpy()))
    return last + quantiles * (first - last)
