"""A configuration means the same from memory, from a file and by way of another scheduler."""

import inspect
import json

import diffusers
import pytest
import torch
from covers import covering
from test_families import CLASSES, REQUIRED

from fm_diffusers import GaussianFlowScheduler

OURS = set(inspect.signature(GaussianFlowScheduler.__init__).parameters) - {"self"}


def public(config):
    return {k: v for k, v in json.loads(json.dumps(dict(config))).items() if k[0] != "_"}


def outcome(config, **given):
    try:
        return public(GaussianFlowScheduler.from_config(config, **given).config)
    except ValueError as error:
        return "cannot be" if "cannot be" in str(error) else str(error)


#: Made by their constructors these have one configuration, so that only their files tell.
AMBIGUOUS = ("FlowMatchHeunDiscrete", "FlowMapEulerDiscrete")


@pytest.mark.parametrize("name", [n for n in CLASSES if n not in AMBIGUOUS])
@pytest.mark.filterwarnings("ignore:.*goes from data to noise")
def test_memory_file_and_dictionary_give_the_same(name, tmp_path):
    cls = getattr(diffusers, f"{name}Scheduler")
    source = cls(**REQUIRED.get(name, {}))
    memory, plain = outcome(source.config), outcome(dict(source.config))
    source.save_pretrained(tmp_path)
    saved = outcome(json.loads((tmp_path / "scheduler_config.json").read_text()))
    assert memory == plain == saved == outcome(cls.load_config(tmp_path))
    named = outcome(cls.from_pretrained(tmp_path, **REQUIRED.get(name, {})).config)
    assert named == saved


def test_a_configuration_of_two_schedulers_is_told_by_its_name_alone():
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    with pytest.raises(ValueError, match="cannot be told from .*: pass path and prediction_type"):
        GaussianFlowScheduler.from_config(heun.config)
    told = {"path": "linear", "prediction_type": "flow_prediction"}
    assert GaussianFlowScheduler.from_config(heun.config, **told).config.shift == 3
    repr(heun)  # names the class in its configuration, as saving does
    assert GaussianFlowScheduler.from_config(heun.config).config.path == "linear"
    flow_map = diffusers.FlowMapEulerDiscreteScheduler(shift=3.0)
    assert dict(flow_map.config).keys() <= dict(heun.config).keys()
    repr(flow_map)
    assert GaussianFlowScheduler.from_config(flow_map.config).config.solver == "flow_map"


KEPT = [
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "stochastic_sampling": True}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DDIM", {"clip_sample": True, "prediction_type": "v_prediction"}),
    ("UniPCMultistep", {"use_flow_sigmas": True, "flow_shift": 5.0}),
    ("LTXEulerAncestralRF", {"eta": 0.5}),
    ("EDMEuler", {"sigma_max": 50.0}),
]
OTHERS = [
    "EulerDiscrete",
    "DPMSolverMultistep",
    "UniPCMultistep",
    "FlowMatchEulerDiscrete",
    "LTXEulerAncestralRF",
    "LCM",
]


@pytest.mark.parametrize(("kept", "other", "file"), covering(KEPT, OTHERS, [False, True]))
def test_another_swap_in_between_changes_nothing(kept, other, file, tmp_path):
    name, config = kept
    source = getattr(diffusers, f"{name}Scheduler")(**config)
    ours = GaussianFlowScheduler.from_config(source.config)
    between = getattr(diffusers, f"{other}Scheduler").from_config(ours.config)
    way = between.config
    if file:
        between.save_pretrained(tmp_path)
        way = json.loads((tmp_path / "scheduler_config.json").read_text())
    back = GaussianFlowScheduler.from_config(way)
    assert {key: back.config[key] for key in OURS} == {key: ours.config[key] for key in OURS}


def test_of_a_known_class_only_what_it_reads_counts():
    """Keys that an earlier scheduler left behind mean nothing to the later one."""
    ddim = diffusers.DDIMScheduler(clip_sample=True, set_alpha_to_one=False)
    solver = diffusers.DPMSolverMultistepScheduler.from_config(ddim.config)
    assert not GaussianFlowScheduler.from_config(solver.config).config.clip_sample
    for left in ({"flow_shift": 5.0}, {"stochastic_sampling": True}, {"clip_sample": True}):
        clean = {"_class_name": "EulerDiscreteScheduler"}
        ours, same = (GaussianFlowScheduler.from_config(c) for c in (clean | left, clean))
        assert {k: ours.config[k] for k in OURS} == {k: same.config[k] for k in OURS}


# --- keywords ------------------------------------------------------------------------------------

MISSES = [("solvr", "solver"), ("difusion", "diffusion"), ("use_karras", "use_karras_sigmas")]
SOURCES = ["FlowMatchEulerDiscrete", "DDIM", None]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("miss", "meant"), MISSES)
def test_near_misses_are_refused_with_the_name_that_was_meant(miss, meant, source, tmp_path):
    cls = GaussianFlowScheduler if source is None else getattr(diffusers, f"{source}Scheduler")
    made = cls()
    made.save_pretrained(tmp_path)
    for way in (
        lambda **kwargs: GaussianFlowScheduler.from_config(made.config, **kwargs),
        lambda **kwargs: GaussianFlowScheduler.from_pretrained(tmp_path, **kwargs),
    ):
        with pytest.raises(ValueError, match=f"{miss}=True is none of .*did you mean {meant}"):
            way(**{miss: True})


def test_words_of_another_scheduler_are_none_over_a_configuration_of_ours():
    ours = GaussianFlowScheduler().config
    with pytest.raises(ValueError, match="flow_shift=3.0 .*did you mean"):
        GaussianFlowScheduler.from_config(ours, flow_shift=3.0)


def test_what_diffusers_says_when_it_loads_is_allowed(tmp_path):
    (tmp_path / "scheduler").mkdir()
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    loading = {"subfolder": "scheduler", "cache_dir": None, "local_files_only": True}
    loading |= {"variant": None, "revision": None, "torch_dtype": torch.float16, "token": None}
    assert GaussianFlowScheduler.from_pretrained(tmp_path, **loading).config.path == "discrete"
    _, unused = GaussianFlowScheduler.from_pretrained(
        tmp_path / "scheduler", return_unused_kwargs=True, solvr="heun"
    )
    assert unused["solvr"] == "heun"


def test_a_folder_is_translated_as_a_configuration_is(tmp_path):
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path)
    ours = GaussianFlowScheduler.from_config(str(tmp_path))
    assert (ours.config.prediction_type, ours.config.shift) == ("flow_prediction", 3.0)
