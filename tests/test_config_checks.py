"""Every argument of a configuration by its rule: what it cannot mean raises when it is read."""

import inspect
import json
import math
import re

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.scheduling.checks import MOST_STEPS, check, check_fed, check_steps
from fm_diffusers.scheduling.rules import MOST_TRAIN_TIMESTEPS, NAMES, RULES

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(GaussianFlowScheduler.__init__).parameters.items()
    if name != "self"
}
FIT = {"log_snr": [-1.0, 1.0], "method": {"solver_order": 2}, "readout": [1.0, 0.5, 0.1, 0.2]}
CALIBRATION = {"for": {"solver": "unipc"}, "steps": {"3": FIT}}

#: Values that an argument may have beside its default.
RIGHT = {
    "num_train_timesteps": [1, 1000, MOST_TRAIN_TIMESTEPS],
    "path_kwargs": [{}, {"degree": 3}, {"degree": math.inf}, {"a": [1, "b", None], "c": {"d": 1}}],
    "solver_kwargs": [{"solver_order": 1, "corrector": None}],
    "diffusion": ["memoryless", None],
    "diffusion_kwargs": [{"scale": 0.5}],
    "grid": ["karras", None],
    "grid_kwargs": [{"shift": np.float64(3.0)}],
    "t_min": [0, 0.1],
    "t_max": [1, 0.9],
    "calibration": [None, {"for": {}, "steps": {}}, CALIBRATION],
    "sampling_path": ["cosine"],
    "shift": [3, 0.1, np.float64(2.0)],
    "base_shift": [None, 0, 1],
    "shift_terminal": [0, 0.1, None],
    "time_shift_type": ["linear"],
    "sigma_min": [0.1, None],
    "trained_betas": [[0.1, 0.2], (0.1, 0.2), np.linspace(0.1, 0.2, 3), [1, 2]],
    "steps_offset": [0, 1],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "variance_type": ["learned", None],
    "dynamic_thresholding_ratio": [0, 1, 0.5],
    "clip_sample": [True, False],
}

#: Values of the types that people and files give, of which no argument can take all.
FOREIGN = [
    "3",
    "false",
    "karras",
    True,
    0,
    1,
    -1,
    1.5,
    1e9,
    math.nan,
    math.inf,
    -math.inf,
    None,
    [],
    [1.0, "2"],
    [math.nan],
    (0.1, 0.2),
    {},
    {"scale": "3"},
    {"scale": math.nan},
    {"scale": np.float32(1)},
    {"scale": [torch.ones(1)]},
    {1: 2},
    {"for": {}, "steps": {"2": None}},
    np.float32(0.5),
    np.int64(3),
    np.bool_(True),
    np.ones(3),
    torch.tensor(2.0),
    torch.ones(3),
    torch.float32,
    len,
    object(),
    b"linear",
    1j,
]


def config(**values):
    return FrozenDict(DEFAULTS | values)


def test_every_argument_has_a_rule_and_every_default_keeps_it():
    assert DEFAULTS.keys() <= RULES.keys()
    assert NAMES.keys() <= RULES.keys()
    check(config())
    check({})


@pytest.mark.parametrize("name", RIGHT)
def test_right_values_pass(name):
    assert name in RULES
    for value in RIGHT[name]:
        check(config(**{name: value}))


@pytest.mark.parametrize("name", RULES)
def test_what_passes_can_be_saved_and_the_rest_is_named(name):
    refused = 0
    for value in FOREIGN:
        try:
            check(config(**{name: value}))
        except ValueError as error:
            refused += 1
            assert name in str(error) or f"unknown {NAMES[name][0]} " in str(error)
        else:
            saved = value.tolist() if isinstance(value, np.ndarray) else value
            assert "NaN" not in json.dumps(saved)
    assert refused >= len(FOREIGN) - 12


BOOLS = [name for name, default in DEFAULTS.items() if isinstance(default, bool)]
NUMBERS = [
    name
    for name, default in DEFAULTS.items()
    if isinstance(default, int | float) and name not in BOOLS
]


@pytest.mark.parametrize("name", BOOLS)
@pytest.mark.parametrize("value", ["false", "true", 0, 1, None, np.bool_(False)])
def test_truth_values_are_truth_values(name, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False, got "):
        check(config(**{name: value}))


@pytest.mark.parametrize("name", [*NUMBERS, "t_min", "t_max", "shift_terminal", "sigma_max"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1.0", True, [1.0], 1e400])
def test_numbers_are_finite_numbers(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {re.escape(repr(value))}: "):
        check(config(**{name: value}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_train_timesteps": 10**8}, r"at least 1 and at most 1000000, got 100000000: leave"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps must be an integer of at least 1"),
        ({"num_train_timesteps": 1000.0}, r"must be an integer .*, got 1000.0"),
        ({"clip_sample": "false"}, r"True or False, got 'false': write it without quotes"),
        ({"clip_sample_range": -1}, r"clip_sample_range must be positive and finite, got -1"),
        ({"snr_shift_scale": 0}, r"snr_shift_scale must be positive and finite, got 0"),
        ({"sample_max_value": -1.0}, r"sample_max_value must be positive and finite, got -1.0"),
        ({"dynamic_thresholding_ratio": 1.1}, r"must be a number from 0 to 1, got 1.1"),
        (
            {"shift": 10**30},
            r"positive and finite, got 1000.*: integers have 64 bits, write it as",
        ),
        ({"t_min": 10**400}, r"a finite number, or None, got 1000.*: integers have 64 bits"),
        ({"shift": -3.0}, r"shift must be positive and finite, got -3.0"),
        ({"shift": torch.tensor(3.0)}, r"got tensor\(3.\): pass value.tolist\(\), the same"),
        ({"shift": np.float32(3)}, r"positive and finite, got .*: pass value.tolist\(\)"),
        ({"shift_terminal": 1.5}, r"shift_terminal must be a noise level from 0 to below 1"),
        ({"shift_terminal": -0.1}, r"shift_terminal must be a noise level from 0 to below 1"),
        ({"steps_offset": -1}, r"steps_offset must be an integer of at least 0, got -1"),
        ({"trained_betas": torch.ones(2)}, r"a list of finite numbers, or None, got tensor"),
        ({"trained_betas": ["a"]}, r"trained_betas must be a list of finite numbers"),
        ({"path": "geodesic"}, r"unknown path 'geodesic': choose one of linear, cosine"),
        ({"path": ["linear"]}, r"path must be a string, got \['linear'\]"),
        ({"sampling_path": "geodesic"}, r"unknown path 'geodesic'"),
        ({"solver": None}, r"solver must be a string, got None: leave it out for its default"),
        ({"solver": "rk5"}, r"unknown solver 'rk5': choose one of euler, midpoint"),
        ({"grid": "grid"}, r"unknown grid 'grid': choose one of uniform"),
        ({"diffusion": "loud"}, r"unknown diffusion 'loud': choose one of constant"),
        ({"prediction_type": "x0"}, r"unknown prediction type 'x0': choose one of velocity"),
        ({"time_convention": "up"}, r"unknown time_convention 'up': choose one of descending"),
        ({"time_shift_type": "log"}, r"must be 'exponential' or 'linear', got 'log'"),
        ({"timestep_spacing": "karras"}, r"must be 'leading' or 'linspace' or 'trailing', got"),
        (
            {"grid_kwargs": [3]},
            r"grid_kwargs must be a dictionary of parameters by name, .* \[3\]",
        ),
        ({"grid_kwargs": {"shift": len}}, r"grid_kwargs must be .* of values that JSON can hold"),
        ({"path_kwargs": {"degree": math.nan}}, r"path_kwargs must be .* no NaN, or None, got"),
        ({"t_min": 0.8, "t_max": 0.2}, r"0 <= t_min < t_max <= 1 must hold, got 0.8 and 0.2"),
        ({"t_max": 1.5}, r"0 <= t_min < t_max <= 1 must hold, got None and 1.5"),
        ({"t_min": 0.1, "grid": "ddim"}, r"t_min=0.1 would have no effect: leave it out"),
        (
            {"sampling_path_kwargs": {"sigma_max": 3.0}},
            r"parameters of no path: pass sampling_path",
        ),
        ({"invert_sigmas": True}, r"pass time_convention='ascending', got 'descending'"),
        (
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            r"only one of .*, got \['karras', 'beta'\]: leave one of them on",
        ),
        (
            {"use_karras_sigmas": True, "sigma_min": 2.0, "sigma_max": 1.0},
            r"sigma_min must be smaller than sigma_max, got 2.0 and 1.0: .* use_karras_sigmas",
        ),
        (
            {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 256},
            r"must differ, got 256 for both: pipelines draw a line",
        ),
    ],
)
def test_what_a_configuration_cannot_mean_says_why(values, message):
    with pytest.raises(ValueError, match=message):
        check(config(**values))


@pytest.mark.parametrize(
    "wrong",
    [
        {"readout": [1.0, math.nan, 0.1, 0.2]},
        {"readout": [1.0, 0.5, 0.1]},
        {"readout": None},
        {"rows": [[1.0, 0.5, 0.1, 0.2]]},
        {"log_snr": [1.0, -1.0]},
        {"log_snr": [math.inf, 1.0]},
        {"log_snr": [0.5]},
        {"method": None},
    ],
)
def test_a_calibration_is_finite_and_fits_its_number_of_steps(wrong):
    check(config(calibration=CALIBRATION))
    with pytest.raises(ValueError, match=r"calibration must be what calibrate\(\) made"):
        check(config(calibration={"for": {}, "steps": {"3": FIT | wrong}}))


def test_numbers_of_steps_are_counts_with_a_bound():
    assert [check_steps(n) for n in (1, np.int64(50), MOST_STEPS)] == [1, 50, MOST_STEPS]
    for wrong in (0, -3, None, True, 2.0, "5", math.nan):
        with pytest.raises(ValueError, match=r"must be an integer of at least 1, got .*; or give"):
            check_steps(wrong)
    with pytest.raises(ValueError, match=r"at most 100000, got 1000000000: the weights of every"):
        check_steps(10**9)


def test_what_a_network_is_fed_is_finite_and_distinct():
    for right in ([1000.0, 500.0, 1.0], [0.1, 0.2], [5.0]):
        check_fed(torch.tensor(right))
    for wrong, message in (
        ([1000.0, 1000.0, 1.0], r"timesteps 0 and 1 of 3 would be 1000.0 and 1000.0 in float32"),
        ([1000.0, 999.0, 999.0], r"timesteps 1 and 2 of 3 .* take fewer steps, a milder shift"),
        ([1.0, 2.0, 1.5], r"timesteps 1 and 2 of 3"),
        ([math.inf, 3.0], r"timesteps\[0\] would be inf, .* set t_min"),
        ([3.0, math.nan], r"timesteps\[1\] would be nan"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fed(torch.tensor(wrong))


ROWS = [[1.0, 0.3], [0.9, 0.4, 0.1], [1.0, 0.5, 0.1, 0.2]]


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:], ROWS[2:]])
def test_a_calibration_may_fit_the_last_steps_or_all(rows):
    fit = {"log_snr": FIT["log_snr"], "method": {}, "rows": rows}
    check(config(calibration={"for": {}, "steps": {"3": fit}}))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        None,
        3.0,
        "rows",
        [None],
        [[1.0, 0.5]],
        ROWS[:2],
        ROWS[::-1],
        [[1.0], *ROWS],
        [*ROWS[:2], [1.0, 0.5, 0.1, math.inf]],
        {"0": 1.0},
    ],
)
def test_rows_of_a_calibration_are_those_of_the_last_steps(rows):
    fit = {"log_snr": FIT["log_snr"], "method": {}, "rows": rows}
    with pytest.raises(ValueError, match=r"calibration must be what calibrate\(\) made"):
        check(config(calibration={"for": {}, "steps": {"3": fit}}))
