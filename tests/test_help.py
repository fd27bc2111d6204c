"""What `--help` of every script shows, and what scripts say of wrong flags before their work."""

import ast
import importlib
import runpy
from pathlib import Path

import pytest
from PIL import Image

from fm_diffusers.training.arguments import TrainingArguments
from fm_diffusers.training.command_line import parse
from fm_diffusers.training.helping import Parser
from fm_diffusers.training.outputs import MOVING, STILL, check_file

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
    assert {"train_mnist", "reflow", "evaluate", "animate", "plot_paths", "plot_theory"} < set(
        PARSED
    )


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


SAID = {
    "plot_loss_by_time": [
        ("--model /nonexistent", "there is no folder '/nonexistent'"),
        ("--model {model} --dataset_name /none", "/none"),
        ("--model {model} --dataset_name digits --image_column foo", "no column ['foo']"),
        ("--model {model} --num_times 0", "--num_times must be at least 2, got 0"),
        ("--model {model} --num_batches -1", "--num_batches must be at least 2, got -1"),
        ("--model {model} --output /no/x.png", "there is no folder /no"),
        ("--model {model} --output x.xyz", "has the ending '.xyz'"),
    ],
    "plot_paths": [
        ("--output_dir /proc/x", "cannot be written"),
        ("--pth cosine", "mean --path?"),
    ],
    "sample_mnist": [
        ("--model {model} --ode_steps 0", "--ode_steps must be at least 1, got 0"),
        ("--model {model} --sde_steps -1", "--sde_steps must be at least 1, got -1"),
    ],
    "animate": [
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--side -1", "--side must be at least 1, got -1"),
        ("--output /no/x.gif", "there is no folder /no"),
        ("--output x.xyz", "choose one of .gif"),
        ("--output {model}", "is a folder"),
    ],
    "edit_images": [
        ("--model {model} --dataset_name digits --side 0", "--side must be at least 1, got 0"),
        ("--model {model} --dataset_name digits --indices -1", "--indices must be at least 0"),
        ("--model {model} --dataset_name digits --indices 99999 {out}", "has 1797 images"),
    ],
    "evaluate": [
        ("--model {model} --max_real_images -3", "--max_real_images must be at least 4, got -3"),
        ("--model {model} --max_real_images 3", "--max_real_images must be at least 4, got 3"),
        ("--model {model} --batch_size 0", "--batch_size must be at least 1, got 0"),
        ("--model {model} --num_samples 0", "--num_samples must be at least 4, got 0"),
        (
            "--model {model} --dataset_name digits --max_real_images 8 --num_likelihood_images 0 "
            "{out}",
            "4 images of 'digits' are held out to compare with, at least 8 are needed",
        ),
    ],
    "swap_scheduler": [
        ("--model /nonexistent", "there is no folder '/nonexistent'"),
        ("--model docs", "'docs' is not a saved pipeline"),
        ("--model someone/something", "--model someone/something cannot be loaded"),
        ("--model {model}", "--trust_remote_code"),
        ("--model {model} --device cdua", "--device cdua"),
        ("--model {model} --num_inference_steps 5 0", "--num_inference_steps must be at least 1"),
        ("--model {model} --output /no/such/swap.png", "there is no folder /no/such"),
        ("--model {model} --output swap.xyz", "has the ending '.xyz'"),
        ("--model {model} --call_kwargs [", "is no JSON"),
        (
            '--model {model} --trust_remote_code --call_kwargs {{"promt":1}}',
            "--call_kwargs names ['promt']",
        ),
    ],
    "plot_theory": [("--output_dir /proc/x", "cannot be written"), ("--side 3", "is no flag")],
}


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [(script, *case) for script, cases in SAID.items() for case in cases],
)
def test_a_wrong_flag_is_told_in_one_line(script, words, said, monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("MPLBACKEND", "agg")
    file = EXAMPLES / f"{script}.py"
    out = f"--output_dir {tmp_path}"
    words = words.format(model=EXAMPLES.parent / "pretrained" / "mnist", out=out)
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setattr("sys.argv", [str(file), *words.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    told = str(ended.value.code)
    assert told.startswith(f"{script}.py: error: ") and said in told and "\n" not in told


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("old.png", "new.PNG"):
        assert check_file(tmp_path / name) == tmp_path / name
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
    with pytest.raises(ValueError, match="--output /proc/x.png cannot be written"):
        check_file("/proc/x.png")


@pytest.mark.parametrize("endings, mode", [(STILL, "RGB"), (MOVING, "P")])
def test_pillow_writes_every_ending(endings, mode, tmp_path):
    moving = {"save_all": True, "append_images": [Image.new(mode, (8, 8), 1)]}
    for end in endings:
        Image.new(mode, (8, 8)).save(tmp_path / f"x{end}", **(moving if mode == "P" else {}))
