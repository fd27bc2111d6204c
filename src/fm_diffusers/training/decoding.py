r"""One encoded image: read, converted to a mode, fitted to a side, as a uint8 tensor.

Nothing is lost in silence: a data set keeps the mode and the size of its images, which must be
alike, unless `--image_mode` and `--resolution` say what they become.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fm_diffusers.pipelines.images import MODES


def kind(image: Image.Image) -> str:
    """Return the mode of an image, which alone does not say that a colour is transparent."""
    hidden = image.has_transparency_data and image.mode in ("1", "L", "P", "RGB")
    return f"{image.mode} with transparency" if hidden else image.mode


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in another mode.

    What is transparent is laid on white unless the mode is RGBA; 16 bits become 8 by rounding
    `x / 257`; colours become grey, and CMYK becomes RGB, as Pillow does it.

    Raises:
        ValueError: for pixels of 32 bits, whose range is not known.
    """
    if kind(image) == mode:
        return image
    if image.mode in ("I", "F"):
        raise ValueError(
            f"images are {image.mode}, 32 bits of unknown range: save them with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


@dataclass(frozen=True)
class Decoder:
    """From encoded images to uint8 tensors, all of one shape.

    Args:
        mode: what they are converted to; None keeps their own, which must be `native`.
        resolution: side of the squares that they are scaled to by their shorter side (bicubic,
            with antialiasing) and cropped to around the centre; None keeps their size.
        skip_broken: return None for an image that cannot be read.
        native: mode of the first image.
        shape: of the tensors.
    """

    mode: str | None
    resolution: int | None
    skip_broken: bool
    native: str = ""
    shape: tuple[int, ...] = ()

    def fitted_to(self, encoded: Iterable[dict[str, Any]]) -> "Decoder":
        """Return a decoder of images like the first that can be read."""
        first, count = None, 0
        for count, one in enumerate(encoded, 1):  # noqa: B007
            if (first := self.open(count - 1, one)) is not None:
                break
        if count == 0:
            raise ValueError("the data set has no rows: choose another one, or --dataset_split")
        if first is None:
            raise ValueError("none of the images can be read: choose another --image_column")
        native = kind(first)
        if self.mode is None and native not in MODES:
            raise ValueError(
                f"images are {native}: convert them with --image_mode {', '.join(MODES)}"
            )
        return replace(self, native=native, shape=tuple(self.tensor(first).shape))

    def open(self, index: int | str, encoded: dict[str, Any] | None) -> Image.Image | None:
        """Return an image, upright."""
        from datasets import Image as Feature

        try:
            return Feature().decode_example(encoded or {"bytes": None, "path": None})
        except Exception as error:  # a damaged file can make a decoder raise anything
            if self.skip_broken and not isinstance(error, ConnectionError):
                return None
            raise ValueError(
                f"{place(index, encoded)} cannot be read ({error}): repair it, or leave such "
                "images out with --skip_broken_images"
            ) from error

    def tensor(self, image: Image.Image) -> Tensor:
        """Return the pixels of an image, `(C, H, W)`."""
        image = image if self.mode is None else convert(image, self.mode)
        if self.resolution is not None:
            square = (self.resolution, self.resolution)
            image = ImageOps.fit(image, square, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def __call__(self, index: int | str, encoded: dict[str, Any] | None) -> Tensor | None:
        """Return the pixels of an encoded image, None if it is to be skipped."""
        image = self.open(index, encoded)
        if image is None:
            return None
        if self.mode is None and kind(image) != self.native:
            raise ValueError(
                f"images are of several modes, {self.native} and {kind(image)} "
                f"({place(index, encoded)}): convert them with --image_mode {', '.join(MODES)}"
            )
        pixels = self.tensor(image)
        if pixels.shape != self.shape:
            raise ValueError(
                f"images must be alike, the first is {self.shape} and {place(index, encoded)} is "
                f"{tuple(pixels.shape)}: pass --resolution"
            )
        return pixels


def place(index: int | str, encoded: dict[str, Any] | None) -> str:
    """Return what a message calls an image."""
    path = (encoded or {}).get("path")
    return f"image {index}" + (f" ({path})" if path else "")
