"""Broken and hostile folders: one line that names what is wrong, soon, and no code of theirs."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch
from hostile_files import (
    ASIDE,
    CODE,
    HOSTILE,
    MODULARS,
    NETWORK,
    RAN,
    edit,
    program,
    write,
    zipped_bomb,
)
from test_pipeline import draw, make_pipe

from fm_diffusers import FlowMatchingModularPipeline, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.files import MOST_BYTES, MOST_LEVELS, read_json

#: Errors that a user may meet, and that say themselves what is wrong.
CLEAR = (ValueError, OSError, ImportError)
#: Generous, for a slow machine that does other things too.
SECONDS, LENGTH = 10, 1100


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    make_pipe().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy of a saved pipeline, as a notebook in it sees it."""
    folder = tmp_path / "case" / "model"
    shutil.copytree(saved, folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield folder


def blocks(folder, **options):
    """Load the components of a modular pipeline."""
    pipe = FlowMatchingModularPipeline.from_pretrained(folder)
    pipe.load_components(**options)
    return pipe


def refused(load, folder):
    """Return the one line with which a folder is refused, and see that nothing of it ran."""
    start = time.perf_counter()
    with pytest.raises(CLEAR) as error:
        load(folder)
    seconds, message = time.perf_counter() - start, str(error.value)
    assert not (folder.parent / RAN).exists(), "code of the folder ran"
    assert seconds < SECONDS and len(message) < LENGTH and message.count("\n") <= 1
    assert str(folder) in message
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line(name, folder):
    HOSTILE[name](folder)
    message = refused(FlowMatchingPipeline.from_pretrained, folder)
    if name.startswith("code: ") and "AutoModel" not in name:
        assert any(
            part in message
            for part in (
                "run its code",
                "no class",
                "pickle",
                "must say",
                "no file of safetensors",
            )
        )


@pytest.mark.parametrize("name", MODULARS)
def test_a_hostile_folder_is_refused_by_blocks_too(name, folder):
    MODULARS[name](folder)
    refused(blocks, folder)


@pytest.mark.parametrize("name", ASIDE)
def test_code_that_lies_aside_does_not_run(name, folder):
    ASIDE[name](folder)
    pipe = FlowMatchingPipeline.from_pretrained(folder)
    assert not (folder.parent / RAN).exists()
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(pipe, 0), draw(make_pipe(), 0), rtol=1e-5, atol=1e-5)


def test_there_are_enough_of_them():
    assert len(HOSTILE) + len(MODULARS) > 400 and len(CODE) > 35


# --- the user's word -----------------------------------------------------------------------------

NET = """
from diffusers import UNet2DModel
class Mine(UNet2DModel):
    pass
"""


def test_code_of_a_component_runs_at_the_users_word(folder):
    write("unet/mine.py", program(folder) + NET, folder)
    edit("model_index.json", {"unet": ["mine", "Mine"]}, folder)
    assert "trust_remote_code=True" in refused(FlowMatchingPipeline.from_pretrained, folder)
    pipe = FlowMatchingPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipe.unet).__name__ == "Mine" and (folder.parent / RAN).exists()


def test_a_module_that_the_user_has_imported_is_his_own(folder, monkeypatch):
    # diffusers looks up by what a class is loaded in the module that holds it
    write("mine_imported.py", NET + "from diffusers import ModelMixin", folder)
    edit("model_index.json", {"unet": ["mine_imported", "Mine"]}, folder)
    refused(FlowMatchingPipeline.from_pretrained, folder)
    monkeypatch.delitem(sys.modules, "mine_imported", raising=False)
    __import__("mine_imported")
    assert type(FlowMatchingPipeline.from_pretrained(folder).unet).__name__ == "Mine"


def test_a_component_that_is_passed_does_not_lend_its_trust(folder):
    CODE["module of the folder"](folder)
    refused(lambda path: FlowMatchingPipeline.from_pretrained(path, unet=make_pipe().unet), folder)


def test_a_component_that_is_passed_is_not_read(folder):
    write(NETWORK, "[", folder)
    FlowMatchingPipeline.from_pretrained(folder, unet=make_pipe().unet)


def test_pickles_are_read_at_the_users_word_as_numbers_alone(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(make_pipe().unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    for load in (FlowMatchingPipeline.from_pretrained, blocks):
        assert "use_safetensors=False" in refused(load, folder)
    FlowMatchingPipeline.from_pretrained(folder, use_safetensors=False)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(zipped_bomb(folder))
    refused(lambda path: FlowMatchingPipeline.from_pretrained(path, use_safetensors=False), folder)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * MOST_LEVELS * 2, "no valid JSON"),
        ('{"a":' * (MOST_LEVELS + 1) + "1" + "}" * (MOST_LEVELS + 1), "deeper than 32 levels"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ("3", "must hold a dictionary, got 3"),
        (b"\xff", "no valid JSON"),
    ],
)
def test_what_is_no_json_of_ours_says_why(text, message, tmp_path):
    write("a.json", text, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(100 * MOST_BYTES)
    with pytest.raises(ValueError, match=f"at most {MOST_BYTES} bytes, got"):
        read_json(tmp_path / "a.json")


def test_the_deepest_that_is_read(tmp_path):
    nested = json.loads('{"a":' * MOST_LEVELS + "1" + "}" * MOST_LEVELS)
    write("a.json", json.dumps(nested), tmp_path)
    assert read_json(tmp_path / "a.json") == nested


BOUNDED = """
    import json, resource, sys, warnings
    from pathlib import Path
    import hostile_files as hostile
    from fm_diffusers import FlowMatchingPipeline
    warnings.simplefilter("ignore")
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {}
    for case in sorted(Path(sys.argv[1]).iterdir()):
        hostile.HOSTILE[(case / "name").read_text()](case / "model")
        try:
            FlowMatchingPipeline.from_pretrained(case / "model")
        except (ValueError, OSError) as error:
            told[case.name] = type(error).__name__
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
    print(json.dumps({"told": told, "grown": grown}))
"""


@pytest.mark.slow
def test_sizes_that_are_claimed_are_not_taken(saved, tmp_path):
    large = [name for name in HOSTILE if "10^" in name or "1e308" in name or "deep" in name]
    large += ["unet: many blocks", "weights: header of 2^64 - 1 bytes"]
    for number, name in enumerate(large):
        shutil.copytree(saved, tmp_path / str(number) / "model")
        (tmp_path / str(number) / "name").write_text(name)
    paths = [str(Path(__file__).parent), *sys.path]
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOUNDED), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(out.stdout.splitlines()[-1])
    assert len(found["told"]) == len(large) and found["grown"] < 1_000_000  # kilobytes


def test_a_scheduler_names_the_folder_that_it_is_not_in(folder):
    edit("scheduler/scheduler_config.json", {"shift": "3"}, folder)
    with pytest.raises(ValueError, match="shift must be positive and finite, got '3'") as error:
        GaussianFlowScheduler.from_pretrained(folder / "scheduler")
    assert str(folder / "scheduler") in str(error.value)
