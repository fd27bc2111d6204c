"""Configurations of `GaussianFlowScheduler`: saved, changed and refused."""

import inspect
import json
import math

import pytest
import torch
from loops import loop, start

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion

# --- configuration -------------------------------------------------------------------------------

UNUSUAL = {
    "num_train_timesteps": 500,
    "path": "polynomial",
    "path_kwargs": {"degree": 3.0},
    "prediction_type": "v_prediction",
    "solver": "unipc",
    "solver_kwargs": {"solver_order": 1, "solver_type": "bh1"},
    "diffusion": "flow_grpo",
    "diffusion_kwargs": {"scale": 0.4},
    "grid": "shifted",
    "grid_kwargs": {"shift": 5.0},
    "t_min": 0.05,
    "t_max": 0.975,
    "calibration": {"for": {}, "steps": {}},
    "sampling_path": "cosine",
    "sampling_path_kwargs": {"data_std": 1.0},
    "time_convention": "ascending",
    "shift": 2.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.6,
    "max_shift": 1.2,
    "base_image_seq_len": 128,
    "max_image_seq_len": 512,
    "shift_terminal": 0.3,
    "time_shift_type": "linear",
    "invert_sigmas": True,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "sigma_min": 0.1,
    "sigma_max": 0.95,
    "beta_start": 0.001,
    "beta_end": 0.03,
    "beta_schedule": "scaled_linear",
    "trained_betas": [0.1] * 500,
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 2.0,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "variance_type": "learned",
    "clip_sample": True,
    "clip_sample_range": 2.0,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.9,
    "sample_max_value": 3.0,
    "carry_rounding": True,
    "noise": "brownian",
}


def test_unusual_values_are_every_argument_and_differ_from_the_defaults():
    parameters = inspect.signature(GaussianFlowScheduler.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    assert UNUSUAL.keys() == defaults.keys()
    # only one of the three may be on
    same = ["use_exponential_sigmas", "use_beta_sigmas"]
    assert [name for name in defaults if UNUSUAL[name] == defaults[name]] == same


@pytest.mark.parametrize("way", ["from_pretrained", "from_config", "json"])
def test_configuration_survives_saving(way, tmp_path):
    scheduler = GaussianFlowScheduler(**UNUSUAL)
    if way == "from_pretrained":
        scheduler.save_pretrained(tmp_path)
        again = GaussianFlowScheduler.from_pretrained(tmp_path)
    elif way == "from_config":
        again = GaussianFlowScheduler.from_config(scheduler.config)
    else:
        scheduler.save_config(tmp_path)
        saved = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert saved.pop("_class_name") == "GaussianFlowScheduler"
        assert {name: value for name, value in saved.items() if name[0] != "_"} == UNUSUAL
        again = GaussianFlowScheduler.from_config(saved)
    assert {name: again.config[name] for name in UNUSUAL} == UNUSUAL
    assert again.path == scheduler.path and again.diffusion == scheduler.diffusion
    results = []
    for one in (scheduler, again):
        one.set_timesteps(5, mu=1.5)
        results.append(loop(one, start(one), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*results)


def test_from_config_changes_only_what_it_is_told():
    scheduler = GaussianFlowScheduler(**UNUSUAL)
    other = GaussianFlowScheduler.from_config(
        scheduler.config, diffusion="memoryless", diffusion_kwargs=None
    )
    changed = {name for name in UNUSUAL if other.config[name] != scheduler.config[name]}
    assert changed == {"diffusion", "diffusion_kwargs"}
    assert scheduler.config.diffusion == "flow_grpo"


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_diffusion_is_the_coefficient_of_the_table(diffusion):
    assert GaussianFlowScheduler(diffusion=diffusion).diffusion == DIFFUSIONS[diffusion]
    scaled = GaussianFlowScheduler(diffusion=diffusion, diffusion_kwargs={"scale": 0.3}).diffusion
    assert scaled == get_diffusion(diffusion, scale=0.3)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"path": "geodesic"}, r"unknown path 'geodesic': choose one of linear, cosine"),
        ({"solver": "rk5"}, r"unknown solver 'rk5': choose one of euler, midpoint"),
        ({"grid": "random"}, r"unknown grid 'random': choose one of uniform, logistic"),
        ({"prediction_type": "x0"}, r"unknown prediction type 'x0': choose one of velocity"),
        ({"diffusion": "brownian"}, r"unknown diffusion 'brownian': choose one of constant"),
        (
            {"diffusion": "beta", "diffusion_kwargs": {"scale": -1.0}},
            r"scale of a diffusion must be finite and at least 0, got -1.0",
        ),
        ({"path": "polynomial", "path_kwargs": {"degree": 0.5}}, r"degree must be at least 1"),
        ({"solver_kwargs": {"solver_order": 5}}, r"solver_order must be 1, 2, 3 or 4, got 5"),
        ({"solver_kwargs": {"solver_order": 2.0}}, r"solver_order must be 1, 2, 3 or 4, got 2.0"),
        ({"solver_kwargs": {"corrector": "no"}}, r"corrector must be True, False or None .* 'no'"),
        (
            {"solver": "euler", "solver_kwargs": {"clock": "Time"}},
            r"clock must be 'time' or 'snr', got 'Time'",
        ),
        (
            {"path": "polynomial", "path_kwargs": {"degree": math.inf}},
            r"degree must be at least 1 and finite, got inf",
        ),
        ({"solver_kwargs": {"variable": "t"}}, r"unknown variable 't': choose one of clock"),
        ({"solver_kwargs": {"form": "noise"}}, r"unknown form 'noise': choose one of velocity"),
        ({"grid_kwargs": {"scale": 0.0}}, r"scale must be positive and finite, got 0.0"),
        (
            {"grid": "karras", "grid_kwargs": {"sigma_min": 9.0, "sigma_max": 1.0}},
            r"0 < sigma_min < sigma_max must hold, got 9.0 and 1.0",
        ),
        ({"t_min": 0.8, "t_max": 0.2}, r"0 <= t_min < t_max <= 1 must hold, got 0.8 and 0.2"),
        ({"t_min": -0.1}, r"0 <= t_min < t_max <= 1 must hold, got -0.1"),
        (
            {"t_min": 0.1, "grid": "flow_match"},
            r"grid='flow_match' starts where .* t_min=0.1 would have no effect: leave it out",
        ),
        ({"t_max": 1.5}, r"0 <= t_min < t_max <= 1 must hold, got None and 1.5"),
    ],
)
def test_impossible_configurations_are_refused_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GaussianFlowScheduler(**kwargs)


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        (
            {},
            {},
            r"must be an integer of at least 1, got None; or give sigmas or timesteps",
        ),
        (
            {},
            {"num_inference_steps": 0},
            r"num_inference_steps must be an integer of at least 1, got 0",
        ),
        (
            {},
            {"num_inference_steps": -3},
            r"num_inference_steps must be an integer of at least 1, got -3",
        ),
        ({}, {"sigmas": [1.0, 0.5], "timesteps": [1000]}, r"one length, got 2 and 1"),
        ({}, {"sigmas": [1.0, 0.5], "num_inference_steps": 3}, r"contradicts 2 sigmas"),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 3}, r"pass mu to set_timesteps"),
        (
            {},
            {"timesteps": [100.0, 900.0]},
            r"must run strictly from the noise at 1000 to the data at 0",
        ),
        ({}, {"timesteps": [900.0, 0.0]}, r"to the end of the grid at 0, which is added"),
        ({}, {"timesteps": []}, r"timesteps must be numbers from 1000, pure noise"),
        (
            {"prediction_type": "epsilon"},
            {"timesteps": [1000.0, 500.0]},
            r"at t = 0.0 a model that predicts 'epsilon' .* stay strictly inside",
        ),
        (
            {"prediction_type": "score", "solver": "ddim"},
            {"sigmas": [1.0, 0.6]},
            r"at t = 0.0 a model that predicts 'score' .* stay strictly inside",
        ),
        ({}, {"timesteps": [1200.0, 500.0]}, r"must be numbers from 1000, pure noise"),
        ({"t_max": 0.5}, {"timesteps": [100.0]}, r"to the end of the grid at 500, which is added"),
    ],
)
def test_impossible_grids_are_refused(config, kwargs, message):
    scheduler = GaussianFlowScheduler(**config)
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**kwargs)
