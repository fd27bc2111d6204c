"""Attributes that diffusers' schedulers have and code reads, each against their own classes."""

import copy
import math
import pickle

import diffusers
import numpy as np
import pytest
import torch
from swapping import X

from fm_diffusers import GaussianFlowScheduler

FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
DDIM = diffusers.DDIMScheduler(clip_sample=False)
DDPM = diffusers.DDPMScheduler(clip_sample=False)
SEEDED = torch.Generator()


def swap(source, **kwargs):
    return GaussianFlowScheduler.from_config(source.config, **kwargs)


# --- attributes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_a_shift_is_set_as_flow_match_euler_sets_it(shift):
    ours, theirs = swap(FLOW, solver="euler"), copy.deepcopy(FLOW)
    for scheduler in (ours, theirs):
        scheduler.set_shift(shift)
        scheduler.set_timesteps(7)
    assert ours.config.shift == shift
    # the first and the last level of a training with the new shift, where theirs are the old one's
    fresh = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    assert math.isclose(ours.sigma_min, fresh.sigma_min, rel_tol=1e-5)
    assert ours.sigma_max == fresh.sigma_max
    fresh.set_timesteps(7)
    torch.testing.assert_close(ours.timesteps, fresh.timesteps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_the_table_has_diffusers_names(set_alpha_to_one):
    theirs = diffusers.DDIMScheduler(set_alpha_to_one=set_alpha_to_one)
    ours = swap(theirs)
    for name in ("alphas", "alphas_cumprod", "final_alpha_cumprod"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-7
        )


def test_the_previous_timestep_is_ddpms():
    ours, theirs = swap(DDPM, grid="ddim"), copy.deepcopy(DDPM)
    assert ours.previous_timestep(400) == theirs.previous_timestep(400) == 399
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    for t in theirs.timesteps:
        assert ours.previous_timestep(int(t)) == theirs.previous_timestep(t)
    with pytest.raises(ValueError, match="timestep 3 is none of the scheduler's"):
        ours.previous_timestep(3)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("noises", [1, 4])
def test_one_image_is_noised_at_many_timesteps(images, noises):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(images, 3, 4, 4, generator=generator)
    noise = torch.randn(noises, 3, 4, 4, generator=generator)
    t = torch.tensor([999, 500, 3, 0])
    ours, theirs = swap(DDIM), DDIM
    expected = theirs.add_noise(z, noise, t)
    assert expected.shape == (4, 3, 4, 4)
    torch.testing.assert_close(ours.add_noise(z, noise, t), expected)
    torch.testing.assert_close(ours.scale_noise(z, t, noise), expected)
    torch.testing.assert_close(ours.get_velocity(z, noise, t), theirs.get_velocity(z, noise, t))
    with pytest.raises(ValueError, match="must be as many, or one for all, got 2, "):
        ours.add_noise(z[:1].repeat(2, 1, 1, 1), noise, t)


# --- what would have no effect is refused --------------------------------------------------------


def test_a_configuration_is_frozen():
    ours = swap(FLOW)
    for change in (
        lambda: setattr(ours.config, "diffusion", "memoryless"),
        lambda: ours.config.__setitem__("diffusion", "memoryless"),
        lambda: setattr(ours.config, "difusion", "memoryless"),
    ):
        with pytest.raises(ValueError, match="a configuration is frozen.*from_config"):
            change()
    assert ours.config.diffusion is None
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert dict(twin.config) == dict(ours.config)
        with pytest.raises(ValueError, match="a configuration is frozen"):
            twin.config.shift = 2.0


def test_what_is_registered_takes_effect_at_once():
    ours = swap(FLOW)
    ours.set_timesteps(4)
    ours.register_to_config(diffusion="memoryless", path="cosine")
    fresh = swap(FLOW, diffusion="memoryless", path="cosine")
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        ours.step(X, 1000.0, X)  # the plan was that of another configuration
    for scheduler in (ours, fresh):
        scheduler.set_timesteps(4)
    results = [
        s.step(X, s.timesteps[1], X, torch.Generator().manual_seed(0)) for s in (ours, fresh)
    ]
    assert torch.equal(results[0].prev_sample, results[1].prev_sample)
    assert ours.path == fresh.path and ours.diffusion == fresh.diffusion
    with pytest.raises(ValueError, match="unknown solver 'hein'"):
        ours.register_to_config(solver="hein")
    assert ours.config.solver == fresh.config.solver


@pytest.mark.parametrize(
    "wrong", [{"shift": -1.0}, {"solver": "hein"}, {"path": "discrete", "beta_end": 2.0}]
)
def test_a_configuration_that_is_refused_changes_nothing(wrong):
    ours, twin = swap(FLOW), swap(FLOW)
    x = y = X
    for scheduler in (ours, twin):
        scheduler.set_timesteps(4)
    for i, t in enumerate(twin.timesteps):
        if i == 2:
            with pytest.raises(ValueError):
                ours.register_to_config(**wrong)
        x, y = ours.step(x, t, x).prev_sample, twin.step(y, t, y).prev_sample
    assert torch.equal(x, y) and dict(ours.config) == dict(twin.config)
    ours.set_timesteps(4)
    assert torch.equal(ours.timesteps, twin.timesteps)


def test_what_diffusers_registers_beside_leaves_the_plan():
    ours = swap(FLOW)
    ours.set_timesteps(4)
    timesteps = ours.timesteps
    ours.register_to_config(_name_or_path="somewhere")
    assert ours.timesteps is timesteps and repr(ours)


def test_timesteps_that_would_not_be_stepped_between_are_refused():
    ours = swap(FLOW)
    ours.set_timesteps(6)
    ours.timesteps = ours.timesteps[2:].to(torch.bfloat16)  # those of the plan are its own
    assert len(ours.timesteps) == 6
    with pytest.raises(ValueError, match="timesteps follow from set_timesteps"):
        ours.timesteps = torch.tensor([900.0, 13.0])


# --- times that are given ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ({}, {"timesteps": [1.0, 0.5, 0.1]}, "look like noise levels.*pass them as sigmas"),
        ({}, {"timesteps": [2000.0, 500.0]}, "must be numbers from 1000, pure noise"),
        ({}, {"timesteps": [math.nan]}, "must be numbers from 1000, pure noise"),
        ({}, {"timesteps": [500.0, -1.0]}, "must be numbers from 1000, pure noise"),
        ({}, {"sigmas": [1000.0, 500.0]}, "sigmas must be numbers from 1, pure noise"),
        ({}, {"sigmas": [14.6, 2.0]}, "sigmas must be numbers from 1, pure noise"),
        ({}, {"sigmas": [0.5, math.inf]}, "sigmas must be numbers from 1, pure noise"),
        ({}, {"sigmas": [0.2, 0.9]}, "sigmas must run strictly from the noise at 1"),
        ({}, {"sigmas": [0.5, 0.5]}, "sigmas must run strictly from the noise at 1"),
        ({}, {"sigmas": []}, "sigmas must be numbers from 1, pure noise"),
        (
            {"time_convention": "ascending", "invert_sigmas": True, "num_train_timesteps": 1000},
            {"timesteps": [900.0, 100.0]},
            "timesteps must run strictly from the noise at 0 to the data at 1000",
        ),
    ],
)
def test_times_out_of_range_or_on_another_scale_say_so(config, given, message):
    with pytest.raises(ValueError, match=message):
        GaussianFlowScheduler(**config).set_timesteps(**given)


@pytest.mark.parametrize("path", ["variance_preserving", "variance_exploding", "noise_level"])
@pytest.mark.parametrize(
    ("option", "mu"),
    [
        ({"shift": 3.0}, None),
        ({"shift": 0.4}, None),
        ({"shift_terminal": 0.1}, None),
        ({"use_dynamic_shifting": True}, 0.8),
    ],
    ids=str,
)
def test_grids_shift_between_the_ends_of_every_path(path, option, mu):
    ours = GaussianFlowScheduler(path=path, **option)
    for n in (1, 2, 5, 50) if "shift_terminal" not in option else (2, 5, 50):
        ours.set_timesteps(n, mu=mu)
        t = ours.to_time(ours.timesteps.double())
        assert t[0] == 0 and (t.diff() > 0).all() and t[-1] < 1
        plain = GaussianFlowScheduler(path=path)
        plain.set_timesteps(n)
        if n > 1 and option.get("shift", 3) > 1 and "shift_terminal" not in option:
            assert (ours.timesteps[1:] > plain.timesteps[1:]).all()  # nearer to the noise


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer of at least 1"),
        ({"num_inference_steps": True}, "num_inference_steps must be an integer of at least 1"),
        ({"num_inference_steps": 10**9}, "num_inference_steps must be at most 100000"),
        ({"sigmas": "abc"}, "sigmas must be a list of numbers, got 'abc'"),
        ({"sigmas": [1.0, None]}, "sigmas must be a list of numbers"),
        ({"timesteps": [[1, 2], [3]]}, "timesteps must be a list of numbers"),
        ({"timesteps": 500.0}, "timesteps must be a list of numbers, got 500.0"),
        ({"num_inference_steps": 4, "mu": "a"}, "mu must be a number, got 'a'"),
        ({"num_inference_steps": 4, "mu": math.nan}, "mu must be a finite number"),
        ({"num_inference_steps": 4, "mu": 1e9}, "mu must be a finite number"),
    ],
)
def test_arguments_of_another_type_say_so(given, message):
    with pytest.raises(ValueError, match=message):
        GaussianFlowScheduler(use_dynamic_shifting="mu" in given).set_timesteps(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_output": None}, "model_output must be a tensor .*, got NoneType"),
        ({"model_output": (X,)}, "model_output must be a tensor .*, got tuple"),
        ({"model_output": X.long()}, "model_output must be a tensor .*, got torch.int64"),
        ({"sample": X.bool()}, "sample must be a tensor .*, got torch.bool"),
        ({"timestep": np.ones(3)}, "timestep must be a number or a tensor, got array"),
        ({"timestep": 10**400}, "timestep must be a number or a tensor, got 1000"),
        ({"noise_level": [0.7]}, r"noise_level must be a number, got \[0.7\]"),
        ({"generator": 3}, "generator must be a torch.Generator, or a list of them, got 3"),
        ({"generator": [SEEDED] * 3}, "generator must be one, or a list with one for each of the"),
        ({"timestep": "a"}, "timestep must be a number or a tensor, got 'a'"),
        ({"timestep": None}, "timestep must be a number or a tensor, got None"),
        ({"timestep": torch.tensor([1.0, 2.0, 3.0])}, "timestep must be one, or one for each"),
        ({"timestep": torch.tensor([2000.0, 3.0])}, "must lie between 1000, pure noise, and 0"),
        ({"timestep": torch.tensor([math.nan, 3.0])}, "must lie between 1000, pure noise, and 0"),
        ({"noise_level": "a"}, "noise_level must be a number, got 'a'"),
        ({"noise_level": -1.0}, "scale of a diffusion must be finite and at least 0, got -1"),
    ],
)
def test_a_step_of_something_else_says_so(given, message):
    scheduler = GaussianFlowScheduler(diffusion="memoryless")
    scheduler.set_timesteps(4)
    asked = {"model_output": X, "timestep": scheduler.timesteps[0], "sample": X}
    with pytest.raises(ValueError, match=message):
        scheduler.step(**asked | given)


@pytest.mark.parametrize("timesteps", [[2000.0], [math.nan], [-3.0, 100.0], [1001]])
def test_noise_at_no_time_of_the_path_is_refused(timesteps):
    with pytest.raises(ValueError, match="must lie between 1000, pure noise, and 0, the data"):
        swap(FLOW).add_noise(X[:1], X[:1], torch.tensor(timesteps))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("add_noise", (np.ones(3), X, 500), "samples must be a tensor .*, got ndarray: pass"),
        ("add_noise", (X, 1.0, 500), "noise must be a tensor of floating-point .*, got float"),
        ("get_velocity", (X, X, "nan"), "timesteps must be a number, .*, got 'nan': give"),
        ("scale_model_input", (X, None), "timestep must be a number, .*, got None: give"),
        (
            "scale_model_input",
            (X, torch.ones(0)),
            r"one for each of 2 samples, got shape \(0,\)",
        ),
        ("set_shift", (torch.ones(0),), r"shift must be positive and finite, got tensor"),
        ("scale_model_input", (3.0, 500.0), "sample must be a tensor .*, got float: pass what"),
        ("transition", (X, 1000.0, X, "begin"), "place must be that of the transition before"),
        ("set_begin_index", (0.5,), "one of the indices .*, got index 0.5: take one of these"),
        ("set_begin_index", (np.ones(2),), "one of the indices .*: take one of these"),
        ("set_generator", ("seed",), "generator must be a torch.Generator, or a list"),
        ("first_place", (0,), "batch_size must be an integer of at least 1, got 0: pass len"),
        ("index_for_timestep", ("a",), "timestep must be a number, .*, got 'a': give"),
        ("index_for_timestep", (range(4),), r"timestep must be one number, got \[0, 1, 2, 3\]"),
    ],
)
def test_a_method_that_is_asked_something_else_says_so(name, given, message):
    scheduler = GaussianFlowScheduler(
        diffusion="memoryless", sampling_path="cosine", noise="brownian"
    )
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=message):
        getattr(scheduler, name)(*given)
