"""Several processes train as one run, and none trains beside the others on its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_mnist.py"
CONFIGS = ROOT / "examples" / "accelerate_configs"
FLAGS = (
    "--dataset_name digits --block_out_channels 8 16 --lr_warmup_steps 2 --report_to none "
    "--validation_steps 1000000 --train_batch_size 128 --gradient_accumulation_steps 2 "
    "--dropout 0.1 --random_flip"
)


def launch(program, *words, processes=2, cpu="true"):
    """Run a program as a user does, without a network."""
    launcher = f"-m accelerate.commands.launch --config_file {CONFIGS / 'cpu.yaml'}"
    if processes == 1:
        launcher = "-m accelerate.commands.launch --cpu --num_processes 1 --mixed_precision no"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": cpu} if processes > 1 else {}
    return subprocess.run(
        [sys.executable, *launcher.split(), str(program), *FLAGS.split(), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(output, steps, *words, processes=2):
    done = launch(
        SCRIPT, "--output_dir", output, "--max_train_steps", steps, *words, processes=processes
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def state(checkpoint):
    """Return everything that a run goes on from: weights, average, optimizer, rate, place."""
    pickles = sorted(checkpoint.glob("*.bin")) + sorted(checkpoint.glob("custom_checkpoint_*"))
    loaded = {path.name: torch.load(path, weights_only=False) for path in pickles}
    loaded |= load_file(checkpoint / "model.safetensors")
    loaded["custom_checkpoint_2.pkl"].pop("seconds")
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


def test_two_processes_see_different_data_and_noise_and_have_equal_weights(tmp_path):
    """3 steps of 2 batches on each of 2 processes are 12 of the 14 batches of an epoch."""
    probe = Path(__file__).with_name("distributed_probe.py")
    words = f"--output_dir {tmp_path / 'out'} --max_train_steps 3 --lr_warmup_steps 0".split()
    launcher = f"-m accelerate.commands.launch --config_file {CONFIGS / 'cpu.yaml'}"
    done = subprocess.run(
        [sys.executable, *launcher.split(), probe, tmp_path, *FLAGS.split(), *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{k}.json").read_text()) for k in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert len(first["weights"]) == 6
    assert first["weights"] == second["weights"] and len(set(first["weights"])) == 3
    assert len(first["images"]) == len(second["images"]) == 6 * 128
    assert len(set(first["images"]) & set(second["images"])) < 10  # a few digits are twice there
    assert len(set(first["noise"] + second["noise"])) == 12
    figures = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (figures["batch_size"], figures["processes"]) == (2 * 2 * 128, 2)


@pytest.mark.parametrize(
    ("processes", "workers"),
    [
        (2, 0),
        pytest.param(2, 2, marks=pytest.mark.slow),  # each is two more launches
        pytest.param(1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(processes, workers, tmp_path):
    """4 (2 processes) or 7 (1) updates an epoch: step 3 is within one, with two batches open."""
    options = ["--checkpointing_steps", 1, "--dataloader_num_workers", workers]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    train(whole, 6, *options, processes=processes)
    resume = ["--resume_from_checkpoint", whole / "checkpoint-3"]
    said = train(rest, 6, *options, *resume, processes=processes)
    assert f"resumed from {whole / 'checkpoint-3'}" in said
    for step in (4, 6):
        name = f"checkpoint-{step}"
        assert_equal(state(rest / name), state(whole / name))
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert_equal(load_file(rest / weights), load_file(whole / weights))


def test_processes_that_would_train_beside_each_other_are_refused(tmp_path):
    done = launch(SCRIPT, "--output_dir", tmp_path, "--max_train_steps", 1, cpu="false")
    assert done.returncode != 0
    assert "2 processes were started, but each would train on its own" in done.stderr
    assert "ACCELERATE_USE_CPU=true" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_configurations_that_ship(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes == yaml.safe_load(file.read_text())["num_processes"]
    assert "tested" in file.read_text().partition("\ncompute_environment")[0].lower()


def test_an_epoch_without_a_batch_for_every_process_is_refused(tmp_path):
    done = launch(SCRIPT, "--output_dir", tmp_path, "--train_batch_size", 1000)
    assert done.returncode != 0
    assert "--train_batch_size 1000 on 2 processes exceeds the 1797 samples" in done.stderr
    assert not (tmp_path / "model_index.json").exists()
