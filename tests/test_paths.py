import math

import pytest
import torch

from fm_diffusers.fields import GaussianMixture
from fm_diffusers.paths import (
    PATHS,
    Cosine,
    Interpolant,
    Linear,
    Polynomial,
    VariancePreserving,
    expand_like,
)
from fm_diffusers.paths.interpolants import BASES

INSIDE = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)
VARIANTS = [make() for make in PATHS.values()] + [
    Polynomial(3.5),
    Polynomial(1.0),
    VariancePreserving(0.05, 12.0),
    PATHS["variance_exploding"](0.002, 80.0),
    *(Interpolant(base, sigma) for base in BASES for sigma in (0.0, 0.1, 0.9)),
    Interpolant("linear", 3.0),
]


@pytest.mark.parametrize("path", VARIANTS, ids=repr)
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_derivatives_are_those_of_the_functions(path, name):
    value, derivative = torch.func.jvp(getattr(path, name), (INSIDE,), (torch.ones_like(INSIDE),))
    torch.testing.assert_close(value, getattr(path(INSIDE), name))
    expected = getattr(path, f"d_{name}")(INSIDE)
    assert ((derivative - expected).abs() <= 1e-10 * (1 + expected.abs())).all()


@pytest.mark.parametrize("path", VARIANTS, ids=repr)
def test_half_d_variance_is_the_derivative_of_half_the_variance(path):
    def half_variance(t):
        return path.beta(t) ** 2 / 2

    _, derivative = torch.func.jvp(half_variance, (INSIDE,), (torch.ones_like(INSIDE),))
    torch.testing.assert_close(path.half_d_variance(INSIDE), derivative, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", VARIANTS, ids=repr)
def test_time_inverts_the_log_snr_which_increases(path):
    log_snr = path.log_snr(INSIDE)
    assert (log_snr.diff() > 0).all()
    torch.testing.assert_close(path.time(log_snr), INSIDE, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [Linear(), Cosine(), Polynomial()], ids=repr)
def test_ends_are_noise_and_data_exactly(path):
    assert (path.alpha(0.0), path.beta(0.0)) == (0, 1)
    assert (path.alpha(1.0), path.beta(1.0)) == (1, 0)
    assert path.log_snr(0.0) == -math.inf
    assert path.log_snr(1.0) == math.inf
    assert path.time(torch.tensor(-math.inf)) == 0
    assert path.time(torch.tensor(math.inf)) == 1


def test_variance_preserving_ends():
    path = VariancePreserving()
    c = path(1.0)
    assert (c.alpha, c.beta, c.d_beta) == (1, 0, -math.inf)
    assert path.half_d_variance(1.0) == -path.d_alpha(1.0) == -0.05
    assert math.isclose(path.alpha(0.0), math.exp(-(0.1 + 20) / 4))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.beta(t) ** 2, torch.ones_like(t))


def test_variance_exploding_ends():
    path = PATHS["variance_exploding"](0.01, 50.0)
    assert path.beta(0.0) == 50
    assert math.isclose(path.beta(1.0), 0.01, rel_tol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("base", BASES)
def test_an_interpolant_has_the_velocity_that_its_network_regresses(base, sigma):
    # for data N(m, s^2) all is jointly Gaussian: E[y|x] = E[y] + cov(y, x)/var(x) (x - E[x])
    t, m, s = INSIDE, 0.7, 0.5
    rate, root = math.pi / 2, (1 - t**2).sqrt()
    sine, cosine = (rate * t).sin(), (rate * t).cos()
    a, b, da, db = {
        "linear": (t, 1 - t, 1, -1),
        "target": (t, 1 - (1 - sigma) * t, 1, -(1 - sigma)),
        "cosine": (sine, cosine, rate * cosine, -rate * sine),
        "linear_vp": (t, root, 1, -t / root),
    }[base]
    blur = 0.0 if base == "target" else sigma
    variance, covariance = a**2 * s**2 + b**2 + blur**2, a * da * s**2 + b * db
    x = torch.linspace(-3, 3, len(t)).double()[:, None]
    regressed = da * m + covariance / variance * (x[:, 0] - a * m)
    field = GaussianMixture(torch.full((1, 1), m, dtype=t.dtype), s).field(
        Interpolant(base, sigma)
    )
    found = torch.cat([field(x[i : i + 1], t[i]) for i in range(len(t))])[:, 0]
    torch.testing.assert_close(found, regressed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_an_interpolant_leaves_its_noise_at_the_data(base):
    path, far = Interpolant(base, 0.3), torch.tensor([-math.inf, math.inf])
    assert path.alpha(0.0) == 0 and path.alpha(1.0) == 1
    assert math.isclose(path.beta(1.0), 0.3)
    assert math.isclose(path.beta(0.0), 1.0 if base == "target" else math.sqrt(1.09))
    start, after = path.time(far).tolist()
    assert start == 0 and after >= 1
    pure = {"target": Linear(), "linear": Linear(), "cosine": Cosine()}.get(base)
    if pure is not None:
        assert torch.equal(torch.stack([*Interpolant(base)(INSIDE)]), torch.stack([*pure(INSIDE)]))


def test_time_of_a_batch_multiplies_sample_by_sample_even_in_square_batches():
    z, eps = torch.ones(4, 1, 4, 4), torch.zeros(4, 1, 4, 4)
    x = Linear().flow_map(z, eps, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert x.flatten(1).unique(dim=1).flatten().tolist() == [0.0, 0.25, 0.5, 1.0]


def test_time_of_another_batch_size_is_refused():
    with pytest.raises(ValueError, match="one value for each of the 4 samples, got shape"):
        expand_like(torch.zeros(3), torch.zeros(4, 1, 3, 3))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("polynomial", {"degree": 0.5}, "degree must be at least 1 and finite, got 0.5"),
        ("variance_preserving", {"beta_min": 3.0, "beta_max": 2.0}, "beta_min < beta_max"),
        ("variance_exploding", {"sigma_min": 0.0}, "0 < sigma_min"),
        ("interpolant", {"base": "polynomial"}, "one of linear, cosine, linear_vp, target, got"),
        (
            "interpolant",
            {"sigma": -0.1},
            "at least 0 and less than inf, got -0.1",
        ),
        ("interpolant", {"base": "target", "sigma": 1.0}, "less than 1.0, got 1.0"),
        ("interpolant", {"sigma": math.nan}, "got nan"),
        *((name, {"coupled": "false"}, "coupled must be True or Fal.*'false'") for name in PATHS),
    ],
)
def test_impossible_paths_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        PATHS[name](**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta_end": 0.9}, r"must change from step to step of a table, and float32 tells \d+ of"),
        (
            {"num_train_timesteps": 1, "rescale_betas_zero_snr": True},
            r"float32 tells 0 of 1 apart",
        ),
        ({"beta_start": math.nan}, "beta_start must be finite, got nan"),
        ({"beta_start": 0.5, "beta_end": 1.5}, "every beta must be between 0 and 1, exclusively"),
        ({"beta_end": math.inf}, "beta_end must be finite, got inf"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps must be an integer .*, got 0"),
        ({"rescale_betas_zero_snr": "false"}, r"must be True or False, got 'false'"),
        ({"snr_shift_scale": -1.0}, r"snr_shift_scale must be positive and finite, got -1.0"),
        ({"beta_start": math.nan}, r"beta_start must be finite, got nan"),
        ({"beta_start": -0.1}, r"every beta must be between 0 and 1, exclusively, got -0.1"),
        ({"beta_schedule": None}, r"unknown beta_schedule None: choose one of linear"),
        ({"trained_betas": [0.1, 0.2]}, r"must have num_train_timesteps = 1000 entries, got 2"),
    ],
)
def test_impossible_tables_say_why(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PATHS["discrete"](**kwargs).log_snr(0.5)


@pytest.mark.parametrize("wrong", ["3", None, [1.0], math.nan, math.inf, -1.0, True])
@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("cosine", "data_std"),
        ("polynomial", "degree"),
        ("variance_preserving", "beta_min"),
        ("variance_preserving", "beta_max"),
        ("variance_exploding", "sigma_min"),
        ("variance_exploding", "sigma_max"),
        ("noise_level", "sigma_max"),
    ],
)
def test_parameters_of_paths_are_numbers_in_their_range(name, parameter, wrong):
    with pytest.raises(ValueError, match=parameter):
        PATHS[name](**{parameter: wrong})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_time_that_misses_a_node_of_a_table_by_rounding_has_the_rates_of_the_node(dtype):
    """The rates jump at nodes, which are the timesteps that networks are trained at."""
    path = PATHS["discrete"]()
    t = torch.arange(1000, dtype=torch.float64) / 1000
    rates = path(t).d_alpha
    for other in (path.time(path.log_snr(t)), t.nextafter(t - 1), t.nextafter(t + 1)):
        found = path(other[1:].to(dtype)).d_alpha
        torch.testing.assert_close(found.double(), rates[1:], rtol=1e-4, atol=0)
