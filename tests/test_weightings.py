import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.objectives import (
    flow_matching_loss,
    prediction_loss,
    sample_times,
    score_matching_loss,
    weighted_loss,
)
from fm_diffusers.paths import PATHS, Cosine, Discrete, Linear
from fm_diffusers.predictions import PREDICTIONS, convert
from fm_diffusers.weightings import WEIGHTINGS, Weighting, loss_weight

GENERATOR = torch.Generator().manual_seed(0)
Z, EPS = torch.randn(2, 64, 3, generator=GENERATOR).double()
T = 0.05 + 0.9 * torch.rand(64, generator=GENERATOR).double()
OUTPUT = torch.randn(64, 3, generator=GENERATOR).double()
GRID = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
STATED = [name for name in WEIGHTINGS if name != "uniform"]
BOUNDED = [path for path in PATHS if path not in ("variance_exploding", "noise_level")]


def snr(path, t):
    return torch.exp(2 * path.log_snr(t))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weighting", STATED)
def test_a_weighting_is_one_loss_whatever_the_network_predicts(path, weighting):
    path = PATHS[path]()
    x = path.flow_map(Z, EPS, T)
    losses = [
        weighted_loss(
            convert(path, "velocity", kind, x, OUTPUT, T), path, Z, EPS, T, kind, weighting
        )
        for kind in PREDICTIONS
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_uniform_is_the_loss_of_the_networks_own_target(prediction):
    loss = weighted_loss(OUTPUT, Linear(), Z, EPS, T, prediction)
    assert torch.equal(loss, prediction_loss(OUTPUT, Linear(), Z, EPS, T, prediction))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_flow_and_score_matching_are_weightings(path, prediction):
    given = OUTPUT, PATHS[path](), Z, EPS, T, prediction
    for weighting, loss in (("flow_matching", flow_matching_loss), ("snr", score_matching_loss)):
        torch.testing.assert_close(weighted_loss(*given, weighting).mean(), loss(*given))


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_min_snr_is_that_of_diffusers_scripts(beta_schedule):
    """min(SNR, g)/SNR on the noise, min(SNR, g)/(SNR + 1) on v, min(SNR, g) on the sample."""
    ddpm = DDPMScheduler(beta_schedule=beta_schedule)
    steps = torch.tensor([0, 1, 10, 100, 500, 900, 998])
    theirs = compute_snr(ddpm, steps).double()
    t, path = 1 - (steps + 1.0).double() / 1000, Discrete(beta_schedule=beta_schedule)
    for gamma in (1.0, 5.0):
        low = theirs.clamp(max=gamma)
        for kind, expected in (
            ("sample", low),
            ("epsilon", low / theirs),
            ("v_prediction", low / (theirs + 1)),
        ):
            ours = loss_weight(path, t, kind, "min_snr", gamma=gamma)
            torch.testing.assert_close(ours, expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("scheme", ["cosmap", "sigma_sqrt"])
def test_sd3_weights_are_those_of_diffusers(scheme):
    theirs = compute_loss_weighting_for_sd3(scheme, sigmas=1 - GRID)
    ours = loss_weight(Linear(), GRID, "flow_prediction", scheme)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_lies_below_snr_and_the_sigmoid_is_its_soft_form(path, prediction):
    given = PATHS[path](), GRID[1:-1], prediction
    snr_weight, likelihood = loss_weight(*given, "snr"), loss_weight(*given, "likelihood")
    for gamma in (0.3, 5.0):
        hard = loss_weight(*given, "min_snr", gamma=gamma)
        soft = loss_weight(*given, "sigmoid", bias=math.log(gamma)) / likelihood
        assert (hard <= snr_weight * (1 + 1e-12)).all()
        ratio = hard / snr_weight / soft  # min(1, g/SNR) over 1/(1 + SNR/g) lies in [1, 2]
        assert ((ratio >= 1 - 1e-9) & (ratio <= 2 + 1e-9)).all()


@pytest.mark.parametrize("path", [path for path in PATHS if path != "discrete"])  # not smooth
def test_the_sigmoid_weight_is_that_of_its_papers(path):
    """(1/2) dlogSNR/dt sigmoid(b - logSNR) on the noise, the derivative by autograd."""
    path, t = PATHS[path](), GRID.clone().requires_grad_()
    log_snr = 2 * path.log_snr(t)
    (rate,) = torch.autograd.grad(log_snr.sum(), t)
    for bias in (-2.0, 1.0):
        expected = rate / 2 * torch.sigmoid(bias - log_snr).detach()
        ours = loss_weight(path, GRID, "epsilon", "sigmoid", bias=bias)
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_the_likelihood_weight_is_half_the_memoryless_variance_on_the_score(path):
    path = PATHS[path]()
    expected = get_diffusion("memoryless").squared(path, GRID) / 2
    ours = loss_weight(path, GRID, "score", "likelihood")
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", ["linear", "cosine", "variance_preserving"])
def test_the_likelihood_of_the_exact_field_is_the_mutual_information(path):
    r"""I-MMSE (Guo, Shamai, Verdu 2005): d I(z; x)/d SNR is half the minimal squared error.

    For z ~ N(0, s^2) the information is (1/2) log(1 + s^2 SNR), so the loss of the exact field,
    integrated from t to t', is its difference.
    """
    path, s = PATHS[path](), 0.5
    data = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), s)
    generator, n, lower, upper = torch.Generator().manual_seed(0), 2000, 0.05, 0.9
    losses = []
    for t in lower + (upper - lower) * (torch.arange(200, dtype=torch.float64) + 0.5) / 200:
        z, eps = data.sample(n, generator), torch.randn(n, 1, generator=generator).double()
        output = data.field(path, "velocity")(path.flow_map(z, eps, t), t)
        given = output, path, z, eps, t.expand(n)
        losses.append((upper - lower) * weighted_loss(*given, weighting="likelihood"))
    losses = torch.cat(losses)
    low, high = (0.5 * math.log1p(s**2 * snr(path, end).item()) for end in (lower, upper))
    standard_error = (losses.std() / math.sqrt(len(losses))).item()
    assert standard_error < 0.01 * (high - low)
    assert abs(losses.mean().item() - (high - low)) < 4 * standard_error


@pytest.mark.parametrize("path", BOUNDED)
@pytest.mark.parametrize("diffusion", ["constant", "beta", "beta_squared", "zero_ends"])
def test_the_sde_likelihood_is_girsanovs(path, diffusion):
    """|difference of the drifts|^2/(2 g^2) for two velocities, drift = u + g^2/2 score."""
    path, g = PATHS[path](), DIFFUSIONS[diffusion]
    x, other = path.flow_map(Z, EPS, T), OUTPUT + 1
    half = g.squared(path, T)[:, None] / 2
    drifts = [u + half * convert(path, "velocity", "score", x, u, T) for u in (OUTPUT, other)]
    expected = (drifts[1] - drifts[0]).square().mean(1) / (4 * half[:, 0])
    weight = loss_weight(path, T, "velocity", "sde_likelihood", diffusion=diffusion)
    torch.testing.assert_close(weight, expected, rtol=1e-7, atol=0)
    # the memoryless coefficient is the best
    assert (weight >= loss_weight(path, T, "velocity", "likelihood") * (1 - 1e-9)).all()


def test_the_memoryless_sde_likelihood_is_the_likelihood_where_it_is_bounded():
    path = PATHS["variance_preserving"]()
    ours = loss_weight(path, GRID, "velocity", "sde_likelihood", diffusion="memoryless")
    torch.testing.assert_close(ours, loss_weight(path, GRID, "velocity", "likelihood"))
    with pytest.raises(ValueError, match="'memoryless' is infinite at t = 0: say 'likelihood'"):
        loss_weight(Linear(), GRID, "velocity", "sde_likelihood", diffusion="memoryless")


@pytest.mark.parametrize("data_std", [0.5, 1.7])
def test_the_edm_weight_makes_an_edm_networks_own_loss_uniform(data_std):
    """EDM chose (sigma^2 + s^2)/(sigma s)^2 on the data to cancel its preconditioning."""
    weight = loss_weight(Cosine(data_std), GRID, "edm", "edm", data_std=data_std)
    torch.testing.assert_close(weight, torch.ones_like(GRID), rtol=1e-9, atol=0)


DENSITIES = {
    "logit_normal": {"mean": 0.4, "std": 0.7},
    "beta": {"a": 1.5, "b": 1.2},
    "cosmap": {},
}


def unit_losses(t):
    """Return losses E_t = 1 + t^2 of a network that errs by sqrt(1 + t^2) on the velocity."""
    zeros = torch.zeros(len(t), 1, dtype=t.dtype)
    return (1 + t**2).sqrt()[:, None], Linear(), zeros, zeros, t


def drawn(sampler, n=400_000, **parameters):
    return sample_times(n, sampler, torch.Generator().manual_seed(0), **parameters).double()


@pytest.mark.parametrize("sampler", DENSITIES)
def test_uniform_times_with_the_density_as_weight_train_as_the_sampler_does(sampler):
    parameters = DENSITIES[sampler]
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    weighted = weighted_loss(*unit_losses(grid), weighting=sampler, **parameters).mean()
    sampled = prediction_loss(*unit_losses(drawn(sampler, **parameters)))
    standard_error = sampled.std() / math.sqrt(len(sampled))
    assert (sampled.mean() - weighted).abs() < 4 * standard_error
    assert loss_weight(Linear(), grid, "velocity", sampler, **parameters).mean() == pytest.approx(
        1
    )


@pytest.mark.parametrize("sampler", ["beta", "cosmap"])
def test_drawing_times_and_dividing_by_their_density_leaves_the_loss_as_it_is(sampler):
    t = drawn(sampler, **DENSITIES[sampler])
    losses = prediction_loss(
        *unit_losses(t),
        weight=lambda t: 1 / loss_weight(Linear(), t, "velocity", sampler, **DENSITIES[sampler]),
    )
    assert (losses.mean() - 4 / 3).abs() < 4 * losses.std() / math.sqrt(len(t))


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["velocity", "flow_prediction", "v_prediction", "edm"])
def test_weights_of_velocities_are_finite_at_both_ends(path, prediction):
    """All but those that diverge at the data, and these do so there alone."""
    ends, diverging = torch.tensor([0.0, 1.0]), {"likelihood", "sde_likelihood", "sigma_sqrt"}
    for weighting in WEIGHTINGS:
        finite = loss_weight(PATHS[path](), ends, prediction, weighting).isfinite().tolist()
        assert finite == [True, weighting not in diverging]
        interior = loss_weight(PATHS[path](), 1 - torch.tensor(1e-6), prediction, weighting)
        assert interior.isfinite()


@pytest.mark.parametrize(
    ("prediction", "weighting", "expected"),
    [
        ("epsilon", "min_snr", [1.0, 0.0]),
        ("sample", "min_snr", [0.0, 5.0]),
        ("epsilon", "snr", [1.0, 1.0]),
        ("velocity", "logit_normal", [0.0, 0.0]),
        ("velocity", "sigmoid", [0.0, 0.0]),
        ("velocity", "edm", [4.0, 1.0]),
    ],
)
def test_weights_at_the_ends_are_the_limits(prediction, weighting, expected):
    weight = loss_weight(Linear(), torch.tensor([0.0, 1.0]), prediction, weighting)
    near = loss_weight(
        Linear(), torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64), prediction, weighting
    )
    assert weight.tolist() == expected
    torch.testing.assert_close(near, torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_a_weighting_of_ones_own_goes_into_the_table(monkeypatch):
    def velocity_and_noise(share=0.5):
        return Weighting(("velocity", "epsilon"), lambda path, t, u, e: u + share * e)

    monkeypatch.setitem(WEIGHTINGS, "mine", velocity_and_noise)
    loss = weighted_loss(OUTPUT, Linear(), Z, EPS, T, weighting="mine", share=2.0)
    parts = (weighted_loss(OUTPUT, Linear(), Z, EPS, T, "velocity", w) for w in ("uniform", "snr"))
    flow, score = parts
    torch.testing.assert_close(loss, flow + 2 * score)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weighting": "p2"}, "unknown weighting 'p2': choose one of uniform, flow_matching"),
        ({"weighting": "snr", "gamma": 1}, r"weighting_kwargs \['gamma'\] are no parameters"),
        ({"weighting": "min_snr", "gamma": 0}, "gamma must be positive and finite, got 0"),
        ({"weighting": "logit_normal", "std": -1.0}, "std must be positive and finite, got -1.0"),
        ({"weighting": "sde_likelihood", "diffusion": "g"}, "unknown diffusion 'g'"),
        ({"prediction": "noise"}, "unknown prediction type 'noise'"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        weighted_loss(OUTPUT, Linear(), Z, EPS, T, **given)
