"""Broken and hostile LoRA files: one line that says why, and the pipeline as it was before."""

import copy
import json
import struct
import warnings

import pytest
import torch
from hostile_files import RAN, bomb, zipped_bomb
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_kohya import adapted, written
from test_lora import PIPES

from fm_diffusers.pipelines.lora import lora_layers

NAME = "pytorch_lora_weights.safetensors"
TEXT = {"adapter_name": "style"}


def first(tensors, value):
    """Return tensors with another in the place of the first."""
    return tensors | {next(iter(tensors)): value}


TENSORS = {
    "no tensors": lambda t: {},
    "other names": lambda t: {f"x.{k}": v for k, v in t.items()},
    "a layer that is not here": lambda t: {"unet.nowhere.lora_A.weight": torch.ones(2, 2)},
    "a component that is not here": lambda t: {f"evil.{k}": v for k, v in t.items()},
    "half of a pair": lambda t: {k: v for k, v in t.items() if "lora_A" in k},
    "no dimensions": lambda t: first(t, torch.tensor(1.0)),
    "one dimension": lambda t: first(t, torch.ones(7)),
    "another size": lambda t: first(t, torch.ones(2, 99)),
    "another rank": lambda t: first(t, torch.cat([[*t.values()][0]] * 2)),
    "empty": lambda t: first(t, torch.ones(0, 0)),
    "five dimensions": lambda t: first(t, torch.ones(1, 1, 1, 1, 1)),
}
METADATA = {
    "no JSON": "{",
    "list": "[1]",
    "deep": "[" * 100_000,
    "rank text": json.dumps({"unet.r": "two"}),
    "rank 0": json.dumps({"unet.r": 0}),
    "rank negative": json.dumps({"unet.r": -2}),
    "alpha text": json.dumps({"unet.lora_alpha": "x", "unet.r": 2}),
    "unknown key": json.dumps({"unet.r": 2, "unet.evil": 1}),
    "targets number": json.dumps({"unet.r": 2, "unet.target_modules": 3}),
    "a number": json.dumps(3),
}
BYTES = {
    "empty": lambda b: b"",
    "cut off": lambda b: b[: len(b) // 2],
    "zeros": lambda b: b"\0" * len(b),
    "header of 2^60": lambda b: struct.pack("<Q", 2**60) + b[8:],
    "text": lambda b: b"version https://git-lfs.github.com/spec/v1\n",
}
KOHYA = {
    "down without dimensions": ("lora_down.weight", torch.tensor(1.0)),
    "up without dimensions": ("lora_up.weight", torch.tensor(1.0)),
    "up of another rank": ("lora_up.weight", torch.ones(8, 9)),
    "alpha of two": ("alpha", torch.ones(2)),
    "alpha NaN": ("alpha", torch.tensor(float("nan"))),
    "alpha infinite": ("alpha", torch.tensor(float("inf"))),
    "down empty": ("lora_down.weight", torch.ones(0, 8)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A LoRA as it is saved, and one by kohya's names."""
    folder = tmp_path_factory.mktemp("lora")
    pipe = PIPES["unet"]()
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k"]))
    pipe.save_lora_weights(folder, **lora_layers(unet=pipe.unet))
    return folder / NAME, written(adapted("unet")[1])


@pytest.fixture
def pipe():
    return PIPES["unet"]()


def refused(pipe, folder, **options):
    """Return why an adapter is refused, and see that the pipeline is as it was."""
    before = copy.deepcopy(pipe.unet.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, OSError)) as error:
            pipe.load_lora_weights(folder, **TEXT | options)
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys() and pipe.get_list_adapters() == {}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (folder / RAN).exists() and str(error.value).count("\n") <= 1
    return str(error.value)


@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_are_no_adapter_leave_no_part(name, files, pipe, tmp_path):
    file, _ = files
    save_file(TENSORS[name](load_file(file)), tmp_path / NAME, {"format": "pt"})
    refused(pipe, tmp_path)


@pytest.mark.parametrize("name", METADATA)
def test_what_a_file_says_of_itself_is_checked(name, files, pipe, tmp_path):
    file, _ = files
    said = {"format": "pt", "lora_adapter_metadata": METADATA[name]}
    save_file(load_file(file), tmp_path / NAME, said)
    assert str(tmp_path) in refused(pipe, tmp_path)


@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_was_cut_off_or_changed_is_named(name, files, pipe, tmp_path):
    file, _ = files
    (tmp_path / NAME).write_bytes(BYTES[name](file.read_bytes()))
    assert str(tmp_path) in refused(pipe, tmp_path)


@pytest.mark.parametrize("make", [bomb, zipped_bomb])
@pytest.mark.parametrize("place", [NAME, "pytorch_lora_weights.bin"])
@pytest.mark.parametrize("word", [{}, {"use_safetensors": False}], ids=["", "by word"])
def test_a_pickle_runs_nothing(make, place, word, pipe, tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / place).write_bytes(make(folder))
    refused(pipe, folder, **word)
    assert not (tmp_path / RAN).exists()


@pytest.mark.parametrize("name", KOHYA)
def test_weights_by_kohyas_names_are_checked(name, files, pipe, tmp_path):
    _, tensors = files
    what, value = KOHYA[name]
    key = next(key for key in tensors if key.endswith(what))
    save_file(tensors | {key: value}, tmp_path / NAME)
    refused(pipe, tmp_path)
