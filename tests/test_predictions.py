import itertools
import math
from functools import partial

import pytest
import torch
from covers import each
from oracles import mixture

from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import PREDICTIONS, conversion, convert, target

PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))
TIMES = [0.0, 1e-3, 0.3, 0.8, 0.999, 1.0]

NOISE, FLOW = {"epsilon", "score"}, {"velocity", "flow_prediction", "edm"}
OTHERS = set(PREDICTIONS) - NOISE
# What cannot be known: noise tells nothing of the data where there is no data in the sample, data
# nothing of the noise where there is none, and no score is finite there. The velocity of the
# polynomial path vanishes at t = 0; that of the VP path is infinite at t = 1.
WITHOUT_DATA = {(a, b) for a in NOISE for b in OTHERS}
WITHOUT_NOISE = {("sample", b) for b in PREDICTIONS if b != "sample"} | {
    (a, "score") for a in PREDICTIONS if a != "score"
}
IMPOSSIBLE = {
    ("linear", 0.0): WITHOUT_DATA,
    ("cosine", 0.0): WITHOUT_DATA,
    ("interpolant", 0.0): WITHOUT_DATA,
    ("polynomial", 0.0): {(a, b) for a in NOISE | FLOW for b in ("sample", "v_prediction")},
    **{
        (name, 1.0): WITHOUT_NOISE
        for name in ("linear", "cosine", "polynomial", "noise_level", "discrete", "interpolant")
    },
    ("variance_preserving", 1.0): WITHOUT_NOISE
    | {(a, b) for a in PREDICTIONS if a not in FLOW for b in FLOW},
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", TIMES)
def test_conversions_of_exact_fields_agree_and_exist_wherever_they_can(name, t):
    path, data = PATHS[name](), mixture()
    x = 2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fields = {kind: data.field(path, kind)(x, t) for kind in PREDICTIONS}
    impossible = set()
    for source, goal in PAIRS:
        coefficients = conversion(path, source, goal, t)
        if not all(map(math.isfinite, coefficients)):
            impossible.add((source, goal))
            continue
        error = convert(path, source, goal, x, fields[source], t) - fields[goal]
        scale = max(1, fields[goal].abs().max(), abs(coefficients[1]) * fields[source].abs().max())
        assert error.abs().max() <= 1e-9 * scale, (source, goal)
    assert impossible == IMPOSSIBLE.get((name, t), set())


@pytest.mark.parametrize("name", PATHS)
@each(("source", "goal"), PAIRS)
def test_conversions_there_and_back_are_the_identity(name, source, goal):
    path, t = PATHS[name](), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    x, q = torch.randn(2, 19, 2, generator=torch.Generator().manual_seed(0)).double()
    there = convert(path, source, goal, x, q, t)
    back = convert(path, goal, source, x, there, t)
    torch.testing.assert_close(back, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
@each(("source", "goal"), PAIRS)
def test_conversions_carry_conditional_targets_into_each_other(name, source, goal):
    path, t = PATHS[name](), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    z, eps = torch.randn(2, 19, 2, generator=torch.Generator().manual_seed(0)).double()
    x = path.flow_map(z, eps, t)
    converted = convert(path, source, goal, x, target(path, source, z, eps, t), t)
    torch.testing.assert_close(converted, target(path, goal, z, eps, t), rtol=1e-9, atol=1e-9)


def test_targets_have_the_signs_of_the_conventions():
    z, eps, t = torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([0.25])
    values = {kind: target(Linear(), kind, z, eps, t).item() for kind in PREDICTIONS}
    assert values == {
        "velocity": 2.0,  # z - eps
        "flow_prediction": -2.0,  # eps - z, diffusers
        "sample": 3.0,
        "epsilon": 1.0,
        "score": pytest.approx(-1 / 0.75),  # -eps/beta
        "v_prediction": 0.25 * 1 - 0.75 * 3,  # alpha eps - beta z
        "edm": pytest.approx(2 / math.pi * (3 - 1)),
    }


def test_velocity_is_the_derivative_of_the_flow_map():
    z, eps, t = (torch.tensor([value], dtype=torch.float64) for value in (1.5, -0.7, 0.4))
    for make in PATHS.values():
        path = make()
        flow = torch.func.jvp(partial(path.flow_map, z, eps), (t,), (torch.ones_like(t),))[1]
        torch.testing.assert_close(target(path, "velocity", z, eps, t), flow)


def test_linear_path_formulas_of_the_literature():
    x, q, t = torch.tensor([[0.4]]).double(), torch.tensor([[-1.3]]).double(), 0.3
    score = convert(Linear(), "velocity", "score", x, q, t)
    torch.testing.assert_close(score, (t * q - x) / (1 - t))
    velocity = convert(Linear(), "score", "velocity", x, q, t)
    torch.testing.assert_close(velocity, (x + (1 - t) * q) / t)


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="unknown prediction type 'noise': choose one of velocity"
    ):
        conversion(Linear(), "noise", "velocity", 0.5)
