"""What the flags of training scripts refuse, and how they say it."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from fm_diffusers.training.arguments import ImageArguments, TrainingArguments
from fm_diffusers.training.command_line import parse
from fm_diffusers.training.flow import LossArguments
from fm_diffusers.training.networks import NetworkArguments

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_abbreviated_flags_are_not_taken_for_others():
    with pytest.raises(ValueError, match="'--conf' is no flag.* mean --config?"):
        parse(TrainingArguments, ["--conf", "file.yaml"])


@pytest.mark.parametrize("words", [["--seed", "three"], ["--backbone", "unnet"], ["--seed"]])
def test_a_wrong_value_is_told_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(NetworkArguments, words) if "--backbone" in words else parse(
            TrainingArguments, words
        )
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: argument {words[0]}: " in line


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"num_layers": 40}, "--num_layers 40 is of --backbone transformer, and unet has no use"),
        (
            {"backbone": "transformer", "block_out_channels": [8, 16]},
            r"--block_out_channels \[8, 16\] is of --backbone unet, and transformer has no use",
        ),
    ],
)
def test_sizes_of_the_other_backbone_give_a_warning(arguments, said, recwarn):
    with pytest.warns(UserWarning, match=said):
        NetworkArguments(**arguments)
    recwarn.clear()
    assert replace(NetworkArguments()) == NetworkArguments()  # whose defaults are now said
    assert not recwarn.list


def test_a_level_has_channels():
    with pytest.raises(ValueError, match="must be multiples of 8, got"):
        NetworkArguments(block_out_channels=[0])


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_a_limit_of_memory_is_a_number(limit):
    with pytest.raises(ValueError, match="--memory_limit must be at least 0 GiB, got"):
        ImageArguments(memory_limit=limit)


def test_parameters_of_couplings_are_checked_at_once():
    with pytest.raises(ValueError, match="coupling_kwargs .*'x'.* no parameters"):
        LossArguments(coupling_kwargs='{"x": 2}')


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"adam_weight_decay": -1.0}, "--adam_weight_decay must be at least 0, got -1.0"),
        ({"adam_weight_decay": float("nan")}, "--adam_weight_decay must be at least 0, got nan"),
    ],
)
def test_numbers_of_the_optimizer_are_checked(arguments, said):
    with pytest.raises(ValueError, match=said):
        TrainingArguments(**arguments)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"template": "{} {}"}, "--template must hold {} once"),
        ({"template": "a {0}"}, "--template must hold {} once"),
        ({"label_column": ""}, "prompts come from one of them"),
    ],
)
def test_prompts_come_from_classes_or_captions(arguments, said, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(ValueError, match=said):
        importlib.import_module("train_text_to_image").TextArguments(**arguments)
