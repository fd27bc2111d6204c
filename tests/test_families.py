"""Every scheduler of diffusers is of a known family, or refused; ours goes back to them."""

import json
import math

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from swapping import assert_same, sample, timeless

from fm_diffusers import GaussianFlowScheduler

UNKNOWN = "cannot be told from .*: pass path and prediction_type"
TABLE = """CogVideoXDDIM CogVideoXDPM DDIM DDIMInverse DDIMParallel DDPM DDPMParallel DEISMultistep
    DPMSolverMultistep DPMSolverMultistepInverse DPMSolverSinglestep EulerAncestralDiscrete
    EulerDiscrete HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete LMSDiscrete PNDM RePaint
    SASolver UnCLIP UniPCMultistep"""
#: Every scheduler of diffusers: its family, or what the error says; in memory, and from JSON,
#: which has the name of the class.
CLASSES = {
    **dict.fromkeys(TABLE.split(), ("discrete",) * 2),
    **dict.fromkeys(["EDMEuler", "EDMDPMSolverMultistep"], ("cosine",) * 2),
    **dict.fromkeys(["FlowMatchEulerDiscrete", "LTXEulerAncestralRF"], ("linear",) * 2),
    **dict.fromkeys(["LCM", "TCD", "FlowMatchLCM"], ("consistency model",) * 2),
    # in memory the configurations of these two are equal
    "FlowMatchHeunDiscrete": (UNKNOWN, "linear"),
    "FlowMapEulerDiscrete": (UNKNOWN, "linear"),
    "MiniMaxH3": (UNKNOWN, "predicts z - eps"),
    "IPNDM": (UNKNOWN, "none of DDPM's"),
    **dict.fromkeys("Amused BlockRefinement DiscreteDDIM EntropyBound".split(), (UNKNOWN,) * 2),
    "RFD4Proteina": (UNKNOWN,) * 2,
    "CMStochasticIterative": ("consistency model",) * 2,
    "DDPMWuerstchen": ("a ratio from 0 to 1",) * 2,
    "Helios": ("pyramid",) * 2,
    "HeliosDMD": ("pyramid",) * 2,
    "KarrasVe": ("sigma itself",) * 2,
    "Piflow": ("a policy",) * 2,
    "SCM": ("trigonometric time",) * 2,
    "ScoreSdeVe": ("a time of its own",) * 2,
    "VQDiffusion": ("its data is discrete",) * 2,
}
REQUIRED = {
    "Amused": {"mask_token_id": 1},
    "VQDiffusion": {"num_vec_classes": 4},
    "RFD4Proteina": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
}


def is_replaced(name):
    """Whether ours takes the place of the scheduler, from its file at least."""
    return CLASSES.get(name, ("",))[-1] in ("linear", "discrete", "cosine")


def test_every_scheduler_of_diffusers_is_in_the_table():
    found = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    found = {cls.__name__ for cls in found if issubclass(cls, SchedulerMixin)}
    torchsde = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}
    assert found - torchsde == {f"{name}Scheduler" for name in CLASSES}


@pytest.mark.parametrize("convert", ["json", "memory"], indirect=True)
@pytest.mark.parametrize("name", CLASSES)
def test_family_of_every_scheduler_of_diffusers(name, convert):
    source = getattr(diffusers, f"{name}Scheduler")(**REQUIRED.get(name, {}))
    expected = CLASSES[name][convert.way == "json"]
    if expected in ("linear", "discrete", "cosine"):
        assert convert(source).config.path == expected
    else:
        with pytest.raises(ValueError, match=expected):
            convert(source)


#: Stable Audio's in memory and as it is in a file; its class needs torchsde.
COSINE = {"_class_name": "CosineDPMSolverMultistepScheduler"}
COSINE_IN_MEMORY = {
    "sigma_min": 0.3,
    "sigma_max": 500,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "prediction_type": "v_prediction",
}


@pytest.mark.parametrize("config", [COSINE, COSINE_IN_MEMORY], ids=["json", "memory"])
def test_networks_that_are_fed_the_angle_of_sigma(config):
    ours = GaussianFlowScheduler.from_config(config, solver="ddim")
    ours.set_timesteps(6)
    sigmas = torch.exp(torch.linspace(math.log(500), math.log(0.3), 6))
    torch.testing.assert_close(ours.sigmas[:-1], sigmas, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.timesteps, 2 / math.pi * torch.atan(sigmas), rtol=1e-5, atol=0)
    assert math.isclose(ours.init_noise_sigma, math.hypot(1, 500), rel_tol=1e-6)
    x, v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    root = math.hypot(1, 500)
    asked = ours.scale_model_input(x, ours.timesteps[0])
    torch.testing.assert_close(asked, x / root, rtol=1e-4, atol=0)
    _, data = ours.step(v, ours.timesteps[0], x, return_dict=False)
    torch.testing.assert_close(data, x / root**2 - 500 / root * v, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_train_timesteps": 1000}, UNKNOWN),
        ({"shift": 3.0}, UNKNOWN),  # all that is in MiniMaxH3's, whose sign is the other
        ({"num_train_timesteps": 1000, "shift": 3.0, "beta_start": 0.1}, UNKNOWN),
        ({"sigma_data": 0.5, "prediction_type": "v_prediction"}, "wrap the network"),
    ],
)
def test_ambiguous_configurations_are_refused_and_no_sign_is_guessed(config, message):
    with pytest.raises(ValueError, match=message):
        GaussianFlowScheduler.from_config(config)


def test_what_the_user_says_tells_the_family():
    for given in (
        {"path": "linear", "prediction_type": "flow_prediction"},
        {"use_flow_sigmas": True},
        {"prediction_type": "flow_prediction"},
    ):
        ours = GaussianFlowScheduler.from_config({"shift": 3.0}, **given)
        kept = ours.config.path, ours.config.prediction_type, ours.config.shift
        assert kept == ("linear", "flow_prediction", 3.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (  # Stable Diffusion 1.5's file does not say what the network predicts
            {
                "_class_name": "PNDMScheduler",
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "set_alpha_to_one": False,
                "skip_prk_steps": True,
                "steps_offset": 1,
                "clip_sample": False,
            },
            {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1},
        ),
        ({"_class_name": "EulerDiscreteScheduler"}, {"timestep_spacing": "linspace"}),
        ({"_class_name": "DDIMScheduler"}, {"timestep_spacing": "leading", "clip_sample": True}),
        ({"_class_name": "UniPCMultistepScheduler"}, {"grid": "multistep", "beta_end": 0.02}),
        ({"_class_name": "HeunDiscreteScheduler"}, {"beta_end": 0.012, "beta_start": 0.00085}),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            {"prediction_type": "flow_prediction"},
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"shift": 1.0, "path": "linear"}),
    ],
)
def test_what_a_file_does_not_say_is_the_default_of_its_class(config, expected, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    ours = GaussianFlowScheduler.from_pretrained(tmp_path, solver="ddim")
    assert {name: ours.config[name] for name in expected} == expected
    if "skip_prk_steps" in config:
        assert_same(ours, diffusers.DDIMScheduler.from_pretrained(tmp_path), num_inference_steps=9)


# --- and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", ["DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep"])
def test_a_table_of_ours_samples_equally_under_theirs(name, kind, convert):
    solver, diffusion, grid, spacing = {
        "DDIM": ("ddim", None, "ddim", "trailing"),
        "DDPM": ("ddim", "memoryless", "ddim", "leading"),
        "DPMSolverMultistep": ("dpm_solver++", None, "multistep", "linspace"),
        "UniPCMultistep": ("unipc", None, "multistep", "linspace"),
    }[name]
    ours = GaussianFlowScheduler(
        path="discrete",
        prediction_type=kind,
        time_convention="index",
        solver=solver,
        diffusion=diffusion,
        grid=grid,
        timestep_spacing=spacing,
        beta_schedule="scaled_linear",
    )
    theirs = convert(ours, getattr(diffusers, f"{name}Scheduler"))
    seed = 0 if diffusion else None
    assert_same(ours, theirs, seed=seed, num_inference_steps=20)
    assert_same(convert(theirs), ours, rtol=1e-9, seed=seed, num_inference_steps=20)


@pytest.mark.parametrize("solver", ["euler", "heun", "unipc", "dpm_solver++"])
def test_a_flow_model_of_ours_samples_equally_under_theirs(solver, convert):
    name, given, kwargs = {
        "euler": ("FlowMatchEulerDiscrete", {}, {"grid": "flow_match"}),
        "heun": ("FlowMatchHeunDiscrete", {}, {"grid": "flow_match"}),
        "unipc": ("UniPCMultistep", {"use_flow_sigmas": True}, {}),
        "dpm_solver++": (
            "DPMSolverMultistep",
            {"use_flow_sigmas": True},
            {"grid": "flow_multistep"},
        ),
    }[solver]
    ours = GaussianFlowScheduler(prediction_type="flow_prediction", solver=solver, **kwargs)
    theirs = convert(ours, getattr(diffusers, f"{name}Scheduler"), **given)
    theirs.set_timesteps(20)
    if solver == "heun":  # theirs takes an Euler step at the end: compare the samples before it
        grid = {"timesteps": theirs.timesteps[::2]}
    elif solver == "euler":
        grid = {"num_inference_steps": 20}
    else:
        grid = {"sigmas": theirs.sigmas[:-1]}
    y = sample(theirs, net=timeless, num_inference_steps=20)
    x = sample(ours, net=timeless, **grid)
    assert (x - y).norm() < (1e-2 if solver == "heun" else 1e-5) * y.norm()


FLOW_SCHEDULERS = {  # where a network of ours is exact, theirs draws the samples of ours
    "FlowMatchEulerDiscrete": {"solver": "euler", "grid": "flow_match"},
    "UniPCMultistep": {"solver": "unipc", "solver_kwargs": {"solver_order": 2}},
    "DPMSolverMultistep": {"solver": "dpm_solver++", "solver_kwargs": {"solver_order": 2}},
}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_a_flow_prediction_says_itself_what_theirs_need_to_know(name, shift, convert):
    """With the two keys by which their multistep schedulers know a flow, no word is needed."""
    ours = GaussianFlowScheduler(prediction_type="flow_prediction", shift=shift)
    ours.register_to_config(use_flow_sigmas=True, flow_shift=shift)
    theirs = convert(ours, getattr(diffusers, f"{name}Scheduler"))
    theirs.set_timesteps(20)
    y = sample(theirs, net=timeless, num_inference_steps=20)
    same = GaussianFlowScheduler(prediction_type="flow_prediction", **FLOW_SCHEDULERS[name])
    grid = {"timesteps": [1000 * s for s in theirs.sigmas[:-1].tolist()]}
    x = sample(same, net=timeless, **grid)
    assert (x - y).norm() < 1e-5 * y.norm()


@pytest.mark.parametrize("name", [n for n in CLASSES if is_replaced(n) and "Inverse" not in n])
def test_a_velocity_is_refused_by_theirs_that_read_a_prediction_type(name):
    """The others take its sign for theirs: nothing that they read could tell them."""
    cls, ours = getattr(diffusers, f"{name}Scheduler"), GaussianFlowScheduler()
    if "prediction_type" not in cls().config:
        flows = {"FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMapEulerDiscrete"}
        assert name in flows | {"LTXEulerAncestralRF", "RePaint"}
        return
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="velocity|beta_schedule"):  # UnCLIP has one schedule
        theirs = cls.from_config(ours.config)
        theirs.set_timesteps(4)
        t = theirs.timesteps[0]
        theirs.step(*((x, None, t, None, x) if name == "CogVideoXDPM" else (x, t, x)))


def test_a_sign_that_theirs_do_not_know_is_refused_there_and_not_lost(convert):
    theirs = convert(GaussianFlowScheduler(), diffusers.DDIMScheduler)
    with pytest.raises(ValueError, match="prediction_type given as velocity"):
        sample(theirs, num_inference_steps=3)
    assert convert(theirs).config.prediction_type == "velocity"


def test_by_way_of_another_scheduler_ours_comes_back_as_it_was():
    ours = GaussianFlowScheduler(diffusion="memoryless", shift=2.0, path="cosine")
    for other in (cls for cls in ours.compatibles if "dummy" not in cls.__module__):
        back = GaussianFlowScheduler.from_config(other.from_config(ours.config).config)
        assert {name: back.config[name] for name in ours.config} == dict(ours.config), other
