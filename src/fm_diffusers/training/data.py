r"""Image data sets: of the Hub, of a folder, of a file.

`load_images` says which, and `ImageData.loader` makes batches. Images are decoded once into one
uint8 tensor if that fits into `memory_limit`, else when they are asked for; with `streaming` they
are not even downloaded in advance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fm_diffusers.pipelines.images import MODES
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
from fm_diffusers.training.decoding import Decoder
from fm_diffusers.training.sources import open_rows

if TYPE_CHECKING:
    import datasets

#: Bytes of memory that a row takes beside its image: its label as read, numbered, and in a tensor.
LABEL = 24


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images of one shape, with labels and captions where the data set has them.

    Args:
        dataset: a `Pictures`, or a `Stream`.
        shape: of an image, `(C, H, W)`.
        classes: of the labels; None without labels.
        images: uint8 `(n, C, H, W)`; None if they are decoded when asked for.
        labels: int64 `(n,)`; None without labels and for a stream.
        captions: one of each image; None without captions and for a stream.
        skipped: how many images were left out because they cannot be read, of those in memory.
        length: how many images there are; None for a stream.
    """

    dataset: Pictures | Stream
    shape: tuple[int, ...]
    classes: Classes | None = None
    images: Tensor | None = None
    labels: Tensor | None = None
    captions: list[str] | None = None
    skipped: int = 0
    length: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the labels; 0 without labels."""
        return 0 if self.classes is None else len(self.classes.numbers)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where the data set has some."""
        return None if self.classes is None else self.classes.names

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes by number, as a pipeline keeps them."""
        named = enumerate(self.class_names or ())
        return {number: name for number, name in named if name.strip(" ,")} or None

    def loader(self, batch_size: int, num_workers: int = 0) -> DataLoader[Any]:
        """Return a loader of shuffled, full batches, for `Accelerator.prepare`.

        With `--skip_broken_images`, batches that are decoded on the way lack what cannot be read.
        """
        collate: Callable[[Any], Any] = self.dataset.collate
        return DataLoader(
            self.dataset,
            batch_size=batch_size,
            shuffle=None if isinstance(self.dataset, Stream) else True,
            num_workers=num_workers,
            collate_fn=collate,
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
    share: tuple[float, float] = (0.0, 1.0),
    like: ImageData | None = None,
) -> ImageData:
    """Load an image data set.

    Args:
        dataset_name: id on the Hub; folder, of class folders with images, of images and a
            `metadata.jsonl`, of parquet files, or written by `save_to_disk`; parquet file; or
            `digits`, the 8x8 digits of scikit-learn.
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
        share: of the rows, from and to, in an order drawn from `shuffle_seed`: (0, 0.9) and
            (0.9, 1) have no row in common, and together all.
        like: data whose shape and classes these must have.

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
    if not streaming:
        check_memory(len(rows))
    decoder = Decoder(image_mode, resolution, skip_broken)
    decoder = decoder.fitted_to(row[image_column] for row in rows)
    if like is None:
        classes = Classes.of(label_column, rows) if label_column else None
    else:
        check_alike(like, decoder.shape, rows.features.get(label_column), split)
        classes = like.classes
    if share != (0.0, 1.0):
        rows = take_share(rows, share, shuffle_seed)
    if not streaming:
        return ImageData(**indexed(rows, columns, decoder, classes, memory_limit), classes=classes)
    rows = rows.shuffle(seed=shuffle_seed, buffer_size=shuffle_buffer)
    return ImageData(Stream(rows, columns, decoder, classes), decoder.shape, classes)


def take_share(
    rows: "datasets.Dataset", share: tuple[float, float], seed: int
) -> "datasets.Dataset":
    """Return the rows between two shares of their order at random, in their own order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    first, last = (round(part * len(rows)) for part in share)
    if first == last:
        raise ValueError(
            f"a share of {share[1] - share[0]:.3g} of {len(rows)} rows is none: hold out more"
        )
    return rows.select(sorted(order[first:last].tolist()))


def check_memory(length: int) -> None:
    """Raise a `ValueError` for so many rows that their labels alone take all memory."""
    needed, free = LABEL * length, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"the labels and the order of {length:,} rows take about {needed:,} bytes of memory, "
            f"of which {free:,} are free: say --streaming, or take a part, such as "
            "--dataset_split 'train[:1%]'"
        )


def check_alike(like: ImageData, shape: tuple[int, ...], labels: Any, split: str) -> None:
    """Raise a `ValueError` if a split has images or classes other than data trained on."""
    from datasets import ClassLabel

    if shape != like.shape:
        raise ValueError(
            f"images of the split {split!r} have the shape {shape}, those that are trained on "
            f"{like.shape}: pass --resolution and --image_mode"
        )
    if isinstance(labels, ClassLabel) and tuple(labels.names) != like.class_names:
        names, others = labels.names[:10], [*(like.class_names or ["without names"])][:10]
        raise ValueError(
            f"the split {split!r} has the classes {', '.join(names)}, the one that is trained on "
            f"{', '.join(others)}: hold out a share of it, such as --validation_split 0.1"
        )


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
    images = torch.empty((len(rows), *decoder.shape), dtype=torch.uint8)
    kept: list[int] = []
    blocks = rows.select_columns(column).iter(batch_size=1000)
    encoded = chain.from_iterable(block[column] for block in blocks)
    for index, pixels in enumerate(map(decoder, count(), encoded)):
        if pixels is not None:
            images[len(kept)] = pixels
            kept.append(index)
    warn_of_broken(len(rows) - len(kept), len(rows))
    return kept, images[: len(kept)]
