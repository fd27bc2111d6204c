"""Exact maps agree with integration, and are what every objective asks for."""

import math
from functools import partial

import pytest
import torch

from fm_diffusers import flow_maps
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.flow_maps import (
    DERIVATIVES,
    exact_average_slope,
    mapped,
    mean_flow_target,
    self_consistency_target,
    trajectory_target,
)
from fm_diffusers.paths import Linear
from fm_diffusers.solvers import integrate_adaptive

ONE = GaussianMixture(torch.tensor([[0.7, -0.2]], dtype=torch.float64), 0.4)
SAME = GaussianMixture(ONE.means.repeat(2, 1), 0.4)
SEVERAL = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.4, 1.2]], dtype=torch.float64),
    torch.tensor([0.3, 0.5, 0.2]),
    torch.tensor([1.0, 2.0, 1.5]),
)
DATA = {"one": ONE, "several": SEVERAL}
SLOPES = {name: exact_average_slope(data, 1e-11) for name, data in DATA.items()}

U, V = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 0.0, 0.0, 0.3], [1.0, 1.0, 1.0, 0.9]))
Y = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
of_data = pytest.mark.parametrize("name", DATA)
close = partial(torch.testing.assert_close, rtol=0)


def field(name, y, u):
    return torch.cat([DATA[name].field(Linear())(*one) for one in zip(y.split(1), u, strict=True)])


# --- the oracles ---------------------------------------------------------------------------------


@of_data
def test_an_exact_map_is_the_end_of_the_flow(name):
    found = mapped(Y, U, V, SLOPES[name](Y, U, V))
    flow = DATA[name].field(Linear())
    for y, u, v, end in zip(Y.split(1), U.tolist(), V.tolist(), found.split(1), strict=True):
        integrated = integrate_adaptive(
            Linear(), flow, y, u, v, rtol=1e-9, atol=1e-9, method="dopri8"
        )
        close(end, integrated, atol=1e-8)


@of_data
def test_two_steps_of_an_exact_map_are_one(name):
    slope, middle = SLOPES[name], U + 0.3 * (V - U)
    half = mapped(Y, U, middle, slope(Y, U, middle))
    there = mapped(half, middle, V, slope(half, middle, V))
    close(there, mapped(Y, U, V, slope(Y, U, V)), atol=1e-9)


@of_data
def test_an_exact_map_leads_back(name):
    end = mapped(Y, U, V, SLOPES[name](Y, U, V))
    close(mapped(end, V, U, SLOPES[name](end, V, U)), Y, atol=1e-9)


@of_data
def test_over_no_time_the_average_slope_is_the_slope(name):
    close(SLOPES[name](Y, U, U), field(name, Y, U), atol=1e-13)


def test_two_equal_components_are_one():
    expected = SLOPES["one"](Y, U, V)
    close(exact_average_slope(SAME)(Y, U, V), expected, atol=1e-9)


def test_one_time_serves_a_batch():
    u, v = torch.tensor([0.2, 0.7], dtype=torch.float64)
    for slope in SLOPES.values():
        close(slope(Y, u, v), slope(Y, u.expand(4), v.expand(4)), atol=0)


# --- what the objectives ask for -----------------------------------------------------------------


@of_data
def test_a_trajectory_asks_for_the_average_slope(name):
    flow, (a, b) = DATA[name].field(Linear()), (0.2, 0.9)
    start, end = (
        integrate_adaptive(Linear(), flow, Y, 0.0, t, rtol=1e-9, atol=1e-9, method="dopri8")
        for t in (a, b)
    )
    a, b = (torch.full((4,), t, dtype=torch.float64) for t in (a, b))
    close(trajectory_target(start, end, a, b), SLOPES[name](start, a, b), atol=1e-8)


def test_mean_flow_by_forward_derivatives_asks_for_the_exact_map():
    slope = SLOPES["one"]
    target = mean_flow_target(slope, Y, U, V, field("one", Y, U), derivative="jvp")
    close(target, slope(Y, U, V), atol=1e-12)


def residuals(name, u, v, size, monkeypatch):
    """Return by how much the target of the exact map misses it, with a half step of `size`."""
    monkeypatch.setattr(flow_maps, "DIFFERENCE", size)
    slope = SLOPES[name]
    return mean_flow_target(slope, Y, u, v, field(name, Y, u)) - slope(Y, u, v)


@of_data
def test_mean_flow_by_differences_is_of_second_order_inside(name, monkeypatch):
    u, v = torch.full_like(U, 0.4), torch.full_like(V, 0.8)
    coarse, fine = (residuals(name, u, v, size, monkeypatch) for size in (0.02, 0.01))
    torch.testing.assert_close(coarse, 4 * fine, rtol=0.02, atol=1e-6)
    close((4 * fine - coarse) / 3, torch.zeros_like(Y), atol=1e-6)


def test_at_the_ends_differences_have_the_error_that_is_stated(monkeypatch):
    """At pure noise of first order; near the landing of second again, for v - u is small there."""
    ones = torch.ones_like(U)
    for u, v, order in ((0 * ones, ones, 1), (0.5 * ones, None, 2)):
        errors = []
        for size in (0.008, 0.004):
            end = u + size / 2 if v is None else v
            errors.append(residuals("one", u, end, size, monkeypatch))
        torch.testing.assert_close(errors[0], 2**order * errors[1], rtol=0.05, atol=1e-9)


def test_over_no_time_mean_flow_asks_for_the_slope():
    slope = field("one", Y, U)
    for u in (U, torch.zeros_like(U), torch.ones_like(U)):
        for name in DERIVATIVES:
            close(mean_flow_target(SLOPES["one"], Y, u, u, slope, derivative=name), slope, atol=0)


@of_data
def test_an_exact_map_is_self_consistent(name):
    close(self_consistency_target(SLOPES[name], Y, U, V), SLOPES[name](Y, U, V), atol=1e-9)


def bent(y, u, v):
    """Some average slope, of no flow."""
    u, v = (t[:, None] for t in (u, v))
    return torch.sin(2 * y + u) * torch.cos(v - u) + u * y


@pytest.mark.parametrize("along", ["conditional", "own"])
def test_the_mean_of_conditional_targets_is_the_target_of_the_marginal_slope(along):
    """Over the posterior p(z | y), by quadrature, for any average slope."""
    data = GaussianMixture(torch.tensor([[-1.0], [0.8]], dtype=torch.float64), 0.3)
    z = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    y, u, v = (torch.tensor(x, dtype=torch.float64) for x in (0.2, 0.4, 0.9))
    noise = (y - u * z) / (1 - u)
    prior = torch.exp(-((z[:, None] - data.means.T) ** 2) / (2 * 0.3**2)).sum(1)
    posterior = prior * torch.exp(-(noise**2) / 2)
    posterior /= posterior.sum()
    many = [x.expand(len(z)) for x in (y, u, v)]
    many[0] = many[0][:, None]
    marginal = data.field(Linear())(many[0][:1], u)
    ahead = None if along == "conditional" else marginal.expand(len(z), 1)
    targets = mean_flow_target(bent, *many, (z - noise)[:, None], ahead, "jvp")
    one = (y.reshape(1, 1), u.reshape(1), v.reshape(1))
    expected = mean_flow_target(bent, *one, marginal, derivative="jvp")
    close(posterior @ targets, expected[0], atol=1e-8)


def test_targets_are_constants():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    slope = lambda y, u, v: weight * bent(y, u, v)  # noqa: E731
    for name in DERIVATIVES:
        assert not mean_flow_target(slope, Y, U, V, Y, derivative=name).requires_grad
    assert not self_consistency_target(slope, Y, U, V).requires_grad


# --- a network that is trained -------------------------------------------------------------------

WIDE = GaussianMixture(torch.tensor([[0.5]], dtype=torch.float64), 1.0)
DEGREE = 10


def told(y, u, v):
    """Features of a network that is linear in them: y or 1, times Chebyshev polynomials."""
    orders = torch.arange(DEGREE)
    of_u, of_v = (
        torch.cos(orders * torch.acos((2 * t - 1).clamp(-1, 1))[:, None]) for t in (u, v)
    )
    times = (of_u[:, :, None] * of_v[:, None]).flatten(1)
    return torch.cat([times, y * times], 1)


def bent_by(weights):
    return lambda y, u, v: told(y, u, v) @ weights


def batch(count=1500, of_slope=500):
    """Return states at times, later times, and slopes; the last ones land where they are."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    drawn = (1 - torch.cos(torch.pi * drawn)) / 2  # often at the ends
    u, v = drawn.sort(1).values.T
    v = torch.cat([v[:-of_slope], u[-of_slope:]])
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    y = (u * WIDE.means[0, 0] + torch.hypot(u, 1 - u) * noise)[:, None]
    flow = WIDE.field(Linear())
    return y, u, v, torch.cat([flow(*one) for one in zip(y.split(1), u, strict=True)])


def by_trajectory(y, u, v, slope):
    end, apart, target = mapped(y, u, v, exact_average_slope(WIDE)(y, u, v)), u != v, slope.clone()
    target[apart] = trajectory_target(y[apart], end[apart], u[apart], v[apart])
    return torch.linalg.pinv(told(y, u, v)) @ target


def by_mean_flow(y, u, v, slope):
    """Where the least-squares fit of the targets is the network itself: a linear system."""
    fit = torch.linalg.pinv(told(y, u, v), rtol=1e-9)
    of_weights = mean_flow_target(told, y, u, v, slope, derivative="jvp") - slope
    return torch.linalg.solve(torch.eye(len(fit)).double() - fit @ of_weights, fit @ slope)


def by_self_consistency(y, u, v, slope):
    """Fit after fit."""
    fit = torch.linalg.pinv(told(y, u, v), rtol=1e-9)
    weights = torch.zeros(len(fit), 1, dtype=torch.float64)
    for _ in range(150):
        target = self_consistency_target(bent_by(weights), y, u, v)
        weights = fit @ torch.where((u == v)[:, None], slope, target)
    return weights


@pytest.mark.parametrize("train", [by_trajectory, by_mean_flow, by_self_consistency])
def test_a_small_network_learns_the_exact_map(train):
    learned = bent_by(train(*batch()))
    u = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.8], dtype=torch.float64)
    v = torch.tensor([1.0, 0.5, 1.0, 0.75, 0.9], dtype=torch.float64)
    for start in (-1.5, 0.0, 1.5):
        y = (u * 0.5 + start * torch.hypot(u, 1 - u))[:, None]
        close(learned(y, u, v), exact_average_slope(WIDE)(y, u, v), atol=1e-3)


# --- errors --------------------------------------------------------------------------------------


def test_the_slope_between_equal_times_is_refused():
    with pytest.raises(ValueError, match="must differ"):
        trajectory_target(Y, Y + 1, U, torch.where(U > 0.2, U, V))


def test_an_unknown_derivative_is_refused():
    with pytest.raises(ValueError, match="derivative.*backwards.*jvp"):
        mean_flow_target(bent, Y, U, V, Y, derivative="backwards")


def test_a_map_of_numbers_is_one_of_times():
    close(mapped(Y, 0.25, 0.75, Y), Y + Y / 2, atol=0)
    assert math.isclose(mapped(Y[:1], torch.zeros(1), torch.ones(1), -Y[:1]).abs().sum(), 0)


def test_a_network_without_forward_derivatives_is_told():
    def average_slope(y, u, v):
        raise NotImplementedError("no forward AD for attention\nPlease file an issue")

    y, u = torch.zeros(2, 1), torch.tensor([0.1, 0.2])
    with pytest.raises(ValueError, match="'jvp' .* attention.*: take 'difference'"):
        mean_flow_target(average_slope, y, u, u + 0.5, torch.ones_like(y), derivative="jvp")
