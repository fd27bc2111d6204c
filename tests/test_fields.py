import pytest
import torch
from oracles import mixture

from fm_diffusers.fields import GaussianMixture, converted, from_model, guided
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import PREDICTIONS, convert, target

X = 1.5 * torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_the_score_is_the_gradient_of_the_log_density(name, t):
    path, data, x = PATHS[name](), mixture(), X.clone().requires_grad_()
    log_density = data.log_joint(path, x, t).logsumexp(1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(data.field(path, "score")(X, t), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_transports_the_density(name):
    """The continuity equation, d/dt log p = -div u - u . grad log p."""
    path, data, t = PATHS[name](), mixture(), torch.tensor(0.4, dtype=torch.float64)

    def log_density(t):
        return data.log_joint(path, X, t).logsumexp(1)

    _, change = torch.func.jvp(log_density, (t,), (torch.ones_like(t),))
    velocity = data.field(path, "velocity")
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: velocity(x[None], t)[0]))(X)
    divergence = torch.einsum("bii->b", jacobians)
    transport = (velocity(X, t) * data.field(path, "score")(X, t)).sum(1)
    torch.testing.assert_close(change, -divergence - transport, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_marginal_fields_are_posterior_means_of_conditional_targets(prediction):
    """A data set that is nearly points: the posterior is a softmax over them."""
    path, t = PATHS["cosine"](), torch.tensor(0.6, dtype=torch.float64)
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    data = GaussianMixture(points, 1e-6)
    alpha, beta = path.alpha(t), path.beta(t)
    distance = (X[:, None] - alpha * points).square().sum(2)
    posterior = (-distance / (2 * beta**2)).softmax(1)
    torch.testing.assert_close(data.posterior_weights(path, X, t), posterior, rtol=1e-7, atol=1e-9)
    z = points.expand(6, 5, 3)
    conditional = target(path, prediction, z, (X[:, None] - alpha * z) / beta, t)
    expected = (posterior[:, :, None] * conditional).sum(1)
    torch.testing.assert_close(data.field(path, prediction)(X, t), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_exact_fields_are_finite_at_both_ends(name, prediction):
    path = PATHS[name]()
    field = mixture().field(path, prediction)
    assert all(field(X, t).isfinite().all() for t in (0.0, 1.0))


def test_blocks_change_nothing_and_images_keep_their_shape():
    images = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    data = GaussianMixture(images, 0.1)
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    whole, parts = (data.sample_and_score(Linear(), x, 0.5, block=b) for b in (2**24, 1))
    assert whole[0].shape == x.shape
    torch.testing.assert_close(whole, parts)


def test_samples_have_the_moments_of_the_mixture():
    data = mixture()
    samples = data.sample(200_000, torch.Generator().manual_seed(0))
    mean = (data.weights[:, None] * data.means).sum(0)
    second = (data.weights[:, None] * (data.means**2 + data.stds[:, None] ** 2)).sum(0)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(samples.square().mean(0), second, rtol=0, atol=0.03)


def test_networks_are_fed_timesteps_and_conditions():
    def model(x, timestep, class_labels):
        return (x + timestep + class_labels,)

    field = from_model(model, class_labels=torch.tensor(5))
    assert field(torch.zeros(1), torch.tensor(0.75)).item() == 1000 * 0.25 + 5


def test_guidance_extrapolates_and_commutes_with_conversion():
    path, t = Linear(), torch.tensor(0.3, dtype=torch.float64)
    fields = [mixture(seed).field(path, "velocity") for seed in (0, 1)]
    both = guided(*fields, guidance_scale=2.5)
    expected = fields[1](X, t) + 2.5 * (fields[0](X, t) - fields[1](X, t))
    torch.testing.assert_close(both(X, t), expected)
    after = converted(both, path, "velocity", "sample")(X, t)
    before = guided(*(converted(f, path, "velocity", "sample") for f in fields), 2.5)(X, t)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(after, convert(path, "velocity", "sample", X, expected, t))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stds": 0.0}, "stds must be positive, got a minimum of 0.0"),
        ({"stds": torch.ones(3)}, "one for each of the 2 components, got shape"),
        ({"stds": 1.0, "weights": torch.tensor([1.0, -1.0])}, "weights must be positive"),
    ],
)
def test_impossible_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(torch.zeros(2, 1), **arguments)


def test_samples_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(batch, 3\) of the mixture, got \(2, 4\)"):
        mixture().field(Linear())(torch.zeros(2, 4), 0.5)
