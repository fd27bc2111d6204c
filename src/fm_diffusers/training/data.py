r"""Image data sets: of the Hub, of a folder, of a file.

`load_images` says which, and `ImageData.loader` makes batches. Images are decoded once into one
uint8 tensor if that fits into `memory_limit`, else when they are asked for; with `streaming` they
are not even downloaded in advance.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fm_diffusers.tables import look_up
from fm_diffusers.training.batching import (
    Classes,
    Pictures,
    Stream,
    caption,
    take,
    take_encoded,
    warn_of_broken,
)
from fm_diffusers.training.decoding import MODES, Decoder

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images of one shape, with labels and captions where the data set has them.

    Args:
        dataset: a `Pictures`, or a `Stream`.
        shape: of an image, `(C, H, W)`.
        num_classes: of the labels; 0 without labels.
        class_names: where the data set names its classes.
        images: uint8 `(n, C, H, W)`; None if they are decoded when asked for.
        labels: int64 `(n,)`; None without labels and for a stream.
        captions: one of each image; None without captions and for a stream.
        skipped: how many images were left out because they cannot be read, of those in memory.
        length: how many images there are; None for a stream.
    """

    dataset: Pictures | Stream
    shape: tuple[int, int, int]
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    images: Tensor | None = None
    labels: Tensor | None = None
    captions: list[str] | None = None
    skipped: int = 0
    length: int | None = None

    def loader(self, batch_size: int, num_workers: int = 0) -> DataLoader:
        """Return a loader of shuffled, full batches, for `Accelerator.prepare`.

        With `--skip_broken_images`, batches that are decoded on the way lack what cannot be read.
        """
        return DataLoader(
            self.dataset,
            batch_size=batch_size,
            shuffle=None if isinstance(self.dataset, Stream) else True,
            num_workers=num_workers,
            collate_fn=self.dataset.collate,
            drop_last=True,
        )


def load_images(
    dataset_name: str,
    *,
    config_name: str | None = None,
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = "label",
    caption_column: str | None = None,
    resolution: int | None = None,
    image_mode: str | None = None,
    streaming: bool = False,
    skip_broken: bool = False,
    memory_limit: int = 4 * 2**30,
    shuffle_seed: int = 0,
    shuffle_buffer: int = 10_000,
) -> ImageData:
    """Load an image data set.

    Args:
        dataset_name: id on the Hub; folder, of class folders with images, of images and a
            `metadata.jsonl` or of parquet files; parquet file; or `digits`, the 8x8 digits of
            scikit-learn.
        config_name: of a data set that has several.
        split: of the data set.
        image_column: holds images, encoded in bytes or by their paths.
        label_column: holds a ClassLabel, the numbers 0 to k - 1, or names, which are numbered in
            sorted order; None or empty for no labels.
        caption_column: holds strings, or lists of which the first counts; None or empty for none.
        resolution: side of the squares that images are scaled to by their shorter side (bicubic,
            with antialiasing) and cropped to; None keeps their size, which must be the same.
        image_mode: L, RGB or RGBA, see `decoding.convert`; None keeps the mode of the images.
        streaming: read on the way.
        skip_broken: leave images out that cannot be read.
        memory_limit: bytes up to which all images are decoded in advance.
        shuffle_seed: of a stream's order.
        shuffle_buffer: how many rows of a stream are shuffled among themselves.

    Raises:
        ValueError: if there is no such data set, it lacks a column, or its images, labels or
            captions are not alike; the message names the way out.

    Example:
        >>> data = load_images("digits")
        >>> data.shape, data.num_classes, data.length
        ((1, 8, 8), 10, 1797)
        >>> next(iter(data.loader(batch_size=64)))["image"].shape
        torch.Size([64, 1, 8, 8])
    """
    if image_mode is not None:
        look_up("--image_mode", MODES, image_mode)
    columns = (image_column, label_column or None, caption_column or None)
    rows = select(open_rows(dataset_name, config_name, split, streaming), columns)
    decoder = Decoder(image_mode, resolution, skip_broken)
    decoder = decoder.fitted_to(row[image_column] for row in rows)
    classes = Classes.of(label_column, rows) if label_column else None
    known = {"num_classes": len(classes.numbers), "class_names": classes.names} if classes else {}
    if not streaming:
        return ImageData(**indexed(rows, columns, decoder, classes, memory_limit), **known)
    rows = rows.shuffle(seed=shuffle_seed, buffer_size=shuffle_buffer)
    return ImageData(Stream(rows, columns, decoder, classes), decoder.shape, **known)


def open_rows(
    name: str, config: str | None, split: str, streaming: bool
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return the rows of a data set."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if name == "digits":
        return digits(split).to_iterable_dataset() if streaming else digits(split)
    try:
        if Path(name).is_file():
            return load_dataset(
                "parquet", data_files={split: name}, split=split, streaming=streaming
            )
        return load_dataset(name, config, split=split, streaming=streaming)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"--dataset_name {name!r} is neither a local folder nor a data set that the Hub gives "
            "(check the spelling, the connection, HF_HUB_OFFLINE, and `hf auth login` for private "
            "ones); `digits` needs no network"
        ) from error


def digits(split: str) -> "datasets.Dataset":
    """Return the 8x8 digits of scikit-learn, 16 grey levels spread over 0 to 255."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Feature
    from sklearn.datasets import load_digits

    if split != "train":
        raise ValueError(f"`digits` has the split 'train' only, got {split!r}")
    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    features = Features(image=Feature(), label=ClassLabel(names=[*map(str, range(10))]))
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": found.target}
    return Dataset.from_dict(columns, features=features)


def select(
    rows: "datasets.Dataset | datasets.IterableDataset", columns: tuple[str | None, ...]
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return rows of the columns named, images left encoded."""
    from datasets import Image as Feature
    from datasets import Value

    there = rows.column_names or list(next(iter(rows)))
    wanted = list(dict.fromkeys(name for name in columns if name is not None))
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(
            f"the data set has no column {missing}, it has {there}: choose with --image_column, "
            "--label_column ('' trains without classes) and --caption_column"
        )
    image = rows.features[columns[0]]
    encoded = isinstance(image, Value) and image.dtype.endswith(("binary", "string"))
    if not (encoded or isinstance(image, Feature) or isinstance(image, dict) and "bytes" in image):
        raise ValueError(
            f"--image_column {columns[0]} holds {image}, no encoded images: choose one of {there}"
        )
    return rows.select_columns(wanted).cast_column(columns[0], Feature(decode=False))


def indexed(
    rows: "datasets.Dataset",
    columns: tuple[str, str | None, str | None],
    decoder: Decoder,
    classes: Classes | None,
    memory_limit: int,
) -> dict[str, Any]:
    """Return the fields of an `ImageData` whose images have indices."""
    image, label, text = columns
    labels = captions = images = None
    if classes is not None:
        numbers = [classes.number(i, value) for i, value in enumerate(rows[label][:])]
        labels = torch.tensor(numbers)
    if text is not None:
        captions = [caption(i, value) for i, value in enumerate(rows[text][:])]
    fetch, length = partial(take_encoded, decoder, rows, image), len(rows)
    if length * math.prod(decoder.shape) <= memory_limit:
        kept, images = decode_all(rows, image, decoder)
        labels = None if labels is None else labels[kept]
        captions = None if captions is None else [captions[i] for i in kept]
        fetch, length = partial(take, images), len(kept)
    return {
        "dataset": Pictures(fetch, length, labels, captions),
        "shape": decoder.shape,
        "images": images,
        "labels": labels,
        "captions": captions,
        "skipped": len(rows) - length,
        "length": length,
    }


def decode_all(
    rows: "datasets.Dataset", column: str, decoder: Decoder
) -> tuple[list[int], Tensor]:
    """Return the indices of the images that can be read, and these, in one tensor."""
    images, kept = torch.empty((len(rows), *decoder.shape), dtype=torch.uint8), []
    blocks = rows.select_columns(column).iter(batch_size=1000)
    encoded = chain.from_iterable(block[column] for block in blocks)
    for index, pixels in enumerate(map(decoder, count(), encoded)):
        if pixels is not None:
            images[len(kept)] = pixels
            kept.append(index)
    warn_of_broken(len(rows) - len(kept), len(rows))
    return kept, images[: len(kept)]
