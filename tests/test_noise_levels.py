"""Noise levels shifted and spaced anew between the ends of a path, and what networks are fed."""

import math

import numpy as np
import pytest
import torch
from covers import each

from fm_diffusers.grids import (
    GRIDS,
    RESPACINGS,
    noise_of_time,
    on_path,
    respace,
    shift_times,
    time_of_noise,
    warp,
)
from fm_diffusers.paths import PATHS, Linear, NoiseLevel, VarianceExploding, common_times
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS, as_fed
from fm_diffusers.solvers import Multistep

#: Paths from pure noise to pure data.
WHOLE = ["linear", "cosine", "polynomial"]
N = 1000


def logistic(path, n=12):
    return GRIDS["logistic"](n, path)


# --- shifts --------------------------------------------------------------------------------------


@each("shift", [0.1, 1 / 3, 1.0, 3.0, 17.0])
@pytest.mark.parametrize("path_name", PATHS)
def test_a_shift_keeps_the_ends_of_every_path_and_the_order_between(path_name, shift):
    path = PATHS[path_name]()
    times = logistic(path)
    moved = shift_times(path, times, shift)
    assert (moved[0].item(), moved[-1].item()) == (0.0, 1.0)
    assert (moved.diff() > 0).all()
    assert shift == 1 or ((moved < times)[1:-1] == (shift > 1)).all()
    # and back
    torch.testing.assert_close(shift_times(path, moved, 1 / shift), times, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.1, 3.0])
@pytest.mark.parametrize("path_name", WHOLE)
def test_from_pure_noise_to_data_a_shift_divides_every_ratio(path_name, shift):
    path = PATHS[path_name]()
    times = logistic(path)
    moved = shift_times(path, times, shift)[1:-1]
    expected = path.log_snr(times)[1:-1] - math.log(shift)
    torch.testing.assert_close(path.log_snr(moved), expected, rtol=1e-9, atol=1e-9)


def test_on_the_linear_path_the_shift_is_that_of_diffusers_bit_for_bit():
    times = GRIDS["uniform"](9, Linear())[:-1]
    for shift, terminal in ((3.0, None), (0.5, None), (2.0, 0.1), (1.0, 0.02)):
        sigmas = warp(noise_of_time(Linear(), times), shift, terminal)
        assert torch.equal(
            shift_times(Linear(), times, shift, terminal), time_of_noise(Linear(), sigmas)
        )


@pytest.mark.parametrize("path_name", PATHS)
def test_a_terminal_level_is_where_the_last_start_lies(path_name):
    path = PATHS[path_name]()
    moved = shift_times(path, logistic(path)[:-1], 3.0, 0.2)
    assert moved[0] == 0 and (moved.diff() > 0).all()
    assert noise_of_time(path, moved)[-1].item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        (Linear(), (0.0,), "shift must be positive and finite, got 0.0"),
        (Linear(), (math.nan,), "shift must be positive and finite, got nan"),
        (Linear(), ("3",), "shift must be positive and finite, got '3'"),
        (Linear(), (1.0, 1.5), "shift_terminal must lie between 0 and 1, .* got 1.5; None"),
        (Linear(), (1.0, -0.1), "shift_terminal must lie between 0 and 1, .* got -0.1"),
        (NoiseLevel(3.0), (1.0, 0.9), "between 0 and 0.75, the noise levels .* at t = 1 and 0"),
        (VarianceExploding(), (1.0, 0.001), "between 0.00990099 and 0.980392"),
    ],
)
def test_impossible_shifts_say_why(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        shift_times(path, logistic(path)[:-1], *arguments)


@each("shift", [0.1, 3.0, 17.0])
@each("sampling_path", PATHS)
@pytest.mark.parametrize("path_name", PATHS)
def test_a_shift_leaves_no_time_that_the_path_of_the_model_lacks(path_name, sampling_path, shift):
    model, own = PATHS[path_name](), PATHS[sampling_path]()
    ends = common_times(own, model)
    times = GRIDS["logistic"](12, own, *ends)
    moved = shift_times(own, times, shift, ends=ends)
    assert (moved[0].item(), moved[-1].item()) == ends
    assert (moved.diff() > 0).all()
    assert Multistep(own, model_path=model).exists(moved[1:-1]).all()


# --- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_max", [3.0, 80.0, 500.0])
@pytest.mark.parametrize("kind", RESPACINGS)
def test_spaced_levels_keep_their_ends_and_lie_on_the_path(kind, sigma_max):
    """Rounding took the first of them to t = -4.9e-15."""
    for path in (NoiseLevel(sigma_max), VarianceExploding(0.01, sigma_max)):
        for n in range(1, 60):
            starts = logistic(path, n)[:-1]
            first, last = noise_of_time(path, starts[[0, -1]]).tolist()
            levels = respace(kind, n, first, last)
            assert levels[[0, -1]].tolist() == [first, last]
            times = time_of_noise(path, levels)
            assert times.min() >= 0 and (times.diff() > 0).all()
            torch.testing.assert_close(times[[0, -1]], starts[[0, -1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("path_name", PATHS)
def test_levels_and_times_are_inverse(path_name):
    path = PATHS[path_name]()
    times = logistic(path, 40)
    torch.testing.assert_close(
        time_of_noise(path, noise_of_time(path, times)), times, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: time_of_noise(NoiseLevel(3.0), torch.tensor([0.8]).double()),
            "of 0.8 .*from 0.75 to 0 and",
        ),
        (
            lambda: time_of_noise(Linear(), torch.tensor([1.2]).double()),
            "a noise level of 1.2 lies .* shift",
        ),
        (
            lambda: on_path(Linear(), torch.tensor([0.25, -0.125]).double()),
            "a time of -0.125 lies beyond Linear",
        ),
        (lambda: respace("lu", 4, 1.0, 0.1), "unknown spacing 'lu': choose one of karras"),
        (lambda: respace("karras", 4, 0.1, 1.0), "must descend, got 0.1 to 1.0: sigma_max is"),
        (lambda: respace("karras", 4, 1.0, 0.0), "last must be positive and finite, got 0.0"),
        (lambda: respace("beta", 4, 1.0, math.nan), "last must be positive and finite, got nan"),
        (lambda: warp(torch.tensor([1.0, 0.5]), 1.0, 2.0), "shift_terminal must lie between 0"),
        (lambda: warp(torch.tensor([1.0, 0.5]), 1.0, math.nan), "shift_terminal must be finite"),
    ],
)
def test_impossible_levels_say_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_rounding_is_taken_back():
    times = torch.tensor([-4.9e-15, 0.5, 1 + 1e-12], dtype=torch.float64)
    assert on_path(Linear(), times).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="a time of -1.0000000.*e-05 "):
        on_path(Linear(), times - 1e-5)


# --- what networks are fed -----------------------------------------------------------------------


@each("sampling_path", PATHS)
@pytest.mark.parametrize("path_name", PATHS)
def test_common_times_are_those_that_both_paths_have(path_name, sampling_path):
    model, own = PATHS[path_name](), PATHS[sampling_path]()
    ends = torch.tensor(common_times(own, model), dtype=torch.float64)
    ratios = own.log_snr(ends)
    both = torch.stack([path.log_snr(torch.tensor([0.0, 1.0]).double()) for path in (model, own)])
    expected = torch.stack([both[:, 0].max(), both[:, 1].min()])
    torch.testing.assert_close(ratios, expected, rtol=1e-6, atol=1e-6)


@each("convention", TIME_CONVENTIONS)
@each("sampling_path", PATHS)
@pytest.mark.parametrize("path_name", PATHS)
def test_times_come_back_from_what_the_network_is_fed(path_name, sampling_path, convention):
    """For every pair of paths and in both precisions, up to the ends that both paths have."""
    path, row = PATHS[path_name](), TIME_CONVENTIONS[convention]
    same = path_name == sampling_path
    own = path if same else PATHS[sampling_path]()
    first, last = common_times(own, path)
    times = torch.linspace(first, last, 11, dtype=torch.float64)
    model_times = times if same else path.time(own.log_snr(times))
    for dtype, atol in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        fed = row.timestep(path, N, model_times).to(dtype)
        back = row.time(path, N, fed)
        back = back if same else own.time(path.log_snr(back))
        torch.testing.assert_close(back.double(), times, rtol=0, atol=atol)
    assert not row.sigma(own, N, times).isnan().any()
    rounded = as_fed(row, path, own, N, times)
    torch.testing.assert_close(rounded, times, rtol=0, atol=2e-5)
    assert rounded.min() >= 0 and rounded.max() <= 1
    again = rounded if same else path.time(own.log_snr(rounded))
    assert again.min() >= -1e-9 and again.max() <= 1 + 1e-9


def test_angles_are_read_in_float32_up_to_a_right_one():
    """tan(pi/2) in float32 is negative, and the logarithm of the ratio was NaN."""
    row = TIME_CONVENTIONS["angle"]
    for dtype in (torch.float32, torch.float64):
        turn = torch.tensor([1.0, 0.5, 0.0], dtype=dtype)
        np.testing.assert_allclose(row.time(Linear(), N, turn), [0.0, 0.5, 1.0], atol=1e-7)
