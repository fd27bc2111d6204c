"""Where steps start and what the network is fed in them, for what a user gives."""

import numpy as np
import pytest
import torch

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.scheduling.plan import evaluation_times
from fm_diffusers.scheduling.timetable import bounds_of

SIGMAS, FED = [0.9, 0.6, 0.2], [950.0, 500.0, 100.0]


@pytest.mark.parametrize("solver", ["midpoint", "heun", "rk4"])
def test_inside_a_step_the_network_is_fed_on_the_line_to_what_is_given_next(solver):
    scheduler = GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(sigmas=SIGMAS, timesteps=FED)
    nodes = evaluation_times(scheduler._plan.steps).numpy()
    expected = np.interp(nodes, [0.1, 0.4, 0.8, 1.0], [*FED, 0.0])  # t = 1 - sigma
    assert len(nodes) >= 6
    np.testing.assert_allclose(scheduler._plan.fed.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("solver", ["midpoint", "predictor_corrector"])
@pytest.mark.parametrize("sigmas", [[0.5], SIGMAS])
def test_before_an_end_at_an_infinite_timestep_it_is_fed_as_the_clock_goes(solver, sigmas):
    config = {"time_convention": "log_sigma", "solver": solver, "diffusion": "constant"}
    by_clock, given = GaussianFlowScheduler(**config), GaussianFlowScheduler(**config)
    by_clock.set_timesteps(sigmas=sigmas)
    starts = by_clock.clock.time_of_sigma(torch.tensor(sigmas, dtype=torch.float64))
    given.set_timesteps(
        sigmas=sigmas, timesteps=(by_clock.clock.to_timestep(starts) + 0.25).tolist()
    )
    assert given.timesteps.isfinite().all()
    last = evaluation_times(given._plan.steps) >= starts[-1] - 1e-6
    moved = (given._plan.fed - by_clock._plan.fed)[last]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))


def test_no_more_noise_than_there_is_and_no_end_may_be_given():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.4])  # pure noise is the first that may
    assert scheduler.sigmas.tolist() == pytest.approx([1.0, 0.4, 0.0])
    scheduler.set_timesteps(sigmas=[1.0, 0.4, 0.1, 0.0])  # an end that is given is the end
    assert scheduler.sigmas.tolist() == pytest.approx([1.0, 0.4, 0.1, 0.0])
    scheduler.set_timesteps(sigmas=[1 + 5e-7, 0.4])  # rounding is none
    assert scheduler._plan.times[0] == 0
    scheduler.set_timesteps(timesteps=[1.0])  # of several these would be noise levels
    assert scheduler.sigmas.tolist() == pytest.approx([0.001, 0.0])
    scheduler.set_timesteps(timesteps=[1.5, 0.4])  # some are above all noise levels
    with pytest.raises(ValueError, match="look like noise levels"):
        scheduler.set_timesteps(timesteps=[1.0, 0.4])
    for sigmas in ([1.01, 0.5], [0.5, -0.1], [0.5, 0.5], [0.2, 0.5], []):
        with pytest.raises(ValueError, match="sigmas must"):
            scheduler.set_timesteps(sigmas=sigmas)
    with pytest.raises(ValueError, match="timesteps must be numbers"):
        scheduler.set_timesteps(timesteps=[500.0, 0.0])  # of timesteps the end is never one


def test_lists_that_contradict_each_other_or_the_count_are_refused():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(2, sigmas=[0.9, 0.5])
    with pytest.raises(ValueError, match="must have one length, got 2 and 1"):
        scheduler.set_timesteps(sigmas=[0.9, 0.5], timesteps=[900.0])
    with pytest.raises(ValueError, match="num_inference_steps=3 contradicts 2 sigmas"):
        scheduler.set_timesteps(3, sigmas=[0.9, 0.5])
    with pytest.raises(ValueError, match="must be a list of numbers"):
        scheduler.set_timesteps(sigmas=0.5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (None, None, False)),
        ({"clip_sample": True, "clip_sample_range": 2.0}, (2.0, None, False)),
        ({"thresholding": True, "clip_sample": True}, (None, 0.995, False)),
        ({"solver": "ddim"}, (None, None, True)),
        ({"solver": "ddim", "diffusion": "memoryless"}, (None, None, False)),
    ],
    ids=["none", "clip", "threshold", "ddim", "noisy ddim"],
)
def test_bounds_are_those_of_the_configuration(config, expected):
    found = bounds_of(GaussianFlowScheduler(**config).config)
    assert (found.clip, found.quantile, found.keep_noise) == expected
    assert found.most == 1.0
    larger = GaussianFlowScheduler(**config, sample_max_value=2.0)
    assert bounds_of(larger.config).most == 2.0


def test_noise_in_some_steps_alone():
    scheduler = GaussianFlowScheduler(diffusion="flow_grpo", solver="ddim")
    scheduler.set_timesteps(4, noisy_steps=[1])
    noisy = [step.std > 0 for step in scheduler._plan.steps]
    assert noisy == [False, True, False, False]
    scheduler.set_timesteps(4, noisy_steps=[0, 1, 2])
    assert [step.std > 0 for step in scheduler._plan.steps] == [True, True, True, False]
    scheduler.set_timesteps(4, noisy_steps=torch.tensor([2, 0, 0]))
    assert [step.std > 0 for step in scheduler._plan.steps] == [True, False, True, False]
    for steps in ([3], [-1], [0.5], torch.tensor(2.0), [True, False], np.array([False])):
        with pytest.raises(ValueError, match="must be intervals by their numbers, from 0 to 2"):
            scheduler.set_timesteps(4, noisy_steps=steps)


def test_a_grid_without_effect_is_told_where_it_is_asked_for():
    scheduler = GaussianFlowScheduler(grid="beta57")
    with pytest.warns(UserWarning, match=r"say where the steps start, grid='beta57'") as told:
        scheduler.set_timesteps(sigmas=[1.0, 0.4])
    assert told[0].filename == __file__
