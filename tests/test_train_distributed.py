"""Several processes train as one run, and none trains beside the others on its own."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import CONFIGS, LAUNCH_ONE, LAUNCH_TWO
from safetensors.torch import load_file

from fm_diffusers.training.states import read_state

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_mnist.py"
FLAGS = (
    "--dataset_name digits --block_out_channels 8 16 --lr_warmup_steps 2 --report_to none "
    "--validation_steps 1000000 --train_batch_size 128 --gradient_accumulation_steps 2 "
    "--dropout 0.1 --random_flip"
)
STATES = ("ema", "lr_scheduler", "progress")


def launch(program, *words, processes=2, first=()):
    """Run a program as a user does, without a network."""
    launcher = LAUNCH_ONE if processes == 1 else LAUNCH_TWO
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}
    return subprocess.run(
        [
            sys.executable,
            *launcher.split(),
            str(program),
            *map(str, first),
            *FLAGS.split(),
            *map(str, words),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(output, steps, *words, processes=2, program=SCRIPT, first=()):
    words = ["--output_dir", output, "--max_train_steps", steps, *words]
    done = launch(program, *words, processes=processes, first=first)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def state(checkpoint):
    """Return everything that a run goes on from: weights, average, optimizer, rate, place."""
    loaded = {name: read_state(checkpoint / f"{name}.safetensors") for name in STATES}
    loaded["optimizer"] = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    loaded |= load_file(checkpoint / "model.safetensors")
    loaded["progress"].pop("seconds")
    return loaded


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 steps on 2 processes, each of which writes down what it sees."""
    folder = tmp_path_factory.mktemp("whole")
    probe = Path(__file__).with_name("distributed_probe.py")
    train(folder / "out", 6, "--checkpointing_steps", 1, program=probe, first=[folder])
    return folder


def test_two_processes_see_different_data_and_noise_and_have_equal_weights(whole):
    """The first 3 steps of 2 batches on each of 2 processes are 12 of an epoch's 14 batches."""
    first, second = (json.loads((whole / f"rank-{k}.json").read_text()) for k in (0, 1))
    assert first["processes"] == second["processes"] == 2
    # an epoch is 4 steps of 7 batches, and 2 more steps have 4; the rate begins at 0
    assert len(first["weights"]) == 7 + 4
    assert first["weights"] == second["weights"] and len(set(first["weights"])) == 5
    assert len(first["images"]) == len(second["images"]) >= 6 * 128
    early = [set(seen["images"][: 6 * 128]) for seen in (first, second)]
    assert len(early[0] & early[1]) < 10  # a few digits are twice there
    assert len(set(first["noise"] + second["noise"])) == 2 * (7 + 4)
    figures = json.loads((whole / "out" / "training.json").read_text())
    assert (figures["batch_size"], figures["processes"]) == (2 * 2 * 128, 2)


def assert_goes_on(whole, rest, *options, processes=2):
    resume = ["--resume_from_checkpoint", whole / "checkpoint-3"]
    said = train(rest, 6, "--checkpointing_steps", 1, *options, *resume, processes=processes)
    assert f"resumed from {whole / 'checkpoint-3'}" in said
    for step in (4, 6):
        name = f"checkpoint-{step}"
        assert_equal(state(rest / name), state(whole / name))
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert_equal(load_file(rest / weights), load_file(whole / weights))


@pytest.mark.slow  # one process: test_checkpoints.py; the data of two: test_training_data.py
def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path):
    """There are 4 updates an epoch: step 3 is within one, with two batches open."""
    assert_goes_on(whole / "out", tmp_path)


@pytest.mark.slow  # two more launches each
@pytest.mark.parametrize("processes", [2, 1])
def test_a_stopped_run_whose_data_comes_from_workers_goes_on_as_well(processes, tmp_path):
    """One process has 7 updates an epoch."""
    whole, options = tmp_path / "whole", ["--dataloader_num_workers", 2]
    train(whole, 6, "--checkpointing_steps", 1, *options, processes=processes)
    assert_goes_on(whole, tmp_path / "rest", *options, processes=processes)


def test_processes_that_would_train_beside_each_other_are_refused(tmp_path, monkeypatch):
    """Each of them finds it out alone: one that was told of two, but is no rank, is enough."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = importlib.import_module("train_mnist")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [*FLAGS.split(), "--output_dir", str(tmp_path), "--max_train_steps", "1"]
    message = "2 processes were started, but each would train on its own.*ACCELERATE_USE_CPU=true"
    with pytest.raises(ValueError, match=message):
        script.main(script.parse(script.Arguments, words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_configurations_that_ship(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes == yaml.safe_load(file.read_text())["num_processes"]
    assert "tested" in file.read_text().partition("\ncompute_environment")[0].lower()


@pytest.mark.slow  # a launch; what is counted is tested in test_train_steps.py
def test_an_epoch_without_a_batch_for_every_process_is_refused(tmp_path):
    done = launch(SCRIPT, "--output_dir", tmp_path, "--train_batch_size", 1000)
    assert done.returncode != 0
    assert "--train_batch_size 1000 on 2 processes exceeds the 1797 samples" in done.stderr
    assert not (tmp_path / "model_index.json").exists()
