import math

import pytest
import torch

from fm_diffusers.diffusions import DIFFUSIONS, Diffusion, get_diffusion
from fm_diffusers.paths import PATHS, Discrete, Linear

INSIDE = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
# sigma_t^2 of the literature, for the scale c, on any path with beta and its D = a' b - a b'
SQUARES = {
    "constant": lambda c, t, p, d: c**2 * torch.ones_like(t),
    "beta": lambda c, t, p, d: 2 * c * p.beta,
    "beta_squared": lambda c, t, p, d: 2 * c * p.beta**2,
    "linear": lambda c, t, p, d: 2 * c * (1 - t),
    "decreasing": lambda c, t, p, d: (c * torch.cos(math.pi * t) + 1) ** 2 / 2,
    "increasing_decreasing": lambda c, t, p, d: 2 * c * torch.sin(math.pi * t) ** 2,
    "memoryless": lambda c, t, p, d: 2 * c * p.beta * d / p.alpha,
    "flow_grpo": lambda c, t, p, d: c**2 * p.beta * d / p.alpha,
    "zero_ends": lambda c, t, p, d: 2 * c * p.alpha * p.beta,
}


@pytest.mark.parametrize("path", [make() for make in PATHS.values()], ids=repr)
@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_coefficients_are_those_of_the_literature(path, name, scale):
    diffusion, p = get_diffusion(name, scale), path(INSIDE)
    expected = SQUARES[name](scale, INSIDE, p, p.d_alpha * p.beta - p.alpha * p.d_beta)
    torch.testing.assert_close(diffusion.squared(path, INSIDE), expected)
    torch.testing.assert_close(diffusion.noise_weight(path, INSIDE), expected / (2 * p.beta))


@pytest.mark.parametrize("path", [make() for make in PATHS.values()], ids=repr)
@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize(("t", "s"), [(0.05, 0.06), (0.3, 0.7), (0.5, 0.999)])
def test_the_integral_is_the_integral(path, name, t, s):
    rates = INSIDE.new_zeros(0)
    nodes = torch.linspace(t, s, 20_001, dtype=torch.float64)
    rates = DIFFUSIONS[name].squared(path, nodes) / (2 * path.beta(nodes) ** 2)
    h = (s - t) / 20_000  # Simpson
    simpson = h / 3 * (rates[0] + 4 * rates[1::2].sum() + 2 * rates[2:-1:2].sum() + rates[-1])
    torch.testing.assert_close(
        DIFFUSIONS[name].integral(path, t, s),
        simpson,
        rtol=1e-2 if isinstance(path, Discrete) else 1e-6,
        atol=0,
    )


def test_integrals_on_the_linear_path_in_closed_form():
    t, s, c = 0.2, 0.997, 1.3
    closed = {
        "constant": c**2 / 2 * (1 / (1 - s) - 1 / (1 - t)),
        "beta": c * math.log((1 - t) / (1 - s)),
        "beta_squared": c * (s - t),
        "linear": c * math.log((1 - t) / (1 - s)),
        "memoryless": c * math.log(s * (1 - t) / (t * (1 - s))),
        "flow_grpo": c**2 / 2 * math.log(s * (1 - t) / (t * (1 - s))),
        "zero_ends": c * (math.log((1 - t) / (1 - s)) - (s - t)),
    }
    for name, expected in closed.items():
        value = get_diffusion(name, c).integral(Linear(), t, s).item()
        assert math.isclose(value, expected, rel_tol=1e-12), name


def test_flow_grpo_is_its_papers_coefficient():
    sigma = 1 - INSIDE  # the noise time of the paper
    expected = 0.7**2 * sigma / (1 - sigma)
    torch.testing.assert_close(DIFFUSIONS["flow_grpo"].squared(Linear(), INSIDE), expected)


def test_a_memoryless_process_forgets_its_start():
    assert DIFFUSIONS["memoryless"].integral(Linear(), 0.0, 0.5) == math.inf


def test_bad_coefficients_are_refused():
    with pytest.raises(ValueError, match="unknown diffusion 'brownian': choose one of constant"):
        get_diffusion("brownian")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        get_diffusion("beta", -1)


def test_users_add_their_own():
    own = Diffusion(lambda path, t, c: c * t**2)
    torch.testing.assert_close(own.squared(Linear(), INSIDE), 2 * INSIDE**2)
    assert own.integral(Linear(), 0.1, 0.9) > 0
