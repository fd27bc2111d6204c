"""A rule for the value of every argument of `GaussianFlowScheduler`.

Every value is one that JSON can hold, so that a configuration that samples can also be saved.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.grids import GRIDS
from fm_diffusers.grids.spacing import SPACINGS
from fm_diffusers.paths import PATHS
from fm_diffusers.paths.base import is_number
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS
from fm_diffusers.scheduling.noise import NOISES
from fm_diffusers.solvers import SOLVERS

#: The most timesteps of a training: float32, in which networks are fed, tells no more apart with
#: room between them, and the table of the training holds a row for each.
MOST_TRAIN_TIMESTEPS = 1_000_000


class Rule(NamedTuple):
    """What a value must be, in words and as a function."""

    what: str
    holds: Callable[[Any], bool]

    def or_none(self) -> "Rule":
        """Return the same rule, with None allowed."""
        return Rule(f"{self.what}, or None", lambda value: value is None or self.holds(value))


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number that JSON can hold, so none of numpy's own types."""
    return is_number(value) and isinstance(value, int | float) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return is_finite(value) and isinstance(value, int)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_finite, value))


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    number = is_number(value) and isinstance(value, int | float) and not math.isnan(value)
    return value is None or number or isinstance(value, str | bool)


def _is_calibration(value: Any) -> bool:
    return (
        _is_json(value)
        and isinstance(value, dict)
        and isinstance(value.get("for"), dict)
        and isinstance(value.get("steps"), dict)
        and all(_is_fitted(n, fit) for n, fit in value["steps"].items())
    )


def fitted_rows(fit: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Return the fitted rows of an entry of a calibration; a `readout` is the last row alone."""
    return tuple(map(tuple, fit["rows"] if "rows" in fit else [fit["readout"]]))


def _is_fitted(n: str, fit: Any) -> bool:
    """Whether an entry of a calibration fits its number of steps."""
    if not n.isdecimal() or not isinstance(fit, dict) or not isinstance(fit.get("method"), dict):
        return False
    log_snr: Any = fit.get("log_snr")
    rows = fit.get("rows", [fit.get("readout")])
    if ("rows" in fit) == ("readout" in fit) or not isinstance(rows, list | tuple) or not rows:
        return False
    if not all(map(_is_numbers, (log_snr, *rows))):
        return False
    rising = all(a < b for a, b in zip(log_snr, log_snr[1:], strict=False))
    # of the last steps, down to the first, which combines the sample and one slope
    sizes = list(range(max(2, int(n) + 2 - len(rows)), int(n) + 2))
    return rising and len(log_snr) == int(n) - 1 and list(map(len, rows)) == sizes


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: is_finite(value) and low <= value <= high


FINITE = Rule("a finite number", is_finite)
POSITIVE = Rule("positive and finite", lambda value: is_finite(value) and value > 0)
COUNT = Rule("an integer of at least 1", lambda value: _is_integer(value) and value >= 1)
BOOL = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a string", lambda value: isinstance(value, str))
PARAMETERS = Rule(
    "a dictionary of parameters by name, of values that JSON can hold, with integers of 64 bits "
    "and no NaN",
    lambda value: isinstance(value, dict) and _is_json(value),
).or_none()


def _one_of(names: tuple[str, ...]) -> Rule:
    return Rule(
        " or ".join(map(repr, names)), lambda value: isinstance(value, str) and value in names
    )


#: Every argument of `GaussianFlowScheduler` by the rule for its value.
RULES: dict[str, Rule] = {
    "num_train_timesteps": Rule(
        f"an integer of at least 1 and at most {MOST_TRAIN_TIMESTEPS}",
        lambda value: COUNT.holds(value) and value <= MOST_TRAIN_TIMESTEPS,
    ),
    "path": TEXT,
    "path_kwargs": PARAMETERS,
    "prediction_type": TEXT,
    "solver": TEXT,
    "solver_kwargs": PARAMETERS,
    "diffusion": TEXT.or_none(),
    "diffusion_kwargs": PARAMETERS,
    "noise": TEXT,
    "grid": TEXT.or_none(),
    "grid_kwargs": PARAMETERS,
    "t_min": FINITE.or_none(),
    "t_max": FINITE.or_none(),
    "calibration": Rule(
        "what calibrate() made, {'for': {...}, 'steps': {'n': {'log_snr': n - 1 rising numbers, "
        "'method': {...}, 'rows': of the last steps, n + 1 finite numbers for the last, one fewer "
        "for each before it}}}",
        _is_calibration,
    ).or_none(),
    "sampling_path": TEXT.or_none(),
    "sampling_path_kwargs": PARAMETERS,
    "time_convention": TEXT,
    "shift": POSITIVE,
    "use_dynamic_shifting": BOOL,
    "base_shift": FINITE.or_none(),
    "max_shift": FINITE.or_none(),
    "base_image_seq_len": COUNT.or_none(),
    "max_image_seq_len": COUNT.or_none(),
    "shift_terminal": Rule(
        "a noise level from 0 to below 1", lambda value: _within(0, 1)(value) and value < 1
    ).or_none(),
    "time_shift_type": _one_of(("exponential", "linear")),
    "invert_sigmas": BOOL,
    "use_karras_sigmas": BOOL,
    "use_exponential_sigmas": BOOL,
    "use_beta_sigmas": BOOL,
    "sigma_min": POSITIVE.or_none(),
    "sigma_max": POSITIVE.or_none(),
    "beta_start": FINITE,
    "beta_end": FINITE,
    "beta_schedule": TEXT,
    "trained_betas": Rule(
        "a list of finite numbers",
        lambda value: _is_numbers(value.tolist() if isinstance(value, np.ndarray) else value),
    ).or_none(),
    "rescale_betas_zero_snr": BOOL,
    "snr_shift_scale": POSITIVE,
    "timestep_spacing": _one_of(SPACINGS),
    "steps_offset": Rule(
        "an integer of at least 0", lambda value: _is_integer(value) and value >= 0
    ),
    "variance_type": TEXT.or_none(),
    "clip_sample": BOOL,
    "clip_sample_range": POSITIVE,
    "thresholding": BOOL,
    "dynamic_thresholding_ratio": Rule("a number from 0 to 1", _within(0, 1)),
    "sample_max_value": POSITIVE,
    "carry_rounding": BOOL,
}

#: Arguments that are names in a table, and what the table holds.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "path": ("path", PATHS),
    "sampling_path": ("path", PATHS),
    "prediction_type": ("prediction type", PREDICTIONS),
    "solver": ("solver", SOLVERS),
    "diffusion": ("diffusion", DIFFUSIONS),
    "noise": ("noise", NOISES),
    "grid": ("grid", GRIDS),
    "time_convention": ("time_convention", TIME_CONVENTIONS),
}
