"""What is read of a checkpoint is numbers and words: a program in it is refused, not run."""

import copy
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.optim.lr_scheduler import LambdaLR

from fm_diffusers.training.checkpoints import Checkpoints
from fm_diffusers.training.manifests import write_manifest
from fm_diffusers.training.progress import Progress

RUN = {"seed": 1, "learning_rate": 0.1}


class Program:
    """A pickle that makes a folder when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def make_run(folder, width=3):
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    network = torch.nn.Linear(width, width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network, optimizer = accelerator.prepare(network, optimizer)
    ema = EMAModel(network.parameters(), decay=0.9)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(3):
        network(torch.ones(2, width)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        ema.step(network.parameters())
        optimizer.zero_grad()
    states = {"ema": ema, "lr_scheduler": scheduler, "progress": Progress()}
    states["progress"].step = 3
    return accelerator, Checkpoints(folder, run=dict(RUN), states=states)


@pytest.fixture
def run(tmp_path):
    accelerator, checkpoints = make_run(tmp_path / "out")
    checkpoints.save(accelerator, 3)
    return accelerator, checkpoints, checkpoints.folder / "checkpoint-3"


def test_nothing_but_the_optimizer_is_a_pickle_and_that_holds_tensors_alone(run):
    files = {path.name for path in run[2].iterdir()}
    states = {f"{name}.safetensors" for name in ("model", "ema", "lr_scheduler", "progress")}
    assert files == states | {"optimizer.bin", "manifest.json"}
    assert torch.load(run[2] / "optimizer.bin", weights_only=True)["state"]


def test_a_state_comes_back_as_it_was(run, tmp_path):
    accelerator, checkpoints, _ = run
    before = {name: copy.deepcopy(held.state_dict()) for name, held in checkpoints.states.items()}
    before = {name: {k: v for k, v in s.items() if k != "seconds"} for name, s in before.items()}
    with torch.no_grad():
        for weight in checkpoints.states["ema"].shadow_params:
            weight.add_(1.0)
    checkpoints.states["lr_scheduler"].last_epoch = 77
    assert checkpoints.load(accelerator, "latest")
    after = {name: held.state_dict() for name, held in checkpoints.states.items()}
    for name, state in before.items():
        for key, value in state.items():
            if key == "shadow_params":
                assert all(map(torch.equal, value, after[name][key]))
            else:
                assert json.loads(json.dumps(value)) == json.loads(json.dumps(after[name][key]))


#: Every file that a checkpoint has, or that Accelerate would read if it were there.
FILES = [
    "model.safetensors",
    "optimizer.bin",
    "ema.safetensors",
    "lr_scheduler.safetensors",
    "progress.safetensors",
    "scaler.pt",
    "scheduler.bin",
    "sampler.bin",
    "dl_state_dict.bin",
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
    "pytorch_model.bin",
    "manifest.json",
]


@pytest.mark.parametrize("way", ["torch", "pickle"])
@pytest.mark.parametrize("file", FILES)
def test_a_program_in_any_file_is_refused_in_one_line_and_not_run(file, way, run, tmp_path):
    accelerator, checkpoints, folder = run
    program = {"state": Program(tmp_path / "ran")}
    if file == "pytorch_model.bin":  # which is read where there is no other
        (folder / "model.safetensors").unlink()
    if way == "torch":
        torch.save(program, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(program))
    if file != "manifest.json":
        write_manifest(folder, RUN)  # who wrote the program writes a manifest as well
    with pytest.raises(ValueError, match="checkpoint-3") as refused:
        checkpoints.load(accelerator, "checkpoint-3")
    assert not (tmp_path / "ran").exists()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({}, "its manifest.json has no 'files'"),
        ([], "its manifest.json is missing or unreadable"),
        ({"format": 2, "files": {}, "run": {}}, "its manifest.json names no file"),
        ({"format": 2, "files": {"x": [1, "y"]}}, "its manifest.json has no 'run'"),
        ({"format": 2, "files": {"x": 1}, "run": RUN}, "missing: x"),
    ],
    ids=["empty", "no dictionary", "no files", "no run", "no such file"],
)
def test_a_manifest_that_says_nothing_is_damage(manifest, message, run):
    accelerator, checkpoints, folder = run
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"checkpoint-3 is damaged, {message}"):
        checkpoints.load(accelerator, "checkpoint-3")


def test_a_checkpoint_of_an_earlier_version_says_what_to_do(run):
    accelerator, checkpoints, folder = run
    content = json.loads((folder / "manifest.json").read_text())
    del content["format"]
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="an earlier version .*as pickles.* with --init_from"):
        checkpoints.load(accelerator, "latest")


def test_another_network_is_one_line(run, tmp_path):
    other, checkpoints = make_run(tmp_path / "out", width=5)
    message = (
        r"checkpoint-3 does not fit what this run trains \(size mismatch for .*, and 1 more\): go"
    )
    with pytest.raises(ValueError, match=message) as refused:
        checkpoints.load(other, "latest")
    assert len(str(refused.value).splitlines()) == 1


def test_arguments_that_change_what_is_learned_are_refused(run):
    accelerator, checkpoints, folder = run
    checkpoints.run |= {"learning_rate": 0.2, "path": "cosine", "backbone": "unet"}
    message = re.escape("path=None and not 'cosine', backbone=None and not 'unet': the network")
    with pytest.raises(ValueError, match=message):
        checkpoints.load(accelerator, "latest")
    del checkpoints.run["path"], checkpoints.run["backbone"]
    with pytest.warns(UserWarning, match="written with learning_rate=0.1, this run has 0.2"):
        assert checkpoints.load(accelerator, "latest")


def test_every_argument_of_every_script_stands_in_one_row(monkeypatch):
    import importlib
    from dataclasses import fields, is_dataclass

    from fm_diffusers.training.arguments import TrainingArguments
    from fm_diffusers.training.continuing import FREE, RAISES, WARNS

    examples = Path(__file__).parents[1] / "examples"
    monkeypatch.syspath_prepend(examples)
    names = set()
    for file in [*sorted(examples.glob("train_*.py")), *map(Path, ("reflow", "finetune_reward"))]:
        for value in vars(importlib.import_module(file.stem)).values():
            if isinstance(value, type) and issubclass(value, TrainingArguments):
                assert is_dataclass(value)
                names |= {f.name for f in fields(value)}
    assert names == FREE | WARNS | RAISES
    assert len(FREE) + len(WARNS) + len(RAISES) == len(names)
