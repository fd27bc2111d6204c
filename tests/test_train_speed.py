"""The training benchmark: who runs when, what is timed, that all train the same; its tables."""

import csv
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from fm_diffusers.training.flow import FlowArguments, coupled_noise, flow_loss, scaled

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")

#: A script with the interface of diffusers' that trains next to nothing.
SCRIPT = """
import argparse
import torch
from datasets import load_dataset
from diffusers import UNet2DModel
from torchvision import transforms

def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--use_ema", action="store_true")
    for name in ("dataset_name", "model_config_name_or_path", "mixed_precision", "output_dir"):
        parser.add_argument("--" + name)
    for name in ("resolution", "train_batch_size", "num_epochs", "checkpointing_steps"):
        parser.add_argument("--" + name, type=int)
    return parser.parse_args()

def main(args):
    network = UNet2DModel.from_config(UNet2DModel.load_config(args.model_config_name_or_path))
    rows = load_dataset(args.dataset_name, split="train")
    transform = transforms.Compose([
        transforms.Resize(args.resolution, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(args.resolution),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ])
    transforms.Compose([  # named as in the original, and not called
        transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)
    ])
    for start in range(0, len(rows), args.train_batch_size):
        images = rows[start : start + args.train_batch_size]["image"]
        x = torch.stack([transform(image.convert("RGB")) for image in images])
        assert x.shape == (args.train_batch_size, 3, args.resolution, args.resolution)
        network(x, 500).sample.square().mean().backward()
"""


def counting(log, name):
    """Return a training that notes its steps, and its network."""

    def run(network):
        while True:
            network(torch.zeros(1))
            log.append(name)

    return run, torch.nn.Identity()


def test_trainings_take_turns():
    from benchmarks.training.speed_relay import race

    log, names = [], ["a", "b", "c"]
    laps = list(race({name: counting(log, name) for name in names}, rounds=6, steps=4))
    assert [(lap.round, lap.steps) for lap in laps] == [(i // 3, 4) for i in range(18)]
    # the first turn, which does not count, ends when the step after it begins
    turns = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert all(len(set(turn)) == 1 for turn in turns) and len(turns) == 21
    assert [turn[0] for turn in turns[3:]] == [lap.training for lap in laps]
    for i in range(0, 21, 3):
        assert sorted(turn[0] for turn in turns[i : i + 3]) == names
    assert len({tuple(turn[0] for turn in turns[i : i + 3]) for i in range(0, 21, 3)}) > 1


@pytest.mark.parametrize("steps_before", [0, 6], ids=["at once", "later"])
def test_a_training_that_fails_or_ends_stops_the_race(steps_before):
    from benchmarks.training.speed_relay import race

    def failing(network):
        for _ in range(steps_before):
            network(torch.zeros(1))
        raise ValueError("out of data")

    trainings = {"good": counting([], "good"), "bad": (failing, torch.nn.Identity())}
    with pytest.raises(RuntimeError, match="'bad' ended by itself") as caught:
        list(race(trainings, rounds=10, steps=4))
    assert str(caught.value.__cause__) == "out of data"


def test_a_lap_is_the_time_of_its_thread_and_its_parts_do_not_overlap():
    from types import SimpleNamespace

    from benchmarks.training.speed_relay import race

    def burn(seconds):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    work = SimpleNamespace(inner=lambda: burn(0.004))
    work.outer = lambda: (burn(0.002), work.inner(), work.inner())

    def busy(network):
        while True:
            network(torch.zeros(1))
            work.outer()
            burn(0.001)

    def idle(network):
        while True:
            network(torch.zeros(1))
            time.sleep(0.002)

    places = {"inner": [(work, "inner")], "outer": [(work, "outer")]}
    inner = work.inner
    trainings = {"busy": (busy, torch.nn.Identity()), "idle": (idle, torch.nn.Identity())}
    laps = list(race(trainings, rounds=3, steps=5, places=places))
    for lap in laps:
        if lap.training == "idle":
            assert lap.wall >= 5 * 0.002 > 5 * lap.cpu and lap.parts == {}
        else:
            assert lap.parts["inner"] == pytest.approx(5 * 0.008, rel=0.1)
            assert lap.parts["outer"] == pytest.approx(5 * 0.002, rel=0.1)
            assert lap.cpu == pytest.approx(5 * 0.011, rel=0.1) and lap.wall > 0.9 * lap.cpu
    assert work.inner is inner  # nothing is timed any more


def test_the_plain_loop_has_the_loss_of_our_script():
    from benchmarks.training.speed_loops import flow_matching

    def network(x, t, label=None, return_dict=True):
        return (torch.sin(3 * x + t[:, None, None, None] / 1000),)

    args = FlowArguments()
    images = torch.randint(256, (16, 3, 4, 4), dtype=torch.uint8)
    torch.manual_seed(1)
    plain = flow_matching(network, images.float() / 127.5 - 1)
    torch.manual_seed(1)
    z = images.float() / 127.5 - 1
    ours = flow_loss(args, args.scheduler(), network, z, coupled_noise(args, z, None))
    torch.testing.assert_close(plain, ours)


def test_the_stand_in_for_torchvision_prepares_images_as_ours_are():
    from benchmarks.training.speed_peers import Pictures, torchvision
    from fm_diffusers.training.arguments import ImageArguments

    transforms = torchvision()["torchvision.transforms"]
    pixels = np.random.default_rng(0).integers(256, size=(2, 9, 9, 3), dtype=np.uint8)
    steps = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    still = transforms.Compose([transforms.RandomCrop(9), *steps])
    cut = transforms.Compose([transforms.CenterCrop(5), *steps])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    args = type("Flags", (ImageArguments,), {"max_train_steps": 1, "validation_split": None})()
    expected = scaled(args, images)
    for i in range(2):
        picture = Image.fromarray(pixels[i])
        torch.testing.assert_close(still(picture), expected[i])
        torch.testing.assert_close(cut(picture), expected[i, :, 2:7, 2:7])
        torch.testing.assert_close(Pictures(images)[i], expected[i])
    wide = Image.fromarray(pixels[0]).resize((40, 20))
    sized = transforms.Resize(10, transforms.InterpolationMode.BILINEAR)(wide)
    assert sized.size == (20, 10) and transforms.RandomCrop(10)(sized).size == (10, 10)
    mirrored = {np.array(transforms.RandomHorizontalFlip()(picture)).tobytes() for _ in range(40)}
    assert mirrored == {pixels[1].tobytes(), pixels[1][:, ::-1].tobytes()}


def test_the_benchmark_on_digits(tmp_path, capsys):
    from benchmarks.training import speed

    peers = 1 + (find_spec("torchcfm") is not None)

    (tmp_path / "script.py").write_text(SCRIPT)
    laps = speed.main(
        speed.SpeedArguments(
            resolution=8,
            block_out_channels=[8, 16],
            train_batch_size=16,
            steps=2,
            rounds=2,
            variant_rounds=1,
            variants=["bf16, channels_last"],
            train_unconditional=str(tmp_path / "script.py"),
            output_dir=str(tmp_path),
        )
    )
    assert "torchvision" not in sys.modules
    with (tmp_path / "train_speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for lap in laps[0]:  # every training does its steps inside what is timed
        assert lap.parts["network"] + lap.parts["backward"] > 0.3 * lap.cpu
        assert sum(lap.parts.values()) <= lap.cpu
        written = {
            r["figure"]: float(r["seconds"])
            for r in rows
            if r["race"] == "trainings"
            and (r["training"], r["round"]) == (lap.training, str(lap.round))
        }
        assert written == pytest.approx({"wall": lap.wall, "cpu": lap.cpu} | lap.parts, abs=1e-6)
    names = {lap.training for lap in laps[0]}
    ours = [lap for lap in laps[0] if lap.training == "examples/train_mnist.py"]
    assert len(names) == 2 + peers and all(lap.parts["seeding"] > 0 for lap in ours)
    text = (tmp_path / "train_speed.md").read_text()
    for name in names | {"bf16, channels_last"}:
        assert f"| {name} |" in text
    assert "| plain PyTorch | " in text and "1.000 (1.000 to 1.000)" in text


def test_tables_hold_paired_ratios_and_parts_that_add_up():
    from benchmarks.training.speed_relay import Lap
    from benchmarks.training.speed_report import shares, speeds

    busy = [1.0, 5.0, 2.0]  # how slow the machine is in each round
    laps = [
        Lap(name, i, 10, slow * 4 * s, s * slow, {"network": 0.5 * s, "backward": 0.25 * s})
        for i, slow in enumerate(busy)
        for name, s in (("ours", 1.5), ("plain", 1.0))
    ]
    head, _, plain, ours, missing = speeds(laps, "plain", 20, {"theirs": "not there"})
    assert plain.endswith("| 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |")
    assert ours.startswith("| ours | 66.7 | 16.7 | 1.500 (1.500 to 1.500) |")  # 200 / 3 a second
    assert missing.startswith("| theirs | not there |") and head.count("|") == missing.count("|")
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in shares(laps, "plain")[2:]}
    table = {name: [float(cell) for cell in cells] for name, cells in rows.items()}
    mean = 1000 * sum(busy) / 30
    assert table["a step"] == pytest.approx([mean, 1.5 * mean], abs=0.01)
    assert table["a step without the network"] == table["the rest"]
    assert table["the rest"] == pytest.approx([mean - 75, 1.5 * (mean - 75)], abs=0.01)


def test_missing_contenders_say_why(tmp_path, monkeypatch):
    from benchmarks.training import speed

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, missing = speed.trainings(
        speed.SpeedArguments(), None, torch.zeros(1, 3, 8, 8), str(tmp_path)
    )
    assert [*found] == ["plain PyTorch", "examples/train_mnist.py"]
    assert "--train_unconditional" in missing["diffusers' script"]
    assert "--no-deps" in missing["torchcfm's loop"]


@pytest.mark.parametrize("arguments", [{"variants": ["fast"]}, {"backbone": "transformer"}])
def test_bad_arguments(arguments):
    from benchmarks.training import speed

    with pytest.raises(ValueError, match="must be"):
        speed.SpeedArguments(**arguments)
