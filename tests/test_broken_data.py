"""Data sets that are empty, broken, of one class or of no end are told in one line of ours."""

import importlib
import io
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.data import load_images

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("quick_datasets")


def png(value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def rows(images, labels):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels}, features=datasets.Features(features)
    )


def parquet(folder, images=(), labels=()):
    file = folder / "train.parquet"
    rows([*images], [*labels]).to_parquet(file)
    return file


def text(folder):
    file = folder / "train.parquet"
    file.write_text("no parquet" * 30)
    return file


def nothing(folder):
    file = folder / "train.parquet"
    file.touch()
    return file


def torn(folder):
    file = parquet(folder, [png(), png(1)], [0, 1])
    content = bytearray(file.read_bytes())
    content[20:120] = bytes(100)
    file.write_bytes(content)
    return file


def saved(folder, images=(), labels=()):
    rows([*images], [*labels]).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_and_torn(folder):
    saved(folder, [png()], [0])
    next((folder / "saved").glob("*.arrow")).write_text("junk")
    return folder / "saved"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (parquet, "is no parquet file that holds rows .*: name one, or a folder of images"),
        (text, "is no parquet file that holds rows"),
        (nothing, "is no parquet file that holds rows"),
        (torn, "is no parquet file that holds rows"),
        (saved, "which save_to_disk wrote, is damaged or has no rows .*: save it again"),
        (saved_and_torn, "which save_to_disk wrote, is damaged or has no rows"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_holds_no_rows_is_told(make, message, tmp_path):
    name = str(make(tmp_path))
    with pytest.raises(ValueError, match=message) as told:
        load_images(name)
    assert name in str(told.value) and len(str(told.value).splitlines()) == 1


def test_a_stream_of_nothing_is_told(tmp_path):
    with pytest.raises(ValueError, match="the data set has no rows: choose another one"):
        load_images(str(parquet(tmp_path)), streaming=True)


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_out_of_range_is_told(label, tmp_path):
    name = str(parquet(tmp_path, [png()] * 3, [0, label, 1]))
    with pytest.raises(ValueError, match=f"the numbers 0 to k - 1 without a gap; .* has {label} "):
        load_images(name)


def test_more_rows_than_memory_has_room_for_are_told_before_they_are_read(tmp_path, monkeypatch):
    name = str(parquet(tmp_path, [png()] * 3, [0, 1, 0]))
    monkeypatch.setattr(datasets.Dataset, "__len__", lambda self: 10**13)
    message = (
        r"of 10,000,000,000,000 rows take about 240,000,000,000,000 bytes of memory, of which"
    )
    with pytest.raises(ValueError, match=message):
        load_images(name)
    assert psutil.virtual_memory().total < 240e12


def test_one_class_trains(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    script = importlib.import_module("train_mnist")
    output = str(tmp_path / "out")
    given = {"dataset_name": str(parquet(tmp_path, [png(i) for i in range(8)], [0] * 8))}
    given |= {"block_out_channels": [8, 8], "train_batch_size": 4, "max_train_steps": 1}
    script.main(script.Arguments(**given, output_dir=output, report_to="none"))
    assert FlowMatchingPipeline.from_pretrained(output).num_classes == 1
