"""Folders that are no saved pipeline: `from_pretrained` says what they are and what to pass."""

import shutil

import pytest
import torch
from test_pipeline import draw, make_pipe

from fm_diffusers import FlowMatchingPipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mnist"
    make_pipe().save_pretrained(folder)
    return folder


def empty(root, saved):
    return root


def only_hidden(root, saved):
    (root / ".gitignore").write_text("*")
    return root


def one_level_too_high(root, saved):
    shutil.copytree(saved, root / "digits")
    shutil.copytree(saved, root / "emoji")
    (root / "notes.txt").write_text("")
    return root


def one_pipeline_below(root, saved):
    shutil.copytree(saved, root / "digits")
    (root / "checkpoint-20").mkdir()
    return root


def two_levels_too_high(root, saved):
    shutil.copytree(saved, root / "runs" / "digits")
    return root


def one_level_too_low(root, saved):
    shutil.copytree(saved, root / "digits")
    return root / "digits" / "unet"


def checkpoint_of_a_finished_run(root, saved):
    shutil.copytree(saved, root / "digits")
    (root / "digits" / "checkpoint-20").mkdir()
    (root / "digits" / "checkpoint-20" / "model.safetensors").write_text("")
    return root / "digits" / "checkpoint-20"


def only_checkpoints(root, saved):
    for name in ("checkpoint-10", "checkpoint-20", "logs"):
        (root / name).mkdir()
    return root


def checkpoint(root, saved):
    (root / "checkpoint-10").mkdir()
    (root / "checkpoint-10" / "model.safetensors").write_text("")
    return root / "checkpoint-10"


def model_alone(root, saved):
    shutil.copytree(saved / "unet", root / "net")
    return root / "net"


def scheduler_alone(root, saved):
    shutil.copytree(saved / "scheduler", root / "scheduler")
    return root / "scheduler"


def adapters(root, saved):
    (root / "pytorch_lora_weights.safetensors").write_text("")
    return root


def anything(root, saved):
    (root / "notes.txt").write_text("no pipeline here")
    return root


def index_alone(root, saved):
    shutil.copy(saved / "model_index.json", root)
    return root / "model_index.json"


FOLDERS = [
    (empty, "is not a saved pipeline, it is empty: a training writes its pipeline at the end"),
    (only_hidden, "is not a saved pipeline, it is empty"),
    (one_level_too_high, r"but .*digits, .*emoji below it are: pass"),
    (one_pipeline_below, r"but .*digits below it is: pass"),
    (two_levels_too_high, r"but .*runs.digits below it is: pass"),
    (one_level_too_low, r"but .*digits above it is: pass that"),
    (checkpoint_of_a_finished_run, r"but .*digits above it is: pass that"),
    (only_checkpoints, "checkpoint-10 is the state of a training .* --resume_from_checkpoint"),
    (checkpoint, "checkpoint-10 is the state of a training .* --resume_from_checkpoint latest"),
    (model_alone, "it is one model of one: pass the folder above"),
    (scheduler_alone, "it is the scheduler of one: pass the folder above"),
    (adapters, "it holds adapters: load_lora_weights takes them into the pipeline"),
    (anything, "it has no model_index.json: pass the folder that save_pretrained wrote"),
    (index_alone, "is a file: pass the folder that save_pretrained wrote"),
]


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize(("make", "message"), FOLDERS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_folder_that_is_no_pipeline_is_told_what_it_is(make, message, kind, tmp_path, saved):
    folder = make(tmp_path, saved)
    with pytest.raises(ValueError, match=message) as error:
        FlowMatchingPipeline.from_pretrained(kind(folder))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", [None, 3, b"user/name", ["user/name"], {}])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="must be a folder or a Hub id `user/name`, got"):
        FlowMatchingPipeline.from_pretrained(name)


def test_the_folder_that_the_message_names_is_a_pipeline(tmp_path, saved):
    folder = one_level_too_high(tmp_path, saved)
    with pytest.raises(ValueError) as error:
        FlowMatchingPipeline.from_pretrained(folder)
    named = str(error.value).split("but ")[1].split(", ")[0]
    pipe = FlowMatchingPipeline.from_pretrained(named)
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(pipe, 0), draw(make_pipe(), 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("told", [{"dduf_file": "pipe.dduf"}, {}])
def test_an_archive_of_diffusers_is_refused_by_name(told, tmp_path, saved):
    """diffusers before 0.41 saved and loaded pipelines in one file."""
    (tmp_path / "pipe.dduf").write_bytes(b"PK")
    folder = shutil.copytree(saved, tmp_path / "pipe") if told else tmp_path / "pipe.dduf"
    with pytest.raises(ValueError, match="DDUF" if told else "pipe.dduf' is a file: pass the fo"):
        FlowMatchingPipeline.from_pretrained(folder, **told)
