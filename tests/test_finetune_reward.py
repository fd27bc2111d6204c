"""Fine-tuning by a reward, from the command line on tiny networks."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import LAUNCH_TWO
from safetensors.torch import load_file
from test_train_lora import make_base

from fm_diffusers import FlowMatchingPipeline

pytest.importorskip("peft")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "validation_steps": 10**6,
    "checkpointing_steps": 10**6,
    "report_to": "none",
    "reward": "ink",
    "train_batch_size": 8,
    "group_size": 4,
    "num_inference_steps": 4,
    "window_size": 2,
    "window_every": 2,
    "max_train_steps": 2,
    "num_samples": 20,
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("finetune_reward")


def tune(script, folder, **kwargs):
    base = kwargs.pop("model", None) or make_base(folder / "base", classes=3)
    output = folder / "output"
    flags = {"model": base, "output_dir": str(output)}
    script.main(script.RewardArguments(**TINY | flags | kwargs))
    return base, output


def weights(output):
    return load_file(output / "unet" / "diffusion_pytorch_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def sampler_of(script, pipe, **kwargs):
    args = script.RewardArguments(**TINY | kwargs)
    steps = args.num_inference_steps, args.window_every
    return script.Sampler(pipe, args.dynamics, args.noise_level, *steps)


# --- what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_a_pipeline_pictures_curve_and_card_are_left(rank, script, tmp_path):
    base, output = tune(script, tmp_path, rank=rank)
    pipe = FlowMatchingPipeline.from_pretrained(output)
    assert not pipe.get_list_adapters()
    assert not equal(weights(output), weights(Path(base)))
    record = json.loads((output / "training.json").read_text())
    assert record["steps"] == 2 and record["fine-tuned from"] == Path(base).name
    card = (output / "README.md").read_text()
    for file in ("before.png", "curve.png", "samples.png"):
        assert (output / file).is_file() and f"({file})" in card
    assert (output / "pytorch_lora_weights.safetensors").is_file() == (rank is not None)
    if rank is not None:  # the adapter on the base is the pipeline
        plain = FlowMatchingPipeline.from_pretrained(base)
        plain.load_lora_weights(output)
        asked = {"class_labels": [0, 1], "num_inference_steps": 3, "output_type": "latent"}
        asked["latents"] = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(
            plain(**asked).images, pipe(**asked).images, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_run_ends_with_the_same_weights_and_curve_bit_for_bit(rank, script, tmp_path):
    run = {"max_train_steps": 6, "checkpointing_steps": 3, "rank": rank}
    base, output = tune(script, tmp_path, **run)
    straight, record = weights(output), json.loads((output / "training.json").read_text())
    curve = (output / "curve.png").read_bytes()
    again = tmp_path / "again" / "output"
    shutil.copytree(output / "checkpoint-3", again / "checkpoint-3")
    run |= {"model": base, "resume_from_checkpoint": "checkpoint-3"}
    _, output = tune(script, tmp_path / "again", **run)
    assert equal(weights(output), straight)
    assert (output / "curve.png").read_bytes() == curve
    again = json.loads((output / "training.json").read_text())
    key = "mean reward, before and after"
    assert again[key] == record[key]


@pytest.mark.slow
def test_two_processes_tune_one_network_and_resume_bit_for_bit(tmp_path):
    base = make_base(tmp_path / "base", classes=3)
    flags = TINY | {"model": base, "max_train_steps": 4, "checkpointing_steps": 2}
    launcher = f"{LAUNCH_TWO} {EXAMPLES}/finetune_reward.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    outputs = [tmp_path / "straight", tmp_path / "resumed"]
    for output in outputs:
        if output.name == "resumed":
            shutil.copytree(outputs[0] / "checkpoint-2", output / "checkpoint-2")
            flags |= {"resume_from_checkpoint": "checkpoint-2"}
        words = [f"--{name}={value}" for name, value in flags.items()]
        done = subprocess.run(
            [sys.executable, *launcher.split(), *words, f"--output_dir={output}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((outputs[0] / "training.json").read_text())
    assert record["processes"] == 2 and record["batch_size"] == 16
    assert equal(*map(weights, outputs)) and not equal(weights(outputs[0]), weights(Path(base)))


# --- the sampler ---------------------------------------------------------------------------------


def test_the_window_moves_from_the_noise_to_the_data_and_never_to_the_last_step(script, tmp_path):
    pipe = script.load(script.RewardArguments(model=make_base(tmp_path)))
    sampler = sampler_of(script, pipe, num_inference_steps=5)
    seen = []
    for batches in range(10):
        sampler.set_window(batches, 2)
        seen.append(sampler.noisy)
        stds = [step.std > 0 for step in sampler.scheduler._plan.steps]
        assert [i for i, noisy in enumerate(stds) if noisy] == sampler.noisy
    assert seen[::2] == [[0, 1], [1, 2], [2, 3], [0, 1], [1, 2]] and seen[1::2] == seen[::2]
    for size in (None, 4, 100):
        sampler.set_window(7, size)
        assert sampler.noisy == [0, 1, 2, 3]


def test_noisy_steps_replay_to_the_ratio_one_and_no_divergence(script, tmp_path):
    pipe = script.load(script.RewardArguments(model=make_base(tmp_path)))
    sampler = sampler_of(script, pipe)
    condition = torch.tensor([0, 3, 5])
    run = sampler.draw(pipe.unet, condition, 3)
    count = len(sampler.noisy)
    assert run.x.shape == (3 * count, 1, 8, 8) and run.samples.shape == (3, 1, 8, 8)
    with torch.no_grad():
        step = sampler.step(pipe.unet, run.x, run.timesteps, condition.repeat(count))
    log_prob = step.log_prob(run.following, "mean")
    torch.testing.assert_close(log_prob, run.log_prob, rtol=1e-5, atol=1e-6)
    assert (step.kl(step) == 0).all()
    assert torch.equal(run.x[3:], run.following[: 3 * (count - 1)])  # one step after the other


# --- rewards -------------------------------------------------------------------------------------


def test_the_reward_of_a_class_is_its_probability(script, tmp_path):
    args = script.RewardArguments(
        **TINY | {"model": make_base(tmp_path), "reward": "class", "dataset_name": "digits"}
    )
    asking = script.Asking.of(args, script.load(args))
    assert asking.values == [*range(10)]
    reward = script.load_reward(args, asking, torch.device("cpu"))
    digits = importlib.import_module("train_mnist").load_data(args, label_column="label")
    images, labels = digits.images[:300].float() / 127.5 - 1, digits.labels[:300]
    assert reward(images, labels.tolist()).mean() > 0.8
    assert reward(images, ((labels + 1) % 10).tolist()).mean() < 0.05


def test_a_function_of_ones_own_rewards(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def dark(images, asked):\n    return -images.flatten(1).mean(1) + len(asked)\n"
        "def one(images, asked):\n    return 1.0\n"
    )
    _, output = tune(script, tmp_path, reward="mine:dark", unconditional=True)
    before, after = json.loads((output / "training.json").read_text())[
        "mean reward, before and after"
    ].split(", ")
    assert 19 < float(before) < 21 and math.isfinite(float(after))
    with pytest.raises(ValueError, match="mine:one must return a finite number for each"):
        tune(script, tmp_path, reward="mine:one", overwrite_output_dir=True)
    with pytest.raises(ValueError, match="--reward must be class, ink or module:function"):
        tune(script, tmp_path, reward="mine:none", overwrite_output_dir=True)
    with pytest.raises(ValueError, match="No module named 'nowhere'"):
        tune(script, tmp_path, reward="nowhere:dark", overwrite_output_dir=True)


# --- what cannot be asked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dynamics": "ode"}, "--dynamics ode at --noise_level 0.7 draws no noise"),
        ({"noise_level": 0.0}, "draws no noise"),
        ({"dynamics": "flow"}, "unknown sde_type 'flow'"),
        ({"group_size": 3}, "must be whole groups of --group_size 3"),
        ({"group_size": 1}, "--group_size 1, at least 2"),
        ({"kl_weight": -1.0}, "--kl_weight must be at least 0"),
        ({"num_inference_steps": 1}, "--num_inference_steps must be at least 2"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message, script):
    with pytest.raises(ValueError, match=message):
        script.RewardArguments(**TINY | flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"class_labels": [7]}, r"class_labels must be integers in 0\.\.2"),
        ({"prompts": ["a seven"]}, "prompt was given, but the network"),
        ({"class_labels": [1], "unconditional": True}, "give one of --class_labels"),
        ({"reward_class": 1}, "--reward_class is of --reward class, got 'ink'"),
        (
            {"reward": "class", "dataset_name": "digits", "reward_class": 10},
            r"--reward_class must be integers in 0\.\.9, got \[10\]",
        ),
        (
            {"reward": "class", "dataset_name": "digits", "reward_class": "ten"},
            "--reward_class 'ten' is the name of no class, the closest is",
        ),
        (
            {"reward": "class", "dataset_name": "digits", "unconditional": True},
            r"asked for by \[None\]: say by --reward_class",
        ),
        (
            {"reward": "class", "dataset_name": "digits", "image_mode": "RGB"},
            "draws 1 channels, digits has 3",
        ),
    ],
)
def test_what_does_not_fit_the_pipeline_is_refused(flags, message, script, tmp_path):
    with pytest.raises(ValueError, match=message):
        tune(script, tmp_path, **flags)


# --- does it learn -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", ["flow_grpo", "precise"])
def test_the_reward_rises_the_more_the_further_the_network_may_go(dynamics, script, tmp_path):
    run = {"max_train_steps": 100, "learning_rate": 1e-3, "dynamics": dynamics, "window_size": 3}
    run |= {"train_batch_size": 64, "group_size": 16, "num_samples": 256}
    run["model"] = make_base(tmp_path / "base", classes=3)
    rises, apart = [], []
    for weight in (1.0, 0.01):
        _, output = tune(script, tmp_path / str(weight), kl_weight=weight, **run)
        record = json.loads((output / "training.json").read_text())
        before, after = map(float, record["mean reward, before and after"].split(", "))
        rises.append(after - before)
        apart.append(record["KL of the trajectories from the start, in nats"])
    assert 0 < rises[0] < rises[1] and rises[1] > 0.1
    assert apart[0] < 2 < apart[1]
