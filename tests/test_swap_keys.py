"""Every key of every scheduler of diffusers is kept, refused by name, or known to rest."""

import importlib
import inspect
import math
import pkgutil
import sys
import types

import diffusers
import pytest
from diffusers import schedulers
from scheduler_keys import KEYS, keys_of
from test_families import CLASSES, is_replaced

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.scheduling.keys import (
    NO_STOP,
    READ,
    SETTINGS,
    SOLVER_OPTIONS,
    THEIRS,
    TORCHSDE,
)

OURS = set(inspect.signature(GaussianFlowScheduler.__init__).parameters) - {"self"}


@pytest.fixture(scope="module")
def signatures():
    """The arguments of every scheduler in the modules of diffusers."""
    absent = "torchsde" not in sys.modules
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))  # two modules import it
    found = {}
    for info in pkgutil.walk_packages(schedulers.__path__, "diffusers.schedulers."):
        if ".scheduling_" in info.name and not info.name.endswith("_flax"):
            for cls in vars(importlib.import_module(info.name)).values():
                if inspect.isclass(cls) and issubclass(cls, diffusers.ConfigMixin):
                    found[cls.__name__] = inspect.signature(cls.__init__).parameters
    if absent:
        del sys.modules["torchsde"]
    for private in ("ConfigMixin", "SchedulerMixin"):
        found.pop(private, None)
    return {
        name: {k: p.default for k, p in list(parameters.items())[1:] if p.kind != p.VAR_KEYWORD}
        for name, parameters in found.items()
    }


def test_the_list_is_all_of_diffusers(signatures):
    found = {name.removesuffix("Scheduler"): set(keys) for name, keys in signatures.items()}
    assert found == {name: keys_of(name) for name in KEYS}


@pytest.mark.parametrize(
    "name", [name for name in KEYS if is_replaced(name) or f"{name}Scheduler" in TORCHSDE]
)
def test_every_key_of_a_scheduler_that_can_be_replaced_has_a_row(name):
    assert keys_of(name) <= OURS | THEIRS


def test_no_key_is_in_two_tables_and_none_is_idle():
    tables = [READ, SOLVER_OPTIONS, SETTINGS, OURS]
    assert sum(map(len, tables)) == len(set().union(*tables))
    used = set().union(*(keys_of(name) for name in KEYS))
    assert used >= {*READ, *SOLVER_OPTIONS, *SETTINGS}
    assert set(READ.values()) <= OURS and {s.decides for s in SETTINGS.values()} <= OURS


def test_defaults_of_schedulers_that_need_torchsde(signatures):
    assert {name: signatures[name] for name in TORCHSDE} == TORCHSDE
    ours = GaussianFlowScheduler.from_config({"_class_name": "DPMSolverSDEScheduler"})
    assert (ours.config.timestep_spacing, ours.config.beta_start) == ("linspace", 0.00085)


# --- refused -------------------------------------------------------------------------------------

VALUES = {
    "s_noise": ("LTXEulerAncestralRF", 1.1),
    "tau_func": ("SASolver", math.cos),
    "use_lu_lambdas": ("DPMSolverMultistep", True),
    "interpolation_type": ("EulerDiscrete", "log_linear"),
    "lambda_min_clipped": ("DPMSolverMultistep", -5.1),
}


def test_every_setting_that_is_refused_is_tried():
    assert set(VALUES) == {name for name, row in SETTINGS.items() if row.reason}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("key", VALUES)
def test_settings_that_cannot_be_kept_are_refused_unless_ours_decides(key, named, tmp_path):
    name, value = VALUES[key]
    config = dict(getattr(diffusers, f"{name}Scheduler")(**{key: value}).config)
    config |= {"_class_name": f"{name}Scheduler"} if named else {}
    with pytest.raises(ValueError, match=f"{key}=.* cannot be kept: .*; pass {key}="):
        GaussianFlowScheduler.from_config(config)
    assert GaussianFlowScheduler.from_config(config, **{key: SETTINGS[key].neutral})
    ours = GaussianFlowScheduler.from_config(config, **{SETTINGS[key].decides: None})
    assert ours.config[key] == SETTINGS[key].neutral
    ours.save_pretrained(tmp_path)
    assert GaussianFlowScheduler.from_pretrained(tmp_path).config[key] == SETTINGS[key].neutral


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep", "UniPCMultistep"])
def test_a_last_step_that_goes_nowhere_is_refused_unless_ours_decides(name, convert):
    flow = {"use_flow_sigmas": True} if name == "UniPCMultistep" else {}
    theirs = getattr(diffusers, f"{name}Scheduler")(final_sigmas_type="sigma_min", **flow)
    with pytest.raises(ValueError, match="final_sigmas_type='sigma_min' .*our t_max"):
        convert(theirs)
    assert convert(theirs, t_max=0.99).config.t_max == 0.99
    assert NO_STOP["final_sigmas_type"].neutral == "zero"


CONSISTENCY = {
    "LCM": {"original_inference_steps": 50},
    "TCD": {"timestep_scaling": 10.0},
    "FlowMatchLCM": {"upscale_mode": "bicubic", "shift": 3.0, "num_train_timesteps": 1000},
    "CMStochasticIterative": {"clip_denoised": True, "sigma_data": 0.5},
    "SCM": {"prediction_type": "trigflow", "sigma_data": 0.5},
}


@pytest.mark.parametrize("name", CONSISTENCY)
def test_consistency_models_are_refused_by_name_and_by_key(name, convert):
    cls = getattr(diffusers, f"{name}Scheduler")
    sources = [cls().config, {"_class_name": f"{name}Scheduler"}, CONSISTENCY[name]]
    for config in sources:
        with pytest.raises(ValueError, match="consistency model"):
            GaussianFlowScheduler.from_config(config)
        with pytest.raises(ValueError, match="consistency model"):
            GaussianFlowScheduler.from_config(config, path="linear", prediction_type="sample")
    with pytest.raises(ValueError, match="consistency model"):
        convert(cls())


def test_what_another_scheduler_was_told_must_agree_with_ours():
    ours = GaussianFlowScheduler(prediction_type="flow_prediction")
    cls = diffusers.FlowMatchEulerDiscreteScheduler
    told = cls.from_config(ours.config, stochastic_sampling=True)
    with pytest.raises(ValueError, match="stochastic_sampling.*asks for diffusion='refresh'"):
        GaussianFlowScheduler.from_config(told.config)
    back = GaussianFlowScheduler.from_config(told.config, diffusion=None)
    assert GaussianFlowScheduler.from_config(back.config).config.diffusion is None


# --- said ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", "new_key": 3},
        {"shift": 1.0, "use_dynamic_shifting": False, "num_train_timesteps": 9, "new_key": 3},
        {"path": "linear", "new_key": 3},
    ],
    ids=["named", "keys", "ours"],
)
def test_a_key_that_no_table_knows_is_named(config):
    with pytest.warns(UserWarning, match="new_key=3, which is not known here"):
        ours = GaussianFlowScheduler.from_config(config)
    assert ours.config.new_key == 3  # kept for whoever wrote it
    with pytest.warns(UserWarning, match="did you mean solver"):
        GaussianFlowScheduler.from_config(config | {"solvr": "heun"})


def test_known_configurations_give_no_warning(recwarn):
    for name, expected in CLASSES.items():
        if is_replaced(name) and "Inverse" not in name and expected[0] == expected[1]:
            source = getattr(diffusers, f"{name}Scheduler")()
            GaussianFlowScheduler.from_config(
                GaussianFlowScheduler.from_config(source.config).config
            )
    assert not [w for w in recwarn if "known" in str(w.message)]


def test_an_inverse_scheduler_is_named():
    with pytest.warns(UserWarning, match="DDIMInverseScheduler goes from data to noise"):
        GaussianFlowScheduler.from_config({"_class_name": "DDIMInverseScheduler"})
