"""Checks of a configuration."""

import math
from typing import Any

from fm_diffusers.grids import RESPACINGS
from fm_diffusers.predictions import check_prediction
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS
from fm_diffusers.scheduling.parts import CONFIGURED
from fm_diffusers.tables import look_up


def check(config: Any) -> None:
    """Raise a `ValueError` for values that contradict each other."""
    c = config
    if not 0 <= (c.t_min or 0) < (1 if c.t_max is None else c.t_max) <= 1:
        raise ValueError(f"0 <= t_min < t_max <= 1 must hold, got {c.t_min} and {c.t_max}")
    if c.t_min is not None and c.grid in CONFIGURED:
        raise ValueError(
            f"grid={c.grid!r} starts where diffusers' schedulers do, t_min={c.t_min} would "
            "have no effect: leave it out, or take a grid in continuous time such as grid=None"
        )
    if c.num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {c.num_train_timesteps}")
    check_prediction(c.prediction_type)
    look_up("time_convention", TIME_CONVENTIONS, c.time_convention)
    if not 0 < c.shift < math.inf:
        raise ValueError(f"shift must be positive and finite, got {c.shift}")
    if c.time_shift_type not in ("exponential", "linear"):
        raise ValueError(
            f"time_shift_type must be 'exponential' or 'linear', got {c.time_shift_type!r}"
        )
    if c.invert_sigmas and c.time_convention != "ascending":
        raise ValueError(
            "with invert_sigmas the network is fed t: pass time_convention='ascending', "
            f"got {c.time_convention!r}"
        )
    if sum(c[f"use_{kind}_sigmas"] for kind in RESPACINGS) > 1:
        raise ValueError(f"only one of {RESPACINGS} sigmas can be used")
