import math

import pytest
import torch
from covers import each
from diffusers.training_utils import compute_density_for_timestep_sampling
from oracles import mixture

from fm_diffusers.objectives import (
    TIME_SAMPLERS,
    flow_matching_loss,
    prediction_loss,
    sample_times,
    score_matching_loss,
)
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import PREDICTIONS, convert, target

GENERATOR = torch.Generator().manual_seed(0)
Z, EPS = torch.randn(2, 64, 3, generator=GENERATOR).double()
T = 0.05 + 0.9 * torch.rand(64, generator=GENERATOR).double()
OUTPUT = torch.randn(64, 3, generator=GENERATOR).double()


@pytest.mark.parametrize("name", PATHS)
@each("prediction", PREDICTIONS)
@each("on", PREDICTIONS)
def test_a_loss_on_any_kind_is_the_squared_error_of_that_kind(name, prediction, on):
    path = PATHS[name]()
    x = path.flow_map(Z, EPS, T)
    error = convert(path, prediction, on, x, OUTPUT, T) - target(path, on, Z, EPS, T)
    loss = prediction_loss(OUTPUT, path, Z, EPS, T, prediction, on)
    torch.testing.assert_close(loss, error.square().mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", PATHS)
def test_score_matching_is_flow_matching_with_a_weight(name):
    """|s - s'|^2 = (alpha/(beta D))^2 |u - u'|^2, and the weight beta^2."""
    path = PATHS[name]()
    c = path(T)
    d = c.d_alpha * c.beta - c.alpha * c.d_beta
    flow = prediction_loss(OUTPUT, path, Z, EPS, T, weight=lambda t: (c.alpha / d) ** 2).mean()
    score = score_matching_loss(OUTPUT, path, Z, EPS, T, prediction="velocity")
    torch.testing.assert_close(score, flow)


@pytest.mark.parametrize("prediction", ["score", "epsilon", "velocity", "v_prediction"])
def test_score_matching_is_bounded_at_the_data(prediction):
    t = torch.ones(64, dtype=torch.float64)
    loss = score_matching_loss(OUTPUT, Linear(), Z, EPS, t, prediction)
    assert loss < 100


def test_the_score_matching_loss_of_a_score_has_the_weight_beta_squared():
    beta = Linear().beta(T)[:, None]
    expected = (beta**2 * (OUTPUT + EPS / beta) ** 2).mean()
    torch.testing.assert_close(score_matching_loss(OUTPUT, Linear(), Z, EPS, T), expected)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "sample"])
def test_the_exact_field_minimises_the_loss(prediction):
    """Regression of conditional targets has the marginal field as its minimum."""
    data, path, t = mixture(), Linear(), 0.6
    generator = torch.Generator().manual_seed(2)
    z = data.sample(20_000, generator)
    eps = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    times = torch.full((20_000,), t, dtype=torch.float64)
    x = path.flow_map(z, eps, times)
    output = data.field(path, prediction)(x, t).requires_grad_()
    prediction_loss(output, path, z, eps, times, prediction).sum().backward()
    # the gradient is orthogonal to every function of x, here to powers of it
    for power in (0, 1, 2):
        direction = output.grad * x**power
        standard_error = direction.std(0) / math.sqrt(len(x))
        assert (direction.mean(0).abs() < 4 * standard_error).all()


def test_flow_matching_is_the_velocity_loss_with_the_weight_given():
    error = (OUTPUT - (Z - EPS)).square().mean(1)
    torch.testing.assert_close(flow_matching_loss(OUTPUT, Linear(), Z, EPS, T), error.mean())
    weighted = flow_matching_loss(OUTPUT, Linear(), Z, EPS, T, weight=lambda t: t**2)
    torch.testing.assert_close(weighted, (T**2 * error).mean())


def test_losses_of_half_precision_outputs_are_float32():
    loss = flow_matching_loss(OUTPUT.bfloat16(), Linear(), Z.float(), EPS.float(), T.float())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("times", [1000 * T, T - 1, T * float("nan")])
def test_times_outside_of_the_path_are_refused(times):
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\].* 1 - timestep/1000"):
        flow_matching_loss(OUTPUT, Linear(), Z, EPS, times)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(batch, ...\) and t the shape \(batch,\)"):
        flow_matching_loss(OUTPUT, Linear(), Z, EPS, T[:, None])


# cumulative distributions on [0, 1]
DISTRIBUTIONS = {
    "uniform": lambda t: t,
    "low_discrepancy": lambda t: t,
    "logit_normal": lambda t: torch.special.ndtr(torch.logit(t)),
    "beta": lambda t: t**1.5,
    "cosmap": lambda t: 2 / math.pi * torch.atan(t / (1 - t)),
}


@pytest.mark.parametrize("sampler", DISTRIBUTIONS)
def test_time_samplers_have_their_distributions(sampler):
    n = 20_000
    t = sample_times(n, sampler, torch.Generator().manual_seed(0)).double().sort().values
    expected = DISTRIBUTIONS[sampler](t)
    empirical = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (expected - empirical).abs().max() < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize(
    ("sampler", "ours", "theirs"),
    [
        ("mode", {"scale": 0.8}, {"mode_scale": 0.8}),
        ("logit_normal", {"mean": 0.3, "std": 0.5}, {"logit_mean": 0.3, "logit_std": 0.5}),
    ],
)
def test_densities_equal_those_of_diffusers(sampler, ours, theirs):
    t = sample_times(50_000, sampler, torch.Generator().manual_seed(0), **ours)
    u = compute_density_for_timestep_sampling(
        sampler, 50_000, generator=torch.Generator().manual_seed(1), **theirs
    )
    quantiles = torch.linspace(0.02, 0.98, 25)
    torch.testing.assert_close(t.quantile(quantiles), u.quantile(quantiles), rtol=0, atol=0.01)


@pytest.mark.parametrize("sampler", TIME_SAMPLERS)
def test_times_follow_from_the_generator_and_lie_in_the_unit_interval(sampler):
    first, again = (
        sample_times(1000, sampler, torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert 0 <= first.min() < 0.2 and 0.8 < first.max() <= 1


def test_unknown_samplers_are_refused():
    with pytest.raises(ValueError, match="unknown time sampler 'gauss': choose one of uniform"):
        sample_times(4, "gauss")


@pytest.mark.parametrize(
    ("sampler", "parameters", "message"),
    [
        ("logit_normal", {"scale": 1.0}, r"\['scale'\] .* 'logit_normal'; it has: mean, std"),
        ("logit_normal", {"std": 0.0}, "std of logit_normal times must be positive .* got 0.0"),
        ("mode", {"scale": 3.0}, r"scale of mode times must lie in \[-1, .* got 3.0"),
        ("beta", {"a": -1.0}, "a and b of beta times must be positive .* got -1.0 and 1.0"),
    ],
)
def test_parameters_of_samplers_outside_their_range_are_refused(sampler, parameters, message):
    with pytest.raises(ValueError, match=message):
        sample_times(4, sampler, **parameters)
