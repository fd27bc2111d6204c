"""Checks of a configuration: a rule for every argument, and what arguments say of one another.

A configuration is read once, when a scheduler is made. Whatever it cannot mean raises then, by the
name of the argument, its value, the rule and the way out: not in the middle of a run, and not when
it is saved, for which every value must be one that JSON can hold.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.grids import GRIDS, RESPACINGS
from fm_diffusers.grids.spacing import FIXED_STARTS, SPACINGS
from fm_diffusers.paths import PATHS
from fm_diffusers.paths.base import is_number
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS
from fm_diffusers.solvers import SOLVERS
from fm_diffusers.tables import look_up

#: The most timesteps of a training: float32, in which networks are fed, tells no more apart with
#: room between them, and the table of the training holds a row for each.
MOST_TRAIN_TIMESTEPS = 1_000_000

#: The most steps of a run: the weights of each are computed before the first.
MOST_STEPS = 100_000


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


def _is_fitted(n: str, fit: Any) -> bool:
    """Whether an entry of a calibration fits its number of steps."""
    if not n.isdecimal() or not isinstance(fit, dict) or not isinstance(fit.get("method"), dict):
        return False
    log_snr, readout = fit.get("log_snr"), fit.get("readout")
    if not _is_numbers(log_snr) or not _is_numbers(readout):
        return False
    rising = all(a < b for a, b in zip(log_snr, log_snr[1:], strict=False))
    return rising and (len(log_snr), len(readout)) == (int(n) - 1, int(n) + 1)


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: is_finite(value) and low <= value <= high


FINITE = Rule("a finite number", is_finite)
POSITIVE = Rule("positive and finite", lambda value: is_finite(value) and value > 0)
COUNT = Rule("an integer of at least 1", lambda value: _is_integer(value) and value >= 1)
BOOL = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a string", lambda value: isinstance(value, str))
PARAMETERS = Rule(
    "a dictionary of parameters by name, of values that JSON can hold and that are no NaN",
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
    "grid": TEXT.or_none(),
    "grid_kwargs": PARAMETERS,
    "t_min": FINITE.or_none(),
    "t_max": FINITE.or_none(),
    "calibration": Rule(
        "what calibrate() made, {'for': {...}, 'steps': {'n': {'log_snr': n - 1 rising numbers, "
        "'method': {...}, 'readout': n + 1 finite numbers}}}",
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
    "grid": ("grid", GRIDS),
    "time_convention": ("time_convention", TIME_CONVENTIONS),
}


def check(config: Mapping[str, Any]) -> None:
    """Raise for values of a configuration that have no meaning, alone or together.

    Args:
        config: arguments of `GaussianFlowScheduler` by name; other names are passed over, missing
            ones keep their defaults.

    Raises:
        ValueError: naming the argument, its value, the rule and the way out.
    """
    for name, rule in RULES.items():
        if name in config and not rule.holds(config[name]):
            value = config[name]
            raise ValueError(
                f"{name} must be {rule.what}, got {reprlib.repr(value)}: {_way_out(value)}"
            )
    for name, (kind, table) in NAMES.items():
        if config.get(name) is not None:
            look_up(kind, table, config[name])
    _check_ends(config)
    _check_noise_levels(config)


def _way_out(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return "pass value.tolist(), the same in numbers that JSON can hold"
    if isinstance(value, str):
        return "write it without quotes, or leave it out for its default"
    return "leave it out for its default"


def _check_ends(c: Mapping[str, Any]) -> None:
    t_min, t_max, grid = c.get("t_min"), c.get("t_max"), c.get("grid")
    if not 0 <= (t_min or 0) < (1 if t_max is None else t_max) <= 1:
        raise ValueError(
            f"0 <= t_min < t_max <= 1 must hold, got {t_min} and {t_max}: 0 is noise, 1 is data"
        )
    if t_min is not None and grid in FIXED_STARTS:
        raise ValueError(
            f"grid={grid!r} starts where diffusers' schedulers do, t_min={t_min} would have no "
            "effect: leave it out, or take a grid in continuous time such as grid=None"
        )
    if c.get("sampling_path_kwargs") and c.get("sampling_path") is None:
        raise ValueError(
            f"sampling_path_kwargs={c['sampling_path_kwargs']} are parameters of no path: pass "
            "sampling_path too, or path_kwargs"
        )


def _check_noise_levels(c: Mapping[str, Any]) -> None:
    if c.get("invert_sigmas") and c.get("time_convention") != "ascending":
        raise ValueError(
            "with invert_sigmas the network is fed t: pass time_convention='ascending', "
            f"got {c.get('time_convention')!r}"
        )
    kinds = [kind for kind in RESPACINGS if c.get(f"use_{kind}_sigmas")]
    if len(kinds) > 1:
        raise ValueError(
            f"only one of {RESPACINGS} sigmas can be used, got {kinds}: leave one of them on"
        )
    low, high = c.get("sigma_min"), c.get("sigma_max")
    if kinds and low is not None and high is not None and not low < high:
        raise ValueError(
            f"sigma_min must be smaller than sigma_max, got {low} and {high}: they are the last "
            f"and the first noise level of use_{kinds[0]}_sigmas"
        )
    lengths = c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096)
    if c.get("use_dynamic_shifting") and lengths[0] is not None and lengths[0] == lengths[1]:
        raise ValueError(
            f"base_image_seq_len and max_image_seq_len must differ, got {lengths[0]} for both: "
            "pipelines draw a line between base_shift at the one and max_shift at the other"
        )


def check_steps(num_inference_steps: Any) -> int:
    """Return the number of steps of a run.

    Raises:
        ValueError: unless it is an integer from 1 to `MOST_STEPS`.
    """
    n = num_inference_steps
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(
            f"num_inference_steps must be an integer of at least 1, got {n!r}; or give sigmas or "
            "timesteps"
        )
    if n > MOST_STEPS:
        raise ValueError(
            f"num_inference_steps must be at most {MOST_STEPS}, got {n}: the weights of every "
            "step are computed before the first; solvers have converged with a few hundred"
        )
    return int(n)


def check_fed(timesteps: Tensor) -> None:
    """Raise unless what a network is fed where steps start is finite and distinct.

    Args:
        timesteps: in float32, as the network is fed, at the starts of a run in their order.

    Raises:
        ValueError: naming the first that is not, and the way out.
    """
    if not timesteps.isfinite().all():
        place = int((~timesteps.isfinite()).nonzero()[0])
        raise ValueError(
            f"timesteps[{place}] would be {timesteps[place].item()}, and a network is fed finite "
            "numbers: set t_min (t = 0 is noise) to begin where its time_convention has one"
        )
    length = timesteps.diff()
    if not ((length < 0).all() or (length > 0).all()):
        first = length[0] if len(length) and length[0] != 0 else length.new_tensor(-1.0)
        place = int((length.sign() != first.sign()).nonzero()[0])
        raise ValueError(
            f"timesteps {place} and {place + 1} of {len(timesteps)} would be "
            f"{timesteps[place].item()} and {timesteps[place + 1].item()} in float32, in which "
            "networks are fed: starts of steps must be distinct; take fewer steps, a milder shift "
            "or grid, or ends t_min and t_max further inside"
        )
