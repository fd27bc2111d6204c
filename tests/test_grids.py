import math

import numpy as np
import pytest
import torch
from covers import each
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import stats

from fm_diffusers.grids import GRIDS, default_parameters
from fm_diffusers.paths import PATHS, Cosine, Linear, NoiseLevel, VarianceExploding
from fm_diffusers.scheduling.parts import CONFIGURED

# the others are those of diffusers, tested against it in test_parity.py
OWN = [name for name in GRIDS if name not in CONFIGURED]

#: Paths from pure noise to pure data: on those a grid's log-SNRs agree, the ends included.
WHOLE = ["linear", "cosine", "polynomial"]

#: The variable in which each grid has equal steps, as a function of alpha and beta.
VARIABLES = {
    "logistic": lambda a, b: a / (a + b),  # shift and scale 1
    "shifted": lambda a, b: 3 * a / (3 * a + b),
    "logit_normal": lambda a, b: stats.norm.cdf(np.log(a / b), loc=1, scale=2),  # mean 1
    "log_snr": lambda a, b: np.log(a / b),
    "karras": lambda a, b: (b / a) ** (1 / 7),
    "exponential": lambda a, b: np.log(b / (a + b)),
    "beta": lambda a, b: stats.beta.cdf(a / (a + b), 0.6, 0.6),
    "polynomial": lambda a, b: np.sqrt(b / (a + b)),
    "beta57": lambda a, b: stats.beta.cdf(a / (a + b), 0.7, 0.5),
}
#: Lists of noise levels, tested against their definitions in test_named_grids.py.
LISTS = {"simple", "normal", "sgm_uniform", "bong_tangent", "ays"}


def normal_quantiles(p):
    return torch.distributions.Normal(0.5, 1.5).icdf(torch.as_tensor(p)).numpy()


def u_of(log_snr):
    return 1 / (1 + np.exp(-log_snr))


#: Parameters, and the clock u at the inner times of n steps, from the papers' formulas.
CLOCKS = [
    ("logistic", {"scale": 1.3}, lambda p: u_of(1.3 * np.log(p / (1 - p)))),
    ("logistic", {"shift": 2.0, "scale": 1.0}, lambda p: p / (p + 2 * (1 - p))),
    ("shifted", {}, lambda p: 1 - 3 * (1 - p) / (1 + 2 * (1 - p))),
    ("shifted", {"shift": 0.5}, lambda p: 1 - 0.5 * (1 - p) / (1 - 0.5 * (1 - p))),
    ("logit_normal", {"mean": 0.5, "std": 1.5}, lambda p: u_of(normal_quantiles(p))),
    ("beta", {"alpha": 0.7, "beta": 0.4}, lambda p: stats.beta.ppf(p, 0.7, 0.4)),
    ("polynomial", {"power": 3.0}, lambda p: 1 - (1 - p) ** 3),
]

#: The ratios beta/alpha at the inner times, where the ends are cut.
CUTS = [
    ("log_snr", {"sigma_max": 80.0}, lambda n: np.geomspace(80, 0.02, n)),
    ("karras", {"rho": 5.0}, lambda n: np.linspace(50**0.2, 0.02**0.2, n) ** 5),
    (
        "exponential",
        {"sigma_min": 0.1},
        lambda n: 1 / (1 / np.geomspace(1, 0.1 / 1.1, n)[1:] - 1),
    ),
]


@each(("t_min", "t_max"), [(0.0, 1.0), (0.1, 0.9)])
@each("n", [1, 2, 3, 7, 50])
@each("path_name", PATHS)
@pytest.mark.parametrize("name", OWN)
def test_n_steps_rise_strictly_between_exact_ends(name, path_name, n, t_min, t_max):
    times = GRIDS[name](n, PATHS[path_name](), t_min, t_max)
    assert times.shape == (n + 1,)
    assert times.dtype == torch.float64
    assert (times.diff() > 0).all()
    assert (times[0].item(), times[-1].item()) == (t_min, t_max)


@each("n", [2, 9, 50])
@each("path_name", WHOLE)
@pytest.mark.parametrize("name", [name for name in OWN if name != "uniform"])
def test_grids_stop_at_the_same_log_snr_on_every_path(name, path_name, n):
    expected = Linear().log_snr(GRIDS[name](n, Linear()))
    path = PATHS[path_name]()
    found = path.log_snr(GRIDS[name](n, path))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each("path_name", PATHS)
@pytest.mark.parametrize("name", VARIABLES)
def test_steps_are_equal_in_the_variable_of_the_grid(name, path_name):
    path = PATHS[path_name]()
    ends = path.time(torch.tensor([-3.0, 2.5], dtype=torch.float64)).tolist()
    kwargs = {"logistic": {"scale": 1.0}, "logit_normal": {"mean": 1.0}}.get(name, {})
    alpha, beta = (c.numpy() for c in path(GRIDS[name](8, path, *ends, **kwargs))[:2])
    steps = np.diff(VARIABLES[name](alpha, beta))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-8)


def test_every_grid_has_a_variable_here():
    assert {*VARIABLES, *LISTS, "uniform"} == set(OWN)


@pytest.mark.parametrize(("name", "kwargs", "clock"), CLOCKS)
def test_quantiles_agree_with_their_formulas(name, kwargs, clock):
    path, n = Cosine(), 9
    alpha, beta = (c.numpy() for c in path(GRIDS[name](n, path, **kwargs)[1:-1])[:2])
    np.testing.assert_allclose(alpha / (alpha + beta), clock(np.arange(1, n) / n), rtol=1e-9)


@pytest.mark.parametrize(("name", "kwargs", "ratios"), CUTS)
def test_cut_grids_agree_with_their_formulas(name, kwargs, ratios):
    """The last ratio is followed by the data; the first is the noise itself."""
    path, n = Cosine(), 9
    alpha, beta = (c.numpy() for c in path(GRIDS[name](n, path, **kwargs)[1:-1])[:2])
    np.testing.assert_allclose(beta / alpha, ratios(n)[-(n - 1) :], rtol=1e-9)


@pytest.mark.parametrize("n", [3, 28])
def test_shifted_is_the_static_shift_of_diffusers(n):
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
    ours = 1 - GRIDS["shifted"](n, Linear())
    torch.testing.assert_close(ours, theirs.sigmas.double(), rtol=0, atol=1e-6)


def test_uniform_is_equal_in_the_time_of_any_path():
    for path in PATHS.values():
        times = GRIDS["uniform"](4, path(), 0.2, 1.0)
        np.testing.assert_allclose(times, [0.2, 0.4, 0.6, 0.8, 1.0])


def test_logistic_of_scale_and_shift_one_is_uniform_on_the_linear_path():
    times = GRIDS["logistic"](7, Linear(), scale=1.0)
    torch.testing.assert_close(times, GRIDS["uniform"](7, Linear()))


def test_more_shift_means_more_steps_at_the_noise():
    times = [GRIDS["logistic"](7, Linear(), shift=shift)[1:-1] for shift in (0.5, 1.0, 3.0)]
    assert (times[0] > times[1]).all()
    assert (times[1] > times[2]).all()


def test_the_default_grid_spreads_out_with_the_number_of_steps():
    scales = [default_parameters(n, noisy=False)["scale"] for n in (1, 6, 7, 12, 13, 500)]
    assert scales == sorted(scales)
    assert scales[0] == 1.0
    shifts = [default_parameters(n, noisy=True)["shift"] for n in (1, 6, 7, 500)]
    assert shifts == [0.7, 0.7, 0.5, 0.5]


def test_the_step_before_a_cut_ends_at_it_however_few_there_are():
    (_, inner, _), path = GRIDS["log_snr"](2, Linear(), sigma_min=0.02), Linear()
    assert path.log_snr(inner).item() == pytest.approx(-math.log(0.02))


def test_one_leading_step_of_a_table_begins_at_its_first_timestep():
    assert GRIDS["ddim"](1, PATHS["discrete"]()).tolist() == pytest.approx([0.999, 1.0])


def test_ends_inside_the_cuts_are_kept_without_a_cut():
    times = GRIDS["log_snr"](4, Linear(), 0.1, 0.9)
    expected = np.linspace(-math.log(9), math.log(9), 5)
    np.testing.assert_allclose(Linear().log_snr(times), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("logistic", {"shift": 0.0}, "shift must be positive and finite, got 0.0"),
        ("logistic", {"scale": -1.0}, "scale must be positive and finite, got -1.0"),
        ("shifted", {"shift": -2.0}, "shift must be positive and finite, got -2.0"),
        ("shifted", {"shift": math.inf}, "shift must be positive and finite, got inf"),
        ("logit_normal", {"std": 0.0}, "std must be positive and finite, got 0.0"),
        ("logit_normal", {"mean": math.inf}, "mean must be finite, got inf"),
        ("karras", {"rho": math.nan}, "rho must be positive and finite, got nan"),
        ("beta", {"alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
        ("beta", {"beta": -0.5}, "beta must be positive and finite, got -0.5"),
        ("polynomial", {"power": 0.0}, "power must be positive and finite, got 0.0"),
        ("karras", {"sigma_min": 60.0}, "0 < sigma_min < sigma_max must hold, got 60.0 and 50.0"),
        ("log_snr", {"sigma_min": 0.0}, "0 < sigma_min < sigma_max must hold, got 0.0 and"),
        ("exponential", {"sigma_max": 0.01}, "0 < sigma_min < sigma_max must hold, got 0.02"),
    ],
)
def test_impossible_parameters_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        GRIDS[name](5, Linear(), **kwargs)


@pytest.mark.parametrize("grid", ["log_snr", "karras", "exponential"])
@pytest.mark.parametrize("ends", [(0.985, 0.995), (0.002, 0.01)])
def test_a_cut_outside_the_ends_cuts_nothing(grid, ends):
    times = GRIDS[grid](4, PATHS["linear"](), *ends)
    assert (times.diff() > 0).all() and (times[0], times[-1]) == ends


@pytest.mark.parametrize(
    ("grid", "ends"), [("log_snr", (0.99, 1.0)), ("log_snr", (0.0, 0.01)), ("karras", (0.0, 0.01))]
)
def test_an_infinite_end_without_a_cut_on_the_way_is_refused(grid, ends):
    with pytest.raises(ValueError, match="would be infinitely long: give a sigma_min"):
        GRIDS[grid](4, PATHS["linear"](), *ends)


# --- cuts that follow the path -------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["log_snr", "karras"])
@pytest.mark.parametrize("path", [NoiseLevel(500.0), NoiseLevel(2.0), VarianceExploding(0.1, 500)])
def test_by_default_steps_are_equal_up_to_ends_of_finite_ratio(grid, path):
    alpha, beta = (c.numpy() for c in path(GRIDS[grid](9, path))[:2])
    ends = (beta / alpha)[0], max((beta / alpha)[-1], 0.02)
    steps = np.diff(VARIABLES[grid](alpha, beta)[: -1 if beta[-1] == 0 else None])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)
    assert ends[0] == pytest.approx(path.sigma_max)


@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        (NoiseLevel(500.0), {"sigma_max": 50.0}, r"sigma_max=50 leaves .* = 500 one step away"),
        (VarianceExploding(), {"sigma_min": 1.0}, r"sigma_min=1 leaves .* = 0.01 one step away"),
    ],
)
@pytest.mark.parametrize("grid", ["log_snr", "karras", "exponential"])
def test_a_cut_far_from_an_end_of_finite_ratio_warns(grid, path, kwargs, message):
    with pytest.warns(UserWarning, match=message):
        GRIDS[grid](6, path, **kwargs)


@each("path_name", PATHS)
@pytest.mark.parametrize("grid", OWN)
def test_no_grid_warns_by_itself(grid, path_name, recwarn):
    GRIDS[grid](6, PATHS[path_name]())
    assert not [w for w in recwarn if "one step away" in str(w.message)]


# --- what cannot be laid out ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "ddim",
            {"t_max": 0.5},
            r"t_max=0.5 lies before the last start of grid='ddim', t = 0.999",
        ),
        ("multistep", {"t_max": 0.5}, r"t_max=0.5 lies before .* grid='multistep'.*: leave t_max"),
        ("euler_discrete", {"t_max": 0.9}, r"t_max=0.9 lies before .* grid='euler_discrete'"),
        (
            "flow_match",
            {"t_max": 0.5},
            r"t_max=0.5 lies before the last start of grid='flow_match",
        ),
        ("flow_multistep", {"t_max": 0.5}, r"t_max=0.5 lies before .* grid='flow_multistep'"),
        ("flow_match", {"num_train_timesteps": 1}, r"grid='flow_match' has no 5 distinct starts"),
        ("flow_match", {"shift": 0.0}, r"shift must be positive and finite, got 0.0"),
        ("flow_multistep", {"first": 0.1, "last": 0.5}, r"0 <= last < first <= 1 must hold, got"),
        ("flow_multistep", {"first": math.nan}, r"first must be finite, got nan"),
        ("ddim", {"steps_offset": 999}, r"steps_offset=999 moves 5 leading timesteps to 999 to"),
        ("ddim", {"steps_offset": math.nan}, r"steps_offset must be finite, got nan"),
        ("ddim", {"num_train_timesteps": 4}, r"a table of 4 timesteps has no grid of 5: take"),
        ("ddim", {"timestep_spacing": "lu"}, r"timestep_spacing must be one of .* got 'lu'"),
        ("logit_normal", {"mean": math.nan}, r"mean must be finite, got nan"),
        ("logit_normal", {"mean": 900.0}, r"crowd the steps more than float64 tells apart"),
        ("logistic", {"shift": 1e300, "scale": 30.0}, r"crowd the steps more than float64"),
        ("logistic", {"shift": "3"}, r"shift must be positive and finite, got '3': give a number"),
        ("karras", {"rho": None}, r"rho must be positive and finite, got None"),
        ("karras", {"sigma_min": "1"}, r"0 < sigma_min < sigma_max must hold, got '1' and 50.0"),
        ("karras", {"sigma_max": math.nan}, r"must hold, got 0.02 and nan: they are ratios"),
        ("polynomial", {"power": [2]}, r"power must be positive and finite, got \[2\]"),
    ],
)
def test_what_cannot_be_laid_out_says_why(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        GRIDS[name](5, Linear(), **kwargs)


def test_a_table_is_not_left_by_an_offset_at_its_full_length():
    with pytest.raises(ValueError, match=r"steps_offset=1 moves 1000 .* to 1 to 1000, but the"):
        GRIDS["ddim"](1000, Linear(), steps_offset=1)
    assert GRIDS["ddim"](1000, Linear())[0] == 0


@pytest.mark.parametrize("grid", ["flow_match", "flow_multistep"])
@pytest.mark.parametrize("path_name", ["variance_preserving", "variance_exploding", "noise_level"])
def test_a_grid_from_pure_noise_is_told_of_a_path_without(grid, path_name):
    with pytest.raises(ValueError, match=rf"grid='{grid}' goes from .* lies beyond .* grid=None"):
        GRIDS[grid](5, PATHS[path_name]())
