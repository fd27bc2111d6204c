"""What `--help` of every script shows."""

import ast
import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from fm_diffusers.training.arguments import ImageArguments, TrainingArguments
from fm_diffusers.training.command_line import parse
from fm_diffusers.training.flow import LossArguments
from fm_diffusers.training.helping import Parser
from fm_diffusers.training.networks import NetworkArguments

EXAMPLES = Path(__file__).parents[1] / "examples"
PARSED = {
    file.stem: call.args[0].id
    for file in sorted(EXAMPLES.glob("*.py"))
    for call in ast.walk(ast.parse(file.read_text()))
    if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "parse" and call.args
}


@pytest.fixture
def parser(request, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.syspath_prepend(EXAMPLES)
    script = importlib.import_module(request.param)
    return Parser(getattr(script, PARSED[request.param]))


def test_every_training_script_is_among_them():
    assert {"train_mnist", "train_few_steps", "reflow", "evaluate", "animate"} < set(PARSED)


@pytest.mark.parametrize("parser", PARSED, indirect=True)
def test_every_flag_is_explained_in_one_group(parser):
    grouped = [action.dest for _, actions in parser.groups() for action in actions]
    assert sorted(grouped) == sorted({action.dest for action in parser._actions})
    assert [action.dest for action in parser._actions if not action.help] == []
    shown = parser.format_help()
    assert all(
        f"--{name} " in shown or f"--{name}\n" in shown for name in grouped if name != "help"
    )
    assert "This script:" in shown


@pytest.mark.parametrize(
    "words, said",
    [
        (["--max_train_stepz", "5"], "'--max_train_stepz' is no flag.* mean --max_train_steps?"),
        (["--seed=3", "--max-train-stepz=5"], "is no flag.* mean --max-train-steps?"),
        (["--seed", "3", "4"], "'4' is no flag of this script, and no value of one"),
    ],
)
def test_a_misspelt_flag_is_told_with_the_nearest(words, said):
    with pytest.raises(ValueError, match=said):
        parse(TrainingArguments, words)


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
