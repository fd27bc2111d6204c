"""What the user says in place of a configuration leaves nothing of the value that it replaces."""

import diffusers
import pytest
import torch
from swapping import assert_same, sample

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.scheduling.overrides import LEFTOVERS

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOURCES = {
    "unipc": diffusers.UniPCMultistepScheduler(**FLOW),
    "unipc karras": diffusers.UniPCMultistepScheduler(use_karras_sigmas=True, **FLOW),
    "edm": diffusers.EDMEulerScheduler(),
    "sde": diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "refresh": diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "karras": diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "flux": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    "stable diffusion": diffusers.PNDMScheduler(skip_prk_steps=True),
    "trained": diffusers.DDIMScheduler(trained_betas=[0.01] * 1000),
    "ours": GaussianFlowScheduler(
        path="polynomial",
        path_kwargs={"degree": 2.0},
        sampling_path="cosine",
        sampling_path_kwargs={"data_std": 1.0},
        solver="unipc",
        solver_kwargs={"solver_order": 3},
        diffusion="memoryless",
        diffusion_kwargs={"scale": 0.5},
        grid="karras",
        grid_kwargs={"rho": 5.0},
    ),
}
#: Other values for what has parameters of its own: all of a table's that take none.
OTHER = {
    "path": ["linear", "cosine"],
    "sampling_path": [None, "linear"],
    "solver": ["heun", "ddim", "predictor_corrector", "dpm_solver++"],
    "diffusion": [None, "zero_ends", "constant"],
    "grid": [None, "uniform", "logistic", "flow_match", "logit_normal"],
}
PAIRS = [(name, value) for name, values in OTHER.items() for value in values]


def test_every_word_with_parameters_is_tried():
    assert {name for name in LEFTOVERS if f"{name}_kwargs" in LEFTOVERS[name]} == set(OTHER)
    arguments = GaussianFlowScheduler().config
    assert {name for name in arguments if f"{name}_kwargs" in arguments} == set(OTHER)


@pytest.mark.parametrize("source", SOURCES)
def test_another_value_comes_without_the_parameters_of_the_first(source, convert):
    before = convert(SOURCES[source])
    for name, value in PAIRS:
        made = convert(SOURCES[source], **{name: value})
        same = before.config[name] == value
        expected = before.config[f"{name}_kwargs"] if same else None
        assert (made.config[name], made.config[f"{name}_kwargs"]) == (value, expected)


@pytest.mark.parametrize("source", SOURCES)
def test_parameters_that_are_given_and_values_that_are_the_same_stay(source, convert):
    before = convert(SOURCES[source])
    again = GaussianFlowScheduler.from_config(
        before.config, **{n: before.config[n] for n in OTHER}
    )
    assert all(again.config[f"{n}_kwargs"] == before.config[f"{n}_kwargs"] for n in OTHER)
    made = convert(SOURCES[source], grid="logistic", grid_kwargs={"scale": 2.0})
    assert made.config.grid_kwargs == {"scale": 2.0}


@pytest.mark.parametrize("source", ["unipc", "unipc karras", "edm", "sde", "karras", "ours"])
def test_our_own_grid_is_where_it_is_without_a_source(source, convert):
    """No spacing of theirs is left: the levels are those of a scheduler that never had one."""
    swapped = convert(SOURCES[source], grid=None, t_min=None, diffusion=None, sampling_path=None)
    c = swapped.config
    same = {k: c[k] for k in ("path", "path_kwargs", "prediction_type", "time_convention")}
    same |= {k: c[k] for k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    plain = GaussianFlowScheduler(**same)
    for scheduler in (swapped, plain):
        scheduler.set_timesteps(9)
    torch.testing.assert_close(swapped.timesteps, plain.timesteps)


def test_settings_of_theirs_go_with_the_word_that_replaces_them(convert):
    ode = convert(SOURCES["sde"], diffusion=None, solver="ddim")
    assert ode.config.algorithm_type == "dpmsolver++"
    assert_same(ode, convert(diffusers.DPMSolverMultistepScheduler(), solver="ddim"), 1e-9, **N)
    back = diffusers.DPMSolverMultistepScheduler.from_config(ode.config)
    assert back.config.algorithm_type == "dpmsolver++"


N = {"num_inference_steps": 9}


def test_a_spacing_replaces_the_other_two(convert):
    made = convert(SOURCES["karras"], use_beta_sigmas=True)
    assert (made.config.use_karras_sigmas, made.config.use_beta_sigmas) == (False, True)
    assert_same(made, convert(diffusers.DPMSolverMultistepScheduler(use_beta_sigmas=True)), **N)


def test_a_shift_that_is_named_is_meant(convert):
    made = convert(SOURCES["flux"], shift=2.0, solver="euler")
    assert not made.config.use_dynamic_shifting
    assert_same(made, diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0), **N)
    dynamic = convert(SOURCES["flux"], shift=2.0, use_dynamic_shifting=True)
    assert dynamic.config.use_dynamic_shifting


def test_a_schedule_replaces_trained_betas(convert):
    made = convert(SOURCES["trained"], beta_schedule="squaredcos_cap_v2")
    assert made.config.trained_betas is None
    plain = GaussianFlowScheduler(path="discrete", beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(made.betas, plain.betas)


def test_the_ends_of_the_grid_are_words_of_their_own(convert):
    """They say where the network is asked; a grid that cannot begin there says so."""
    ours = GaussianFlowScheduler(t_min=0.1, t_max=0.9)
    made = convert(ours, grid="uniform")
    assert (made.config.t_min, made.config.t_max) == (0.1, 0.9)
    with pytest.raises(ValueError, match="t_min=0.1 would have no effect: leave it out"):
        convert(ours, grid="flow_match")
    assert convert(ours, grid="flow_match", t_min=None).config.t_max == 0.9
    table = convert(diffusers.DDIMScheduler(set_alpha_to_one=False), grid=None)
    assert table.config.t_max == 1 - 1 / 1000


def test_a_calibration_rests_while_another_word_is_said(convert):
    """It names what it holds for, so that it is no leftover; see test_calibration."""
    ours = GaussianFlowScheduler()
    fit = {"log_snr": [-1.0, 0.0, 1.0], "method": {}, "readout": [1.0] * 5}
    fitted = {"for": {"grid": None}, "steps": {"4": fit}}
    made = convert(GaussianFlowScheduler(calibration=fitted), grid="uniform")
    assert made.config.calibration == fitted
    assert torch.equal(
        sample(made, num_inference_steps=4),
        sample(convert(ours, grid="uniform"), num_inference_steps=4),
    )
