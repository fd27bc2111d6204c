"""The held-out loss: of samples that are not trained on, exact on any number of processes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from processes import on_processes
from test_train_distributed import train as launch
from torch.utils.data import TensorDataset

from fm_diffusers.training.arguments import ImageArguments, TrainingArguments
from fm_diffusers.training.data import load_images
from fm_diffusers.training.held_out import HeldOut, held_out_share, overlap

datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")
DATA = torch.arange(23.0)


def loss_of(network, batch):
    """Return a loss that draws noise, as a flow's does."""
    (z,) = batch
    return ((z + torch.randn_like(z)) * network.weight).square().mean()


def measure(accelerator, batch_size=4, seed=3):
    network = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(network.weight)
    held_out = HeldOut(TensorDataset(DATA), None, batch_size, seed)
    return held_out.loss(accelerator, network, loss_of)


@pytest.mark.parametrize("batch_size", [4, 23, 50])
def test_every_sample_counts_once_with_noise_of_its_own(batch_size):
    total = 0.0
    for i, z in enumerate(DATA.split(batch_size)):
        torch.manual_seed((3 * 1_000_003 - 1 - i) % 2**32)
        total += (z + torch.randn_like(z)).square().sum().item()
    found = measure(Accelerator(cpu=True), batch_size)
    assert found == pytest.approx(total / len(DATA), rel=1e-6)
    torch.manual_seed(0)
    assert measure(Accelerator(cpu=True), batch_size) == found
    assert measure(Accelerator(cpu=True), batch_size, seed=4) != found


def measure_and_write(file):
    accelerator = Accelerator(cpu=True)
    loss = measure(accelerator)
    with open(f"{file}-{accelerator.process_index}", "w") as out:
        json.dump([loss, accelerator.num_processes], out)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_work_and_the_figure_is_the_same_bit_for_bit(processes, tmp_path):
    """Six batches: on four processes, two of them take one for nothing."""
    alone = measure(Accelerator(cpu=True))
    AcceleratorState._reset_state(True), GradientState._reset_state()
    on_processes(processes, measure_and_write, str(tmp_path / "rank"))
    found = [json.loads((tmp_path / f"rank-{i}").read_text()) for i in range(processes)]
    assert found == [[alone, processes]] * processes


# --- what is held out ----------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "share"), [("0.1", 0.1), ("test", None), ("1e-3", 1e-3)])
def test_a_number_is_a_share_and_a_name_a_split(split, share):
    assert held_out_share(split) == share


@pytest.mark.parametrize("split", ["0", "1", "1.5", "-0.1", "nan", "inf"])
def test_shares_are_between_nothing_and_all(split):
    with pytest.raises(ValueError, match="--validation_split must be a share between 0 and 1"):
        TrainingArguments(validation_split=split)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train", "test", None),
        ("train", "train", "train"),
        ("train", "train[:10%]", "train"),
        ("train[10%:]", "train[:10%]", None),
        ("train+test", "test", "test"),
    ],
)
def test_a_split_that_is_trained_on_is_not_held_out(one, other, shared):
    assert overlap(one, other) == shared

    def arguments():
        told = {"streaming": False, "memory_limit": 4.0}
        args = SimpleNamespace(dataset_split=one, validation_split=other, **told)
        return ImageArguments.__post_init__(args)

    if shared is None:
        arguments()
    else:
        with pytest.raises(ValueError, match=f"holds samples of --dataset_split .* '{shared}'"):
            arguments()


def test_a_share_of_a_stream_is_refused():
    told = {"streaming": True, "memory_limit": 4.0, "max_train_steps": 1}
    args = SimpleNamespace(validation_split="0.1", **told)
    with pytest.raises(ValueError, match="of a stream cannot be told from the rest: name a split"):
        ImageArguments.__post_init__(args)


def test_shares_are_disjoint_and_together_everything():
    whole = load_images("digits")
    parts = [load_images("digits", share=share) for share in ((0.0, 0.9), (0.9, 1.0))]
    assert [part.length for part in parts] == [1617, 180]
    joined = torch.cat([part.images for part in parts]).flatten(1)
    order, everything = joined.unique(dim=0), whole.images.flatten(1).unique(dim=0)
    assert torch.equal(order, everything)
    assert parts[1].labels.bincount().min() > 5  # not the last rows of a sorted data set
    again = load_images("digits", share=(0.9, 1.0))
    assert torch.equal(again.images, parts[1].images)
    other = load_images("digits", share=(0.9, 1.0), shuffle_seed=1)
    assert not torch.equal(other.images, again.images)


def write(folder, split, labels, names, side=6):
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), side, side), dtype=np.uint8)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    columns = {"image": [Image.fromarray(x) for x in pixels], "label": labels}
    folder.mkdir(exist_ok=True)
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_a_split_has_the_classes_of_the_one_trained_on(tmp_path, quick_datasets):
    trained = load_images(write(tmp_path / "one", "train", [0, 1, 2], ["a", "b", "c"]))
    alike = write(tmp_path / "two", "test", [2, 2], ["a", "b", "c"])
    assert load_images(alike, split="test", like=trained).labels.tolist() == [2, 2]
    other = write(tmp_path / "three", "test", [0, 1], ["a", "c"])
    with pytest.raises(ValueError, match="'test' has the classes a, c, the one .* on a, b, c"):
        load_images(other, split="test", like=trained)
    larger = write(tmp_path / "four", "test", [0, 1], ["a", "b", "c"], side=8)
    with pytest.raises(ValueError, match=r"the shape \(1, 8, 8\), those .* on \(1, 6, 6\)"):
        load_images(larger, split="test", like=trained)


# --- in a run ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loss_is_logged_recorded_and_the_same_on_two_processes(tmp_path):
    """Weights do not move at a rate of 0, so that one and two processes measure one network."""
    words = "--validation_split 0.2 --validation_steps 2 --learning_rate 0 --checkpointing_steps 9"
    found = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        launch(output, 3, *words.split(), processes=processes)
        found[processes] = json.loads((output / "training.json").read_text())["validation_loss"]
    assert found[1] == found[2] > 0
