r"""Grids moved as diffusers' options say: shifted, stretched, spaced anew.

A shift divides every signal-to-noise ratio by a number, on any path; `shift_terminal` stretches a
grid so that its last step starts at a noise level; `use_..._sigmas` space the levels anew between
the ends of a grid, or of a table.
"""

import math
import reprlib
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.grids import (
    RESPACINGS,
    noise_of_time,
    on_path,
    respace,
    shift_times,
    time_of_noise,
)
from fm_diffusers.paths import Discrete
from fm_diffusers.scheduling.clock import Clock

#: The largest beta/alpha that equal steps in it begin with: that of diffusers' schedulers for a
#: table without data at its last step, whose own is infinite.
LARGEST_RATIO = 4096.0


def respacing(config: Any) -> str | None:
    """Return the way in which noise levels are spaced anew, None if they are not."""
    return next((kind for kind in RESPACINGS if config[f"use_{kind}_sigmas"]), None)


def is_moved(config: Any) -> bool:
    """Whether anything is done to a grid."""
    c = config
    return bool(c.shift != 1 or c.use_dynamic_shifting or c.shift_terminal or respacing(c))


def moved(config: Any, clock: Clock, times: Tensor, mu: float | None) -> Tensor:
    """Return the times shifted, stretched and spaced as the configuration says.

    Raises:
        ValueError: if the shift is dynamic and `mu` does not say it.
    """
    shift = _dynamic_shift(config, mu) if config.use_dynamic_shifting else config.shift
    path = clock.sampling_path
    if shift != 1 or config.shift_terminal:
        times = shift_times(path, times, shift, config.shift_terminal, clock.ends)
    kind = respacing(config)
    if kind is None:
        return times
    table = isinstance(clock.path, Discrete)
    first, last = (_ends_of_table if table else _ends_of_grid)(config, clock, times)
    levels = respace(kind, len(times), config.sigma_max or first, config.sigma_min or last)
    return on_path(path, path.time(-torch.log(levels))) if table else time_of_noise(path, levels)


def unshifted(config: Any, clock: Clock, times: Tensor, mu: float | None) -> Tensor:
    """Return the times that the shift of a configuration moves to `times`.

    Raises:
        ValueError: if the configuration also stretches times or spaces them anew.
    """
    if config.shift_terminal or respacing(config):
        kind = respacing(config)
        option = f"use_{kind}_sigmas" if kind else f"shift_terminal={config.shift_terminal}"
        raise ValueError(
            f"the timesteps given beside sigmas are those before the shift, and {option} leaves "
            "no way back to them: make the scheduler without it, or keep diffusers' own grid, "
            'grid="flow_match"'
        )
    shift = _dynamic_shift(config, mu) if config.use_dynamic_shifting else config.shift
    return shift_times(clock.sampling_path, times, 1 / shift, ends=clock.ends)


def _dynamic_shift(config: Any, mu: float | None) -> float:
    if mu is None:
        raise ValueError(
            "use_dynamic_shifting needs the shift: pass mu to set_timesteps, or make the "
            "scheduler with use_dynamic_shifting=False"
        )
    exponential, mu = config.time_shift_type == "exponential", _number("mu", mu)
    shift = math.exp(min(mu, 700.0)) if exponential else mu
    if not 0 < shift < math.inf or mu > 700:
        raise ValueError(
            f"mu must be a finite number{'' if exponential else ' above 0'}, the shift is "
            f"{'exp(mu)' if exponential else 'mu'}; got {mu}"
        )
    return shift


def _number(name: str, given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"{name} must be a number, got {reprlib.repr(given)}: pass one, or leave it out"
        ) from None


def _ends_of_grid(config: Any, clock: Clock, times: Tensor) -> list[float]:
    return noise_of_time(clock.sampling_path, times[[0, -1]]).tolist()


def _ends_of_table(config: Any, clock: Clock, times: Tensor) -> list[float]:
    """Return the first and the last beta/alpha between which a table is spaced anew.

    Euler respaces between the ends of its grid, all others between those of the table.
    """
    whole = torch.tensor([0.0, 1 - 1 / config.num_train_timesteps], dtype=torch.float64)
    ends = times[[0, -1]] if config.grid == "euler_discrete" else whole
    return torch.exp(-clock.sampling_path.log_snr(ends)).clamp(max=LARGEST_RATIO).tolist()
