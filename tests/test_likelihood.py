"""Densities against exact ones: mixtures, normalisation, the Jacobian of the whole flow."""

import math
import re

import pytest
import torch
from covers import covering
from oracles import GAUSSIAN, STD, mixture
from tiny_networks import plain_unet
from torch.autograd.functional import jacobian
from torch.distributions import Normal

from fm_diffusers.fields import GaussianMixture, from_model
from fm_diffusers.likelihood import (
    adaptive,
    bits_per_dimension,
    dequantize,
    divergence,
    invert,
    log_prob,
    on_grid,
    rademacher,
)
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.solvers import SOLVERS, integrate, integrate_adaptive

TIGHT = adaptive(rtol=1e-8, atol=1e-8)
ENDS = {"t_min": 0.1, "t_max": 0.95}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smoothed(data, std):
    """The density of the data with noise of standard deviation `std`."""
    return GaussianMixture(data.means, (data.stds**2 + std**2).sqrt(), data.weights)


def network(dim, seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(dim + 1, 32), torch.nn.SiLU(), torch.nn.Linear(32, dim)
    body = torch.nn.Sequential(*layers).double()
    return lambda x, t: body(torch.cat([x, t.expand(len(x), 1)], 1))


def convolution(channels=2, size=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, channels, 3, padding=1),
    ).double(), torch.randn(4, channels, size, size, dtype=torch.float64)


def ends(path_name, prediction):
    """The default ends: inside where a model says nothing of the slope."""
    path = PATHS[path_name]()
    inside = path.time(torch.logit(torch.tensor([0.01, 0.999], dtype=torch.float64))).tolist()
    velocity = prediction in ("velocity", "flow_prediction", "edm")
    silent = {
        "start": path.alpha(0.0) == 0
        and prediction in ("epsilon", "score")
        or path_name == "polynomial"
        and velocity,
        "end": path.beta(1.0) == 0
        and prediction in ("sample", "score")
        or path_name == "variance_preserving"
        and velocity,
    }
    return inside[0] if silent["start"] else 0.0, inside[1] if silent["end"] else 1.0


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path_name", "prediction"), covering(PATHS, PREDICTIONS))
def test_the_density_of_a_mixture_is_exact(path_name, prediction):
    """Up to the sampler's noise, which is the marginal at the start nearly: by a known factor."""
    path, data = PATHS[path_name](), mixture()
    x = data.sample(6, seeded())
    found = log_prob(
        path, data.field(path, prediction), x, prediction=prediction, integrator=TIGHT
    )
    first, last = ends(path_name, prediction)
    exact = smoothed(data, path.beta(last) / path.alpha(last)).log_joint(Linear(), x, 1.0)
    c = path(first)
    noise = Normal(0.0, (c.alpha**2 + c.beta**2).sqrt()).log_prob(found.noise).sum(1)
    marginal = data.log_joint(path, found.noise, first).logsumexp(1)
    torch.testing.assert_close(
        found.value + marginal - noise, exact.logsumexp(1), rtol=0, atol=2e-5
    )
    assert (found.standard_error == 0).all()


@pytest.mark.parametrize("path_name", PATHS)
def test_ends_inside_are_those_of_the_path(path_name):
    """What is asked between two times is the density of the path's own marginals."""
    path, data = PATHS[path_name](), mixture()
    x = data.sample(6, seeded(1))
    found = log_prob(path, data.field(path), x, integrator=TIGHT, **ENDS)
    start, end = path(ENDS["t_min"]), path(ENDS["t_max"])
    prior = Normal(0.0, (start.alpha**2 + start.beta**2).sqrt()).log_prob(found.noise).sum(1)
    change = found.value - prior
    exact = smoothed(data, end.beta / end.alpha).log_joint(Linear(), x, 1.0).logsumexp(1)
    at_start = data.log_joint(path, found.noise, ENDS["t_min"]).logsumexp(1)
    torch.testing.assert_close(at_start + change, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path_name", ["linear", "variance_preserving"])
def test_it_is_the_jacobian_of_the_whole_inversion(path_name):
    """Change of variables, with a determinant by automatic differentiation through the solver."""
    path, field = PATHS[path_name](), network(3)
    x = torch.randn(2, 3, dtype=torch.float64, generator=seeded())
    found = log_prob(path, field, x, integrator=TIGHT, **ENDS)

    def back(z):
        at_end = path.alpha(ENDS["t_max"]) * z[None]
        return integrate_adaptive(path, field, at_end, 0.95, 0.1, rtol=1e-8, atol=1e-8)[0]

    c = path(ENDS["t_min"])
    for z, value, noise in zip(x, found.value, found.noise, strict=True):
        prior = Normal(0.0, (c.alpha**2 + c.beta**2).sqrt()).log_prob(back(z)).sum()
        expected = prior + torch.linalg.slogdet(jacobian(back, z)).logabsdet
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(noise, back(z).detach(), rtol=0, atol=1e-6)


def test_the_density_of_any_network_integrates_to_one():
    x = torch.linspace(-12, 12, 2401, dtype=torch.float64)[:, None]
    body = network(1)
    found = log_prob(Linear(), lambda x, t: 4 * body(2 * x, t), x, integrator=TIGHT)
    density = found.value.exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-5)
    assert (density - Normal(0.0, 1.0).log_prob(x[:, 0]).exp()).abs().max() > 0.1


@pytest.mark.parametrize("solver", ["heun", "rk4", "predictor_corrector"])
def test_a_grid_converges_to_the_tolerance(solver):
    data = mixture()
    x = data.sample(6, seeded())
    exact = data.log_joint(Linear(), x, 1.0).logsumexp(1)
    errors = [
        (log_prob(Linear(), data.field(Linear()), x, integrator=on_grid(n, solver)).value - exact)
        .abs()
        .max()
        .item()
        for n in (40, 160)
    ]
    assert errors[1] < 0.01
    assert errors[0] > 3.5 ** SOLVERS[solver](Linear()).order * errors[1]


@pytest.mark.parametrize("path_name", ["linear", "cosine", "variance_exploding"])
def test_a_grid_resolves_pixels_that_never_change(path_name):
    """A background of two levels' noise, under which equal steps of the clock are lost."""
    std = torch.tensor([2 / 127.5, 0.5], dtype=torch.float64)
    path = PATHS[path_name]()
    flows = [GaussianMixture(torch.zeros(1, 1).double(), s).field(path) for s in std]
    x = std * torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]

    def field(x, t):
        """The exact velocity of independent pixels, each of its own deviation."""
        pixels = x.split(1, 1)
        return torch.cat([f(pixel, t) for f, pixel in zip(flows, pixels, strict=True)], 1)

    last = path(1.0)
    blurred = Normal(0.0, (std**2 + (last.beta / last.alpha) ** 2).sqrt())
    exact = blurred.log_prob(x).sum(1)
    found = log_prob(path, field, x, integrator=on_grid(20)).value
    assert (found - exact).abs().max() < 0.01


@pytest.mark.parametrize("path_name", PATHS)
def test_noise_is_found_again(path_name):
    """Of a Gaussian exactly; and sampling carries it back to the data."""
    path, x = PATHS[path_name](), torch.linspace(-2, 2, 5).double()[:, None]
    field = GAUSSIAN.field(path, "epsilon")
    noise = invert(path, field, x, prediction="epsilon", integrator=TIGHT, **ENDS)
    first, last = path(ENDS["t_min"]), path(ENDS["t_max"])
    std = [(c.alpha**2 * STD**2 + c.beta**2).sqrt() for c in (first, last)]
    torch.testing.assert_close(noise, last.alpha * x * std[0] / std[1], rtol=1e-6, atol=1e-6)
    again = integrate_adaptive(path, field, noise, 0.1, 0.95, "epsilon", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(again / last.alpha, x, rtol=1e-6, atol=1e-6)


# --- divergences ---------------------------------------------------------------------------------


def test_the_divergence_of_images_is_the_trace_of_the_jacobian():
    body, x = convolution()
    value, found = divergence(lambda x, t: body(x) * t, x, torch.tensor(0.5).double())
    torch.testing.assert_close(value, body(x).detach() / 2)
    full = [jacobian(lambda z: body(z[None])[0], z).reshape(18, 18) / 2 for z in x]
    torch.testing.assert_close(found, torch.stack([j.trace() for j in full])[None])


def test_a_network_of_diffusers_has_a_divergence_and_an_inverse():
    """With attention, in single precision, and with labels; sampling leads back to the data."""
    torch.manual_seed(0)
    net = plain_unet(num_class_embeds=3, in_channels=1, out_channels=1).eval()
    x, path = torch.rand(2, 1, 8, 8) * 2 - 1, Linear()
    labelled = from_model(net, num_train_timesteps=10, class_labels=torch.tensor([0, 2]))

    def field(x, t):
        return labelled(x, t) / 10  # gentle, as random weights are not

    _, found = divergence(field, x, torch.tensor(0.5))
    full = jacobian(lambda z: field(z, torch.tensor(0.5)), x).reshape(2, 64, 2, 64)
    expected = torch.stack([full[i, :, i].trace() for i in range(2)])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    noise = log_prob(path, field, x, num_probes=1, generator=seeded()).noise
    assert (noise - x).abs().max() > 0.1
    torch.testing.assert_close(integrate_adaptive(path, field, noise), x, rtol=0, atol=2e-3)


def test_random_signs_are_unbiased():
    """The mean over all sign vectors, which are equally likely, is the divergence itself."""
    field, x = network(4), torch.randn(3, 4, dtype=torch.float64, generator=seeded())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)
    t = torch.tensor(0.3).double()
    _, estimates = divergence(field, x, t, signs[:, None].expand(16, 3, 4))
    _, exact = divergence(field, x, t)
    torch.testing.assert_close(estimates.mean(0, keepdim=True), exact)
    assert estimates.std(0).min() > 1e-3
    drawn = {tuple(v.tolist()) for v in rademacher(x[0], 500, seeded())}
    assert drawn == {tuple(v.tolist()) for v in signs}


def test_the_standard_error_tells_how_far_the_estimate_is():
    data = mixture(dim=8)
    x = data.sample(32, seeded())
    field, path = data.field(Linear()), Linear()
    exact = log_prob(path, field, x).value
    few, many = (log_prob(path, field, x, num_probes=k, generator=seeded()) for k in (16, 64))
    for found in (few, many):
        deviation = (found.value - exact) / found.standard_error
        assert 0.7 < deviation.square().mean().sqrt() < 1.4
    ratio = few.standard_error.mean() / many.standard_error.mean()
    assert ratio.item() == pytest.approx(2, rel=0.2)
    assert log_prob(path, field, x[:2], num_probes=1).standard_error.isnan().all()


def test_random_vectors_are_drawn_once_and_cost_the_adaptive_solver_little():
    data = mixture(dim=8)
    x, calls = data.sample(16, seeded()), []
    exact_field = data.field(Linear())

    def field(x, t):
        calls.append(t)
        return exact_field(x, t)

    def redrawn(state, u):
        """What peers integrate: the same estimates, of another random vector every time."""
        y = state[:, :8]
        value, estimate = divergence(field, y, u, rademacher(y, 1))
        return torch.cat([value, estimate.T / 8], 1)

    counts = []
    for probes in (None, 1):
        calls.clear()
        log_prob(Linear(), field, x, num_probes=probes, generator=seeded())
        counts.append(len(calls))
    assert counts[1] < 2 * counts[0]
    calls.clear()
    torch.manual_seed(0)
    adaptive(1e-4, 1e-4)(redrawn, torch.cat([x, x[:, :1] * 0], 1), 1.0, 0.0)
    assert len(calls) > 3 * counts[1]  # even at ten times the tolerance
    same = [
        log_prob(Linear(), exact_field, x, num_probes=2, generator=seeded(5)).value
        for _ in range(2)
    ]
    assert torch.equal(*same)


# --- images --------------------------------------------------------------------------------------


def quantized(std, n=4000):
    """Images of a Gaussian on the integers, and their exact probabilities' bits per dimension."""
    edges = (torch.arange(257).double() - 0.5) / 127.5 - 1
    cdf = Normal(0.0, std).cdf(edges)
    p = cdf.diff() / (cdf[-1] - cdf[0])
    pixels = torch.multinomial(p, n * 16, replacement=True, generator=seeded())
    images = pixels.to(torch.uint8).reshape(n, 1, 4, 4)
    exact = -(p[p > 0] * p[p > 0].log2()).sum().item()
    return images, exact


def test_bits_of_a_gaussian_are_its_entropy():
    images, entropy = quantized(0.2)
    x = dequantize(images, seeded())
    found = bits_per_dimension(Normal(0.0, 0.2).log_prob(x).flatten(1).sum(1), 16)
    assert abs(found.value - entropy) < 4 * found.standard_error < 0.02


def test_bits_through_the_flow_are_those_of_the_density():
    images, _ = quantized(0.5, n=20)
    x = dequantize(images, seeded()).double()
    data = GaussianMixture(torch.zeros(1, 1, 4, 4).double(), 0.5)
    density = log_prob(PATHS["cosine"](), data.field(PATHS["cosine"]()), x).value
    exact = Normal(0.0, 0.5).log_prob(x).flatten(1).sum(1)
    found, expected = (bits_per_dimension(value, 16) for value in (density, exact))
    assert found == pytest.approx(expected, abs=1e-4)


def test_they_bound_the_code_length_where_the_density_bends_inside_a_cell():
    """Jensen's inequality, with a gap that is known: cells as wide as three deviations."""
    std = 1 / 127.5 / 3
    images = torch.full((20_000, 1, 1, 1), 100, dtype=torch.uint8)
    centre = 100 / 127.5 - 1
    x = dequantize(images, seeded())
    found = bits_per_dimension(Normal(centre, std).log_prob(x).flatten(1).sum(1), 1)
    bits = -math.log2(math.erf(1.5 / math.sqrt(2)))
    gap = math.log2(math.sqrt(2 * math.pi) / 3) + 9 / 24 / math.log(2) - bits  # E U^2 = 1/12
    assert found.value - bits == pytest.approx(gap, abs=4 * found.standard_error)
    assert gap > 10 * found.standard_error


def test_dequantized_images_round_back_and_fill_their_cells():
    images = torch.arange(256, dtype=torch.uint8).repeat(400, 1)
    levels = (dequantize(images, seeded()).double() + 1) * 127.5
    assert torch.equal(levels.round().long(), images.long())
    shift = levels - images
    assert shift.mean().abs() < 0.01
    assert shift.std().item() == pytest.approx(12**-0.5, rel=0.01)


# --- gradients -----------------------------------------------------------------------------------


def scaled(std):
    """The velocity of data N(0, std^2) on the linear path, of a std that is learned."""

    def field(x, t):
        variance = t**2 * std**2 + (1 - t) ** 2
        return (t * std**2 - (1 - t)) / variance * x

    return field


@pytest.mark.parametrize("num_probes", [None, 2])
@pytest.mark.parametrize("integrator", [TIGHT, on_grid(60)], ids=["adaptive", "on_grid"])
def test_log_prob_has_the_gradients_of_a_gaussian(integrator, num_probes):
    std = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-1, 2, 6).double().reshape(3, 2).requires_grad_()
    found = log_prob(
        Linear(),
        scaled(std),
        x,
        num_probes=num_probes,
        generator=seeded(),
        integrator=integrator,
        differentiable=True,
    )
    by_x, by_std = torch.autograd.grad(found.value.sum(), (x, std), retain_graph=True)
    data = x.detach()
    torch.testing.assert_close(by_x, -data / 0.25, rtol=1e-4, atol=1e-4)
    exact = (data**2 / 0.125 - 2).sum()
    torch.testing.assert_close(by_std, exact, rtol=1e-4, atol=1e-4)
    (of_noise,) = torch.autograd.grad(found.noise.sum(), x)
    torch.testing.assert_close(of_noise, torch.full_like(x, 2.0), rtol=1e-4, atol=1e-4)
    assert not found.standard_error.requires_grad


@pytest.mark.parametrize("path_name", ["cosine", "variance_preserving"])
def test_the_gradient_of_log_prob_is_the_score_of_the_data(path_name):
    path, data = PATHS[path_name](), mixture()
    x = data.sample(4, seeded()).requires_grad_()
    given = path, data.field(path, "velocity"), x
    found = log_prob(*given, t_max=0.95, integrator=TIGHT, differentiable=True).value
    (by_x,) = torch.autograd.grad(found.sum(), x)
    c = path(0.95)
    exact = smoothed(data, (c.beta / c.alpha).item()).sample_and_score(Linear(), x, 1.0)[1]
    # the noise of the second path is not quite normal
    torch.testing.assert_close(by_x, exact.detach(), rtol=0.02, atol=0.02)


def test_a_gradient_through_a_network_is_that_of_finite_differences():
    field, x = network(3), torch.randn(2, 3, dtype=torch.float64, generator=seeded())
    given = {"integrator": on_grid(8), "differentiable": True}
    assert torch.autograd.gradcheck(
        lambda x: log_prob(Linear(), field, x, **given).value, x.clone().requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda x: invert(Linear(), field, x, **given), x.clone().requires_grad_()
    )
    plain = log_prob(Linear(), field, x, integrator=on_grid(8))
    same = log_prob(Linear(), field, x.clone().requires_grad_(), **given)
    torch.testing.assert_close(same.value.detach(), plain.value, rtol=1e-12, atol=1e-12)
    assert not plain.value.requires_grad and not plain.noise.requires_grad


@pytest.mark.parametrize("function", [log_prob, invert])
def test_a_gradient_that_is_not_given_is_not_promised(function):
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"requires a gradient.*differentiable=True, or x.detach"):
        function(Linear(), GAUSSIAN.field(Linear()), x)
    with torch.no_grad():
        function(Linear(), GAUSSIAN.field(Linear()), x)


@pytest.mark.parametrize("function", [log_prob, invert, integrate_adaptive])
def test_arguments_in_another_order_are_told_the_order(function):
    path, field, x = Linear(), GAUSSIAN.field(Linear()), torch.ones(1, 1).double()
    order = "the order is .path, field, x, t_min, t_max, prediction."
    with pytest.raises(ValueError, match=f"path must be a GaussianPath, got function: {order}"):
        function(field, path, x)
    with pytest.raises(ValueError, match=f"t_min must be a time .* got 'epsilon': {order}"):
        function(path, field, x, "epsilon")
    with pytest.raises(ValueError, match="solver must be a Solver .* got function: the order is"):
        integrate(field, SOLVERS["heun"](path), x, torch.linspace(0, 1, 3))
    by_name = {"field": field, "path": path, "x": x, "prediction": "velocity"}
    function(**by_name, t_min=0.0, t_max=1.0)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_probes": 0}, "num_probes must be at least 1, or None"),
        ({"t_min": 0.5, "t_max": 0.5}, "t_min .noise. must be less than t_max"),
        ({"prediction": "sample", "t_max": 1.0}, "at t = 1.0 a model that predicts 'sample'"),
        ({"prediction": "epsilon", "t_min": 0.0}, "at t = 0.0 a model that predicts 'epsilon'"),
        ({"prediction": "speed"}, "unknown prediction type 'speed'"),
    ],
)
def test_what_has_no_density_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        log_prob(Linear(), GAUSSIAN.field(Linear()), torch.ones(1, 1), **kwargs)


def test_a_field_without_gradient_is_no_field_of_divergence_zero():
    with pytest.raises(ValueError, match="cannot be differentiated by x"):
        log_prob(Linear(), torch.no_grad()(GAUSSIAN.field(Linear())), torch.ones(1, 1).double())


@pytest.mark.parametrize("function", [log_prob, invert])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.uint8), "got torch.uint8: 8-bit images .* dequantize"),
        (torch.zeros(2, 1).bfloat16(), "must be float32 or float64, got torch.bfloat16"),
        (torch.tensor([[0.0], [math.nan]]), "with 1 values that are not finite"),
        (torch.zeros(0, 1), r"not empty, got shape \(0, 1\)"),
    ],
)
def test_what_is_no_data_is_refused(function, x, message):
    with pytest.raises(ValueError, match=message):
        function(Linear(), GAUSSIAN.field(Linear()), x)


@pytest.mark.parametrize("solver", ["unipc", "dpm_solver++"])
def test_a_solver_that_cannot_start_at_the_data_is_refused_there(solver):
    field, x = GAUSSIAN.field(Linear()), torch.ones(1, 1).double()
    with pytest.raises(ValueError, match=f"solver '{re.escape(solver)}' cannot start where"):
        invert(Linear(), field, x, integrator=on_grid(40, solver))
    found, exact = (
        invert(Linear(), field, x, t_max=0.9, integrator=integrator)
        for integrator in (on_grid(40, solver), TIGHT)
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=0.03)


def test_other_refusals():
    with pytest.raises(ValueError, match="unknown solver 'rk5'"):
        on_grid(10, "rk5")
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        on_grid(0)
    with pytest.raises(ValueError, match="images must be uint8"):
        dequantize(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"n of at least 2, got \(1,\)"):
        bits_per_dimension(torch.zeros(1), 4)
    with pytest.raises(ValueError, match="num_dimensions must be channels .* got 0"):
        bits_per_dimension(torch.zeros(2), 0)
