"""Command lines, `--config` files and what never leaves them."""

import sys
from dataclasses import dataclass, field, fields

import pytest

from fm_diffusers.training.arguments import ImageArguments, TrainingArguments, parse


@dataclass
class Arguments(ImageArguments, TrainingArguments):
    widths: list[int] = field(default_factory=lambda: [32, 64])
    label_column: str = "label"

    def __post_init__(self):
        TrainingArguments.__post_init__(self)
        ImageArguments.__post_init__(self)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_file_and_flags_say_the_same(tmp_path):
    """1e-3 is a string in YAML; an empty string, a list and a flag are as easily lost."""
    text = "learning_rate: 1e-3\nwidths: [8, 16]\nlabel_column: ''\nrandom_flip: true\nseed: 5\n"
    config = write(tmp_path / "run.yaml", text)
    from_file = parse(Arguments, ["--config", config])
    words = "--learning_rate 1e-3 --widths 8 16 --label_column= --random_flip --seed 5"
    assert from_file == parse(Arguments, words.split())
    assert from_file.learning_rate == 1e-3 and from_file.label_column == ""


def test_flags_win_over_the_file(tmp_path):
    config = write(tmp_path / "run.yaml", "widths: [8]\nrandom_flip: true\nmax_train_steps: null")
    args = parse(Arguments, ["--widths", "4", "2", "--config", config, "--random_flip", "False"])
    assert (args.widths, args.random_flip, args.max_train_steps) == ([4, 2], False, None)


def test_the_command_of_a_run_repeats_it():
    words = (
        "--seed 3 --widths 8 16 --push_to_hub --label_column= --report_to none --hub_token hf_x"
    )
    args = parse(Arguments, words.split())
    command = args.command()
    assert "hf_x" not in command and "hub_token" not in args.public()
    args.hub_token = None
    assert parse(Arguments, command.split()) == args


def test_the_command_line_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "9"])
    assert parse(Arguments).seed == 9


def test_every_default_is_accepted_as_a_flag():
    default = Arguments()
    assert parse(Arguments, default.command().split()) == default
    assert {f.name for f in fields(default)} - set(default.public()) == {"hub_token"}


def test_no_mixed_precision_is_not_a_boolean(tmp_path):
    file = write(tmp_path / "run.yaml", "mixed_precision: no")
    assert parse(Arguments, ["--config", file]).mixed_precision == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leaning_rate: 1", r"holds \['leaning_rate'\], the script takes \['output_dir'"),
        ("seed: [1", "'.*run.yaml' is no YAML: while parsing"),
        ("- seed", r"must hold `name: value` lines, got \['seed'\]"),
    ],
)
def test_wrong_files_are_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(Arguments, ["--config", write(tmp_path / "run.yaml", text)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train_batch_size": 0}, "--train_batch_size must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"learning_rate": -1.0}, "--learning_rate must be at least 0, got -1.0"),
        ({"max_grad_norm": 0.0}, "--max_grad_norm must be positive, got 0.0"),
        (
            {"lr_scheduler": "piecewise_constant"},
            "unknown --lr_scheduler 'piecewise_constant': choose one of linear",
        ),
        ({"ema_decay": 2.0}, r"--ema_decay must lie in \[0, 1\], got 2.0"),
        ({"streaming": True}, "--streaming cannot count epochs in advance: set --max_train_steps"),
        (
            {"overwrite_output_dir": True, "resume_from_checkpoint": "latest"},
            "--overwrite_output_dir deletes what --resume_from_checkpoint latest would read",
        ),
        ({"report_to": ["wandb"], "hub_token": "hf_x"}, "would be logged by wandb"),
        ({"hub_model_id": "user/hf_x", "hub_token": "hf_x"}, "holds the token"),
    ],
)
def test_impossible_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**kwargs)


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match="--config 'run.yaml' is not a file"):
        parse(Arguments, ["--config", "run.yaml"])


def test_trackers_that_are_not_installed_are_refused():
    args = Arguments(report_to=["tensorboard", "tensorbord"])
    with pytest.raises(ValueError, match="--report_to tensorbord is not installed, there are"):
        args.trackers  # noqa: B018
    assert Arguments(report_to="none").trackers == []
