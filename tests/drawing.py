"""Strategies for what a scheduler is told, derived from its signature, its rules and its tables.

A row that is added to a table is drawn by itself, with the parameters of its signature. Sane
values lie around a default, wild ones are of every size and type, right or wrong.
"""

import inspect
import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.grids import GRIDS
from fm_diffusers.grids.named import ALIGNED
from fm_diffusers.grids.spacing import SPACINGS
from fm_diffusers.paths import BETA_SCHEDULES, PATHS
from fm_diffusers.paths.interpolants import BASES
from fm_diffusers.scheduling.parts import CONFIGURED
from fm_diffusers.scheduling.rules import NAMES
from fm_diffusers.solvers import FORMS, RULES, SOLVERS, VARIABLES

#: The arguments of the constructor by their defaults.
ARGUMENTS = {
    name: parameter.default
    for name, parameter in inspect.signature(GaussianFlowScheduler.__init__).parameters.items()
    if name != "self"
}

#: Values of every size and type; numbers that a file can hold come first.
NUMBERS = [0, 1, 2, 3, -1, 0.5, 0.999, -0.5, 1e-3, 1e3, 1e-8, 1e8, 1e-300, 5e-324, 1e300, -1e300]
NUMBERS += [1.7e308, 10**30, 10**400, -(10**400), math.nan, math.inf, -math.inf, True, False]
JSON = [*NUMBERS, None, "", "3", "nan", "linear", "false", [], [1.0], [0.5, "a"], {}, {"scale": 2}]
WILD = [
    *JSON,
    *(np.float64(2.0), np.float64(math.nan), np.float32(0.5), np.int64(3), np.bool_(True)),
    *(
        np.ones(3),
        np.ones((2, 2)),
        torch.tensor(2.0),
        torch.ones(3),
        torch.tensor([]),
        torch.float,
    ),
    *((0.1, 0.2), {1: 2}, {"scale": math.nan}, len, object, b"linear", 1j, {3}, range(3)),
]

#: Parameters that are words, and those that are None by default, by what they may be.
WORDS = {
    "form": list(FORMS),
    "variable": list(VARIABLES),
    "solver_type": list(RULES),
    "clock": ["time", "snr"],
    "beta_schedule": list(BETA_SCHEDULES),
    "base": list(BASES),
    "table": list(ALIGNED),
    "timestep_spacing": list(SPACINGS),
    "time_shift_type": ["exponential", "linear"],
    "variance_type": [None, "fixed_small", "learned"],
}
OPEN = {
    "corrector": [True, False, None],
    "lower_order_final": [True, False, None],
    "fitted": [True, False, None],
    "sigma_min": [None, 0.002, 0.02],
    "sigma_max": [None, 30.0, 80.0],
    "first": [None, 0.999, 1.0],
    "t_min": [None, 0, 0.01, 0.2],
    "t_max": [None, 1, 0.98, 0.8],
    "shift_terminal": [None, 0, 0.02, 0.1],
    "trained_betas": [None],
    "calibration": [None],
    "solver_order": [1, 2, 3, 4],
    "num_train_timesteps": [1000, 1000, 50, 10, 3, 1],
    "steps_offset": [0, 1],
    "dynamic_thresholding_ratio": [0, 0.5, 0.995, 1],
    "degree": [1, 1.5, 2.0, 3.0],
    "strength": [None, 0.0, 0.1, 0.5, 0.9, 1.0, 2.0],
    "last": [0.0, 0.001, 0.002],
}
#: Where these words stand in both: solvers and grids that are given a tableau or a table.
MADE = {"tableau", "path", "prediction", "diffusion", "model_path", "n"}

#: Arguments of the constructor whose parameters are those of a row.
ROWS = {
    "path_kwargs": ("path", PATHS),
    "sampling_path_kwargs": ("sampling_path", PATHS),
    "solver_kwargs": ("solver", SOLVERS),
    "diffusion_kwargs": ("diffusion", DIFFUSIONS),
    "grid_kwargs": ("grid", GRIDS),
}


def around(name, default):
    """Return the sane values of an argument or a parameter, by its name and its default."""
    if name in WORDS or name in OPEN:
        return {**OPEN, **WORDS}[name]
    if isinstance(default, bool):
        return [default, True, False]
    if isinstance(default, int | float):
        return [default, *((default * f for f in (0.5, 0.8, 1.25, 2.0)) if default else (0.3,))]
    raise LookupError(
        f"no sane values of {name!r}, {default!r} by default, are known: add them to tests/"
        "drawing.py, OPEN or WORDS"
    )


def parameters_of(argument, name):
    """Return the parameters of a row by their defaults, as `argument` may give them."""
    if argument == "diffusion_kwargs":
        return {"scale": 1.0}
    row = GRIDS["logistic"] if name is None else ROWS[argument][1][name]
    given = MADE | ({"t_min", "t_max"} if argument == "grid_kwargs" else set())
    if name in CONFIGURED:
        given = given | set(ARGUMENTS)
    return {
        p.name: p.default
        for p in inspect.signature(row).parameters.values()
        if p.name not in given and p.kind is not p.VAR_KEYWORD
    }


@st.composite
def parameters(draw, argument, name, wild=False):
    """Draw parameters of a row, most often few of them."""
    known, strength = parameters_of(argument, name), argument == "diffusion_kwargs"
    chosen = [p for p in known if draw(st.booleans())]
    values = {
        p: draw(st.sampled_from(around("strength" if strength else p, known[p]))) for p in chosen
    }
    if wild and known:
        values[draw(st.sampled_from(sorted(known)))] = draw(st.sampled_from(JSON))
    return values or None


#: What decides most, and what may be said beside it.
MAIN = {"path": 1, "prediction_type": 1, "solver": 1, "diffusion": 0.6, "grid": 0.7}
SELDOM = {"sampling_path": 0.25, "time_convention": 0.3, "noise": 0.05}
OTHERS = [name for name in ARGUMENTS if name not in ROWS and name not in MAIN | SELDOM]

PERCENT = st.integers(0, 99)


@st.composite
def configurations(draw, without=(), most=3):
    """Draw a configuration of sane values; they need not go together."""
    config = {}
    for name, share in (MAIN | SELDOM).items():
        if name not in without and draw(PERCENT) < 100 * share:
            config[name] = draw(st.sampled_from(list(NAMES[name][1])))
    for argument, (name, _) in ROWS.items():
        absent = name not in config and name not in ("solver", "grid")
        if absent or argument in without or draw(st.booleans()):
            continue
        row = config.get(name, ARGUMENTS[name])
        if found := draw(parameters(argument, row)):
            config[argument] = found
    others = [name for name in OTHERS if name not in without]
    for name in draw(st.lists(st.sampled_from(others), max_size=most, unique=True)):
        config[name] = draw(st.sampled_from(around(name, ARGUMENTS[name])))
    if config.get("invert_sigmas"):
        config["time_convention"] = "ascending"
    return config


@st.composite
def wild_configurations(draw):
    """Draw a configuration with values, or parameters, of any size and type, most often one."""
    config = draw(configurations(most=1))
    for argument in draw(st.lists(st.sampled_from(list(ARGUMENTS)), min_size=1, max_size=3)):
        if argument not in ROWS or draw(PERCENT) < 10:
            config[argument] = draw(st.sampled_from(NUMBERS if draw(st.booleans()) else WILD))
            continue
        key, table = ROWS[argument]
        name = config.get(key, ARGUMENTS[key])
        if argument != "grid_kwargs" and (not isinstance(name, str) or name not in table):
            name = config[key] = draw(st.sampled_from(list(table)))
        elif not isinstance(name, str) or name not in table:
            name = None
        config[argument] = draw(parameters(argument, name, wild=True))
    return config


def cases(*strategies, fast, slow, shards=4, **named):
    """Make a property a test of so many cases, and `shards` slow ones of `slow` more together.

    The cases follow from the number of the shard alone, so that they are the same everywhere.
    """

    def wrap(check):
        slow_ones = [
            pytest.param(i + 1, slow // shards, id=f"slow-{i + 1}", marks=pytest.mark.slow)
            for i in range(shards)
        ]

        @pytest.mark.parametrize(
            ("shard", "count"), [pytest.param(0, fast, id="fast"), *slow_ones]
        )
        def test(shard, count):
            few = settings(
                max_examples=count,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            hypothesis.seed(shard)(few(hypothesis.given(*strategies, **named)(check)))()

        test.__name__, test.__doc__, test.__module__ = (
            check.__name__,
            check.__doc__,
            check.__module__,
        )
        test.property = strategies, named, check
        return test

    return wrap
