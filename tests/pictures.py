"""Small data sets of images whose first pixel is their number."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")

COUNT, CLASSES = 50, ("ant", "bee", "cow", "doe")
#: The three ways to the images of a data set.
WAYS = {"memory": {}, "on access": {"memory_limit": 0}, "stream": {"streaming": True}}


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def picture(index, mode="RGB", size=(6, 6)):
    """An image whose top left pixel is its number, and the rest noise."""
    channels = Image.new(mode, (1, 1)).im.bands
    shape = (*size[::-1], channels) if channels > 1 else size[::-1]
    pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0] = index
    return Image.fromarray(pixels)


def write(folder, images, features=None, shards=1, **columns):
    """Write images, or dictionaries of bytes, and columns as parquet files; return the folder."""
    folder.mkdir()
    encoded = [png(image) if isinstance(image, Image.Image) else image for image in images]
    types = {"image": datasets.Image(), **(features or {})}
    table = datasets.Dataset.from_dict({"image": encoded, **columns})
    table = table.cast(datasets.Features({**table.features, **types}))
    for i in range(shards):
        name = f"train-{i:05}-of-{shards:05}.parquet"
        table.shard(shards, i, contiguous=True).to_parquet(folder / name)
    return str(folder)


def numbers(batch):
    """Return the rows of a batch, having checked that its columns belong together."""
    found = batch["image"][:, 0, 0, 0].tolist()
    for i, image in zip(found, batch["image"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture(i)))
    assert batch["image"].dtype == torch.uint8 and batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [i % 4 for i in found]
    assert batch["caption"] == [f"number {i}" for i in found]
    return found
