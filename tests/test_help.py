"""What `--help` of every script shows."""

import ast
import importlib
from pathlib import Path

import pytest

from fm_diffusers.training.arguments import TrainingArguments
from fm_diffusers.training.command_line import parse
from fm_diffusers.training.helping import Parser

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
