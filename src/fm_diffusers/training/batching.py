r"""Batches of images: by index, or as they come out of a stream.

A batch is

    {"image": uint8 (b, C, H, W), "label": int64 (b,), "caption": list of b strings}

without what the data set lacks. Images are decoded where the batch is made, in the worker. Nothing
here draws a random number: the order of an epoch is the sampler's, or that of the stream's
shuffle, which are functions of seed and epoch, so a run can be resumed at any batch.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from fm_diffusers.training.decoding import Decoder

if TYPE_CHECKING:
    import datasets


# --- labels and captions -------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Args:
        column: that holds the labels.
        numbers: the class, 0 to k - 1, of each label.
        names: of the classes, if they have some.
    """

    column: str
    numbers: dict[Any, int]
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, column: str, rows: "datasets.Dataset | datasets.IterableDataset") -> "Classes":
        """Return the classes that a column holds."""
        from datasets import ClassLabel, Dataset, Value

        feature = rows.features[column]
        if isinstance(feature, ClassLabel):
            return cls(column, {i: i for i in range(len(feature.names))}, tuple(feature.names))
        out = "make it a ClassLabel feature, or --label_column '' trains without classes"
        if not isinstance(rows, Dataset):
            raise ValueError(
                f"a stream does not tell in advance which classes --label_column {column} holds, "
                f"{feature}: drop --streaming, {out}"
            )
        if not isinstance(feature, Value):
            raise ValueError(f"--label_column {column} holds {feature}, no labels: {out}")
        found = set(rows[column][:])
        if all(isinstance(label, str) for label in found):
            names = tuple(sorted(found))
            return cls(column, {name: i for i, name in enumerate(names)}, names)
        if stray := sorted(found - set(range(len(found))), key=str):
            raise ValueError(
                f"labels must be names, or the numbers 0 to k - 1 without a gap; --label_column "
                f"{column} has {', '.join(map(str, stray[:5]))} among {len(found)} values: {out}"
            )
        return cls(column, {i: i for i in range(len(found))})

    def number(self, index: int | str, label: Any) -> int:
        """Return the class of an image."""
        if label not in self.numbers:
            raise ValueError(
                f"image {index} has the label {label}, which is none of the {len(self.numbers)} "
                f"classes of --label_column {self.column} (-1 and None mark images without one): "
                "choose a labelled split, or --label_column '' to train without classes"
            )
        return self.numbers[label]


def caption(index: int | str, value: Any) -> str:
    """Return a caption, the first of several."""
    first = next(iter(value), None) if isinstance(value, list) else value
    if not isinstance(first, str):
        raise ValueError(
            f"image {index} has the caption {value!r}: --caption_column must hold strings or "
            "lists of them, an empty string for no caption"
        )
    return first


def batch(images: Tensor, labels: Tensor | None, captions: list[str] | None) -> dict[str, Any]:
    """Return a dictionary of what there is."""
    columns = {"image": images, "label": labels, "caption": captions}
    return {name: values for name, values in columns.items() if values is not None}


# --- images --------------------------------------------------------------------------------------


def decode(decoder: Decoder, numbered: list[tuple[int | str, Any]]) -> tuple[list[int], Tensor]:
    """Return which of the encoded images, by position, can be read, and these."""
    decoded = [decoder(index, encoded) for index, encoded in numbered]
    readable = [(i, pixels) for i, pixels in enumerate(decoded) if pixels is not None]
    if not readable:
        raise ValueError(f"none of the images {[index for index, _ in numbered]} can be read")
    warn_of_broken(len(numbered) - len(readable), len(numbered))
    kept, images = zip(*readable, strict=True)
    return [*kept], torch.stack(images)


def warn_of_broken(skipped: int, count: int) -> None:
    """Warn of images that are left out."""
    if skipped:
        warnings.warn(f"{skipped} of {count} images cannot be read: left out", stacklevel=3)


def take(images: Tensor, indices: list[int]) -> tuple[list[int], Tensor]:
    """Return images of a tensor, all of which can be read."""
    return indices, images.index_select(0, torch.tensor(indices))  # twice as fast as images[...]


def take_encoded(
    decoder: Decoder, table: "datasets.Dataset", column: str, indices: list[int]
) -> tuple[list[int], Tensor]:
    """Return images of a table, decoded."""
    kept, images = decode(decoder, list(zip(indices, table[indices][column], strict=True)))
    return [indices[i] for i in kept], images


@dataclass(frozen=True, eq=False)
class Pictures(Dataset[Any]):
    """Images by index, fetched a batch at a time.

    Args:
        fetch: from indices to those that can be read, and their images.
        length: how many images there are.
        labels: int64, of all images.
        captions: of all images.
    """

    fetch: Callable[[list[int]], tuple[list[int], Tensor]]
    length: int
    labels: Tensor | None
    captions: list[str] | None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length}")
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        kept, images = self.fetch(indices)
        labels = None if self.labels is None else self.labels[kept]
        return batch(images, labels, self.captions and [self.captions[i] for i in kept])

    @staticmethod
    def collate(whole: dict[str, Any]) -> dict[str, Any]:
        """Return the batch, which is one already."""
        return whole


@dataclass(frozen=True, eq=False)
class Stream(IterableDataset[Any]):
    """Rows with their places, still encoded, for `collate` to decode.

    Every process reads them all, so that Accelerate deals out whole batches and all processes have
    as many, and decodes its own batches only.

    Args:
        rows: of the data set.
        columns: names of the image, of the labels and of the captions.
        decoder: of the images.
        classes: of the labels.
    """

    rows: "datasets.IterableDataset"
    columns: tuple[str, str | None, str | None]
    decoder: Decoder
    classes: Classes | None

    def set_epoch(self, epoch: int) -> None:
        """Shuffle otherwise in every epoch."""
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((f"{i} of the stream", row) for i, row in enumerate(self.rows))

    def collate(self, numbered: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        """Return rows as a batch."""
        image, label, text = self.columns
        kept, images = decode(self.decoder, [(i, row[image]) for i, row in numbered])
        rows = [numbered[i] for i in kept]
        classes = self.classes
        assert classes is not None or not label
        numbers = classes and label and [classes.number(i, row[label]) for i, row in rows]
        captions = text and [caption(i, row[text]) for i, row in rows]
        return batch(images, torch.tensor(numbers) if label else None, captions or None)
