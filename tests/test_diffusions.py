import math

import pytest
import torch
from covers import each
from oracles import RATES, STEPS

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS, Diffusion, get_diffusion, windowed
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
    "dance": lambda c, t, p, d: c**2 * torch.ones_like(t),
    # 2 beta^2 times the derivative of log(e^(l^.3) + 10) by l = beta/alpha, and that of l by -t
    "er_sde": lambda c, t, p, d: (
        2
        * c
        * p.beta**2
        * d
        / p.alpha**2
        * 0.3
        * (p.beta / p.alpha) ** -0.7
        * (1 - 10 / (torch.exp((p.beta / p.alpha) ** 0.3) + 10))
    ),
}


@each("path", [make() for make in PATHS.values()])
@pytest.mark.parametrize("name", RATES)
@each("scale", [0.6, 1.7])
def test_coefficients_are_those_of_the_literature(path, name, scale):
    diffusion, p = get_diffusion(name, scale), path(INSIDE)
    expected = SQUARES[name](scale, INSIDE, p, p.d_alpha * p.beta - p.alpha * p.d_beta)
    torch.testing.assert_close(diffusion.squared(path, INSIDE), expected)
    torch.testing.assert_close(diffusion.noise_weight(path, INSIDE), expected / (2 * p.beta))


@each("path", [make() for make in PATHS.values()])
@pytest.mark.parametrize("name", RATES)
@each(("t", "s"), [(0.05, 0.06), (0.3, 0.7), (0.5, 0.999)])
def test_the_integral_is_the_integral(path, name, t, s):
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


#: What a step leaves of the noise, e^-2K, from the noise level v to w of the linear path.
KEPT = {
    "precise": lambda c, v, w: (w * (1 - v) / (v * (1 - w))) ** c**2,
    "dance_precise": lambda c, v, w: math.exp(-(c**2) * (1 / w - 1 / v)),
    "cps": lambda c, v, w: math.cos(c * math.pi / 2) ** 2,
    "refresh": lambda c, v, w: math.cos(c * math.pi / 2) ** 2,
    "ancestral": lambda c, v, w: 1 - c**2 * (1 - (w * (1 - v) / (v * (1 - w))) ** 2),
    "nft": lambda c, v, w: 1 - c**2 * (1 - (w * (1 - v) / (v * (1 - w))) ** 2),
    "euler_ancestral_rf": lambda c, v, w: (
        ((1 - w) * (1 + c * (w / v - 1)) / (1 - w * (1 + c * (w / v - 1)))) ** 2
    ),
}


def test_every_row_has_its_formula_here():
    assert set(SQUARES) == set(RATES) and set(KEPT) == set(STEPS)


@each("path", [make() for make in PATHS.values()])
@pytest.mark.parametrize("name", STEPS)
@each("scale", [0.0, 0.3, 1.0])
@each(("v", "w"), [(0.9, 0.85), (0.6, 0.599), (0.5, 0.02), (0.95, 0.3)])
def test_steps_forget_what_their_formula_says_at_equal_snrs_on_every_path(name, path, scale, v, w):
    ends = path.time(torch.logit(torch.tensor([1 - v, 1 - w], dtype=torch.float64)))
    kept = torch.exp(-2 * get_diffusion(name, scale).integral(path, *ends)).item()
    assert math.isclose(kept, KEPT[name](scale, v, w), rel_tol=1e-9, abs_tol=1e-15)


def test_a_step_forgets_all_noise_or_none():
    t, s = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64), torch.tensor([0.3, 0.9, 0.99])
    assert (DIFFUSIONS["refresh"].integral(Linear(), t, s.double()) == math.inf).all()
    for name in STEPS:
        assert (get_diffusion(name, 0.0).integral(Linear(), t, s.double()) == 0).all()
        assert not get_diffusion(name, 0.0).acts(Linear())
        assert get_diffusion(name, 0.01).acts(Linear())


@pytest.mark.parametrize("name", ["memoryless", "flow_grpo", "er_sde"])
def test_where_alpha_is_zero_the_end_of_the_step_says_what_it_is_divided_by(name):
    """The alpha of the denominator alone: at noise level 1, sigma^2 = c / (1 - sigma')^power."""
    t, s = torch.zeros(1, dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    diffusion = get_diffusion(name, 1.0)
    power, factor = {"memoryless": (1, 2), "flow_grpo": (1, 1), "er_sde": (1.3, 0.6)}[name]
    assert diffusion.squared(Linear(), t) == math.inf
    expected = torch.tensor([factor * 0.2**-power]).double()
    torch.testing.assert_close(diffusion.squared(Linear(), t, (t, s)), expected)
    torch.testing.assert_close(diffusion.noise_weight(Linear(), t, (t, s)), expected / 2)
    inside = torch.tensor([0.1], dtype=torch.float64)
    usual = diffusion.squared(Linear(), inside)
    assert torch.equal(diffusion.squared(Linear(), inside, (inside, s)), usual)


@each("path", [make() for make in PATHS.values()])
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_a_window_leaves_the_steps_inside_as_they_are_and_silences_the_others(name, path):
    grid = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    t, s = grid[:-1], grid[1:]
    whole = DIFFUSIONS[name]
    within = windowed(whole, [(0.1, 0.3), (0.5, 0.6)])
    inside = torch.tensor([True, True, False, False, True, False, False, False])
    assert torch.equal(within.covers(t, s), inside)
    expected = torch.where(inside, whole.integral(path, t, s), 0.0)
    assert torch.equal(within.integral(path, t, s), expected)
    assert within.acts(path) and not windowed(whole, []).acts(path)
    if whole.profile is not None:
        for kind in ("squared", "noise_weight"):
            rate, everywhere = getattr(within, kind), getattr(whole, kind)
            for at in (t, s):  # at both ends of a step, what the step says
                expected = torch.where(inside, everywhere(path, at), 0.0)
                assert torch.equal(rate(path, at, (t, s)), expected)


def test_a_narrow_window_is_not_overlooked():
    assert windowed(DIFFUSIONS["beta"], [(0.5, 0.50001)]).acts(Linear())
    assert windowed(DIFFUSIONS["cps"], [(0.5, 0.50001)]).acts(Linear())


def test_windows_are_values():
    one, other = (windowed(DIFFUSIONS["beta"], [[0.2, 0.5]]) for _ in range(2))
    assert one == other != DIFFUSIONS["beta"] and hash(one) == hash(other)


@pytest.mark.parametrize(
    "windows",
    [(0.2, 0.5), [(0.5, 0.2)], [(0.2, 0.2)], [(-0.1, 0.5)], [(0.5, 1.1)], [(0.1, 0.2, 0.3)]],
)
def test_windows_that_are_no_intervals_are_refused(windows):
    with pytest.raises(ValueError, match=r"windows must be intervals of time with 0 <= t_a < t_b"):
        windowed(DIFFUSIONS["beta"], windows)


@pytest.mark.parametrize("name", STEPS)
def test_a_row_without_a_rate_is_named_where_one_is_asked_for(name):
    message = f"the diffusion .*'{name}'.* says what a whole step does .* solver such as 'ddim'"
    for kind in ("squared", "noise_weight"):
        with pytest.raises(ValueError, match=message):
            getattr(DIFFUSIONS[name], kind)(Linear(), INSIDE)


@pytest.mark.parametrize("name", ["cps", "refresh", "ancestral", "nft", "euler_ancestral_rf"])
def test_a_share_of_the_noise_is_at_most_all_of_it(name):
    with pytest.raises(ValueError, match=r"the scale of the diffusion '.+' must be at most 1,"):
        get_diffusion(name, 1.01)


def test_a_wrong_entry_of_the_table_is_told_what_to_write(monkeypatch):
    monkeypatch.setitem(DIFFUSIONS, "mine", lambda path, t, scale: scale * t)
    with pytest.raises(
        ValueError, match=r"DIFFUSIONS\['mine'\] must be a Diffusion, .* profile\("
    ):
        get_diffusion("mine")


@pytest.mark.parametrize("wrong", [{}, {"profile": "beta"}, {"closed_integral": 2.0}])
def test_a_coefficient_is_made_of_functions(wrong):
    with pytest.raises(
        ValueError, match=r"give a diffusion a function: a profile\(path, t, scale\)"
    ):
        Diffusion(**wrong)


def test_the_example_of_a_row_that_says_what_a_step_does():
    half = Diffusion(closed_integral=lambda path, t, s, scale: torch.full_like(t, math.log(2)))
    assert half.integral(Linear(), 0.1, 0.7).item() == math.log(2)
    with pytest.raises(ValueError, match="this diffusion says what a whole step does"):
        half.squared(Linear(), 0.1)


def test_a_memoryless_process_forgets_its_start():
    assert DIFFUSIONS["memoryless"].integral(Linear(), 0.0, 0.5) == math.inf


def test_bad_coefficients_are_refused():
    with pytest.raises(ValueError, match="unknown diffusion 'brownian': choose one of constant"):
        get_diffusion("brownian")
    for scale in (-1, math.inf):
        with pytest.raises(ValueError, match=f"finite and at least 0, got {scale}"):
            get_diffusion("beta", scale)


def test_users_add_their_own():
    own = Diffusion(lambda path, t, c: c * t**2)
    torch.testing.assert_close(own.squared(Linear(), INSIDE), 2 * INSIDE**2)
    assert own.integral(Linear(), 0.1, 0.9) > 0


@pytest.mark.parametrize("scale", [1e200, 1.7e308])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_a_scale_whose_square_is_beyond_floats_is_refused_or_steps(diffusion, scale):
    """As a level of a step and as the scale of the configuration, in one way."""
    x = torch.ones(2, 3)

    def stepped(given, level):
        try:
            scheduler = GaussianFlowScheduler(
                path="cosine", diffusion=diffusion, diffusion_kwargs={"scale": given}
            )
            scheduler.set_timesteps(4)
            generator = torch.Generator().manual_seed(0)
            t = scheduler.timesteps[1]
            return scheduler.step(x, t, x, noise_level=level, generator=generator).prev_sample
        except ValueError:
            return torch.tensor(0.0)

    for sample in (stepped(0.5, scale), stepped(scale, None)):
        assert sample.isfinite().all()
