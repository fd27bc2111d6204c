"""Grids by the names of ComfyUI and RES4LYF, against their published definitions."""

import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from scipy import stats

from fm_diffusers.grids import GRIDS
from fm_diffusers.paths import PATHS, Cosine, Linear

COUNTS = [1, 2, 3, 7, 8, 20, 33, 50]


def table_of(n, levels=1000):
    """Every n-th from the end of the levels 1/1000, ..., 1, with n a fraction, and the data."""
    stride = levels / n
    return [(levels - int(i * stride)) / levels for i in range(n)] + [0.0]


def line(n, last=0.001):
    return [*np.linspace(1, last, n), 0.0]


def line_cut(n, last=0.001):
    return [*np.linspace(1, last, n + 1)[:-1], 0.0]


def quantiles(n):
    """From 1 down in equal steps of probability, of the beta distribution with 0.5 and 0.7."""
    return [*stats.beta.ppf(1 - np.arange(n) / n, 0.5, 0.7), 0.0]


def tangents(n):
    """Two stages of 1/2 + atan(-slope (x - pivot))/pi over x = 0, 1, ..., scaled to their ends."""

    def stage(length, slope, pivot, start, end):
        raw = [0.5 + math.atan(-slope * (x - pivot)) / math.pi for x in range(length)]
        span = raw[0] - raw[-1]
        return [end + (start - end) * (value - raw[-1]) / span for value in raw]

    total = n + 2
    pivot, slope = int(total * 0.6), 0.2 / (total / 40)
    first = stage(pivot, slope, pivot, 1.0, 0.5)[:-1] if pivot > 1 else []
    return first + stage(total - pivot, slope, 0, 0.5, 0.0)


LEVELS = {
    "simple": table_of,
    "normal": line,
    "sgm_uniform": line_cut,
    "beta57": quantiles,
    "bong_tangent": tangents,
}


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=repr)
@pytest.mark.parametrize("name", LEVELS)
def test_noise_levels_are_those_of_the_definition(name, path, n):
    c = path(GRIDS[name](n, path))
    expected = torch.tensor(LEVELS[name](n), dtype=torch.float64)
    expected[0] = 1  # a single step of bong_tangent starts in the middle there
    torch.testing.assert_close(c.beta / (c.alpha + c.beta), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [4, 10, 30])
def test_comfyuis_beta57_is_ours_rounded_to_its_table(n):
    indices = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.5, 0.7) * 999)
    rounded = (indices + 1) / 1000
    ours = 1 - GRIDS["beta57"](n, Linear())[:-1].numpy()
    np.testing.assert_allclose(ours, rounded, rtol=0, atol=1.5e-3)


def test_what_the_training_shifts_is_shifted_twice_by_comfyui():
    """Its end is the shifted last level, which is then shifted with all others: say so as `last`."""
    n, shift = 9, 3.0
    shifted = lambda level: shift * level / (1 + (shift - 1) * level)  # noqa: E731
    theirs = [shifted(level) for level in np.linspace(1, shifted(0.001), n + 1)[:-1]]
    u = GRIDS["sgm_uniform"](n, Linear(), last=shifted(0.001))
    np.testing.assert_allclose([shifted(level) for level in 1 - u[:-1].numpy()], theirs)


#: Our tables and diffusers' names of theirs.
TABLES = {
    "stable_diffusion": "StableDiffusionSigmas",
    "stable_diffusion_xl": "StableDiffusionXLSigmas",
    "stable_video_diffusion": "StableDiffusionVideoSigmas",
}


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=repr)
@pytest.mark.parametrize("table", TABLES)
def test_ten_aligned_steps_are_diffusers(table, path):
    ratios = torch.exp(-path.log_snr(GRIDS["ays"](10, path, table=table)))
    expected = torch.tensor(AysSchedules[TABLES[table]], dtype=torch.float64)
    torch.testing.assert_close(ratios[1:], expected[1:], rtol=1e-9, atol=0)
    assert ratios[0] == math.inf  # the path's own noise comes first


@pytest.mark.parametrize("n", [1, 2, 5, 16, 40])
def test_other_numbers_of_aligned_steps_are_linear_in_the_logarithm(n):
    levels = np.array([*AysSchedules["StableDiffusionXLSigmas"][:-1], 0.029])
    at = np.linspace(0, 1, n + 1)
    expected = np.exp(np.interp(at, np.linspace(0, 1, len(levels)), np.log(levels)))
    times = GRIDS["ays"](n, Linear(), table="stable_diffusion_xl")
    np.testing.assert_allclose(torch.exp(-Linear().log_snr(times))[1:-1], expected[1:-1])


def test_aligned_steps_start_where_stable_diffusion_does():
    path = PATHS["discrete"](beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    times = GRIDS["ays"](10, path)
    assert math.isclose(torch.exp(-path.log_snr(times[0])).item(), 14.615, rel_tol=1e-4)
    steps = 1000 * (1 - times[:-1]) - 1
    theirs = torch.tensor(AysSchedules["StableDiffusionTimesteps"], dtype=torch.float64)
    torch.testing.assert_close(steps, theirs, rtol=0, atol=5.0)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("simple", {"num_train_timesteps": 4}, "has no simple grid of 5 steps"),
        ("normal", {"last": 0.0}, "last must be a noise level between 0"),
        ("sgm_uniform", {"last": 1.0}, "last must be a noise level between 0"),
        ("bong_tangent", {"middle": 1.5}, "middle must be a noise level between 0"),
        ("bong_tangent", {"slope": -0.2}, "slope must be positive and finite, got -0.2"),
        ("ays", {"table": "flux"}, "unknown table of ays 'flux': choose one of stable_diffusion"),
        ("ays", {"t_min": 0.99}, "14.615 to 0.029, lie outside t = 0.99 to 1.0"),
        ("ays", {"t_max": 0.05}, "14.615 to 0.029, lie outside t = 0.0 to 0.05"),
    ],
)
def test_impossible_parameters_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        GRIDS[name](5, Linear(), **kwargs)
