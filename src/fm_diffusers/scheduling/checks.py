"""Checks of a configuration: its values one by one, and what they say of one another.

A configuration is read once, when a scheduler is made. Whatever it cannot mean raises then, by the
name of the argument, its value, the rule and the way out: not in the middle of a run, and not when
it is saved.
"""

import reprlib
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.grids import RESPACINGS
from fm_diffusers.grids.spacing import FIXED_STARTS
from fm_diffusers.paths.base import LARGEST_INTEGER
from fm_diffusers.scheduling.rules import NAMES, RULES
from fm_diffusers.tables import look_up

#: The most steps of a run: the weights of each are computed before the first.
MOST_STEPS = 100_000


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
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "integers have 64 bits, write it as 1e30 or leave it out for its default"
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
    if int(n) > MOST_STEPS:
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


def check_samples(**values: Tensor) -> None:
    """Raise a `ValueError` for what is no tensor of floating-point numbers."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a tensor of floating-point numbers, got "
                f"{value.dtype if isinstance(value, Tensor) else type(value).__name__}: pass what "
                "the network takes and returns"
            )


def check_return_dict(return_dict: Any) -> None:
    """Raise a `ValueError` for what is neither True nor False."""
    if not isinstance(return_dict, bool):
        raise ValueError(
            f"return_dict must be True or False, got {reprlib.repr(return_dict)}: leave it out "
            "for an output with names"
        )


def check_one_shape(**values: Tensor) -> None:
    """Raise a `ValueError` for tensors of unequal shapes, which torch would broadcast."""
    shapes = [tuple(value.shape) for value in values.values()]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{' and '.join(values)} must have one shape, got {' and '.join(map(str, shapes))}: "
            "give them for the same samples"
        )


def as_numbers(
    name: str, given: Any, what: str = "a number, a list of numbers or a tensor"
) -> Tensor:
    """Return numbers as a tensor; `what` they must be is for the message.

    Raises:
        ValueError: for what is none, complex numbers included.
    """
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = None
    if values is None or values.is_complex():
        raise ValueError(
            f"{name} must be {what}, got {reprlib.repr(given)}: give those of the scheduler, or "
            "others between them"
        )
    return values
