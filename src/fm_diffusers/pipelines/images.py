"""Pictures that a call is given: as tensors in [0, 1], without loss or with an error."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fm_diffusers.pipelines.outputs import described

#: What pictures can be, with their channels: grey, colour, colour with an alpha channel.
MODES = {"L": 1, "RGB": 3, "RGBA": 4}
#: Conversions that lose nothing.
LOSSLESS = {
    *(("1", "L"), ("1", "RGB"), ("L", "RGB"), ("P", "RGB")),
    *(("L", "RGBA"), ("P", "RGBA"), ("LA", "RGBA"), ("RGB", "RGBA")),
}


def as_pixels(name: str, images: Any, channels: int) -> Tensor:
    """Return pictures as float32 numbers in [0, 1], shape `(n, channels, height, width)`.

    Args:
        name: of the argument.
        images: one or a list of PIL pictures, arrays `(n, height, width, channels)` or tensors
            `(n, channels, height, width)`, the leading n being optional; bytes, or floating-point
            numbers in [0, 1].
        channels: how many there must be.

    Raises:
        ValueError: for anything else, pictures of different sizes, or a conversion with a loss.

    Example:
        >>> as_pixels("image", Image.new("L", (3, 2), 255), 1).shape
        torch.Size([1, 1, 2, 3])
    """
    several = images if isinstance(images, list | tuple) else [images]
    found = [_one(name, image, channels) for image in several]
    if not found:
        raise ValueError(f"{name} must be at least one picture, got {images!r}")
    sizes = sorted({tuple(x.shape[2:]) for x in found})
    if len(sizes) > 1:
        raise ValueError(
            f"{name} must be pictures of one size, got {sizes} (height, width): resize them first"
        )
    return torch.cat(found)


def as_bytes(name: str, images: Any, channels: int) -> Tensor | None:
    """Return pictures, which are integers from 0 to 255, as uint8; None for other numbers."""
    several = images if isinstance(images, list | tuple) else [images]
    whole = [
        isinstance(x, Image.Image) or str(getattr(x, "dtype", "")).endswith("uint8")
        for x in several
    ]
    if not all(whole):
        return None
    return (as_pixels(name, images, channels) * 255).round().to(torch.uint8)


def _one(name: str, image: Any, channels: int) -> Tensor:
    """Return one picture, array or tensor as a batch."""
    if isinstance(image, Image.Image):
        array = np.asarray(in_mode(name, image, channels))
        image = array[None, :, :, None] if array.ndim == 2 else array[None]
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[-1] != channels and channels == 1:
            image = image[..., None]  # grey pictures, as `output_type="np"` has them not
        image = torch.from_numpy(image.copy())
        image = image[None, ..., None] if image.ndim == 2 else image
        image = (image[None] if image.ndim == 3 else image).movedim(-1, 1)
    if not isinstance(image, Tensor):
        raise ValueError(
            f"{name} must be a PIL picture, an array, a tensor or a list of these, got "
            f"{described(image)}"
        )
    if image.is_complex() or image.is_meta:
        raise ValueError(
            f"{name} must hold real numbers on a device that has them, got a tensor of "
            f"{image.dtype} on {image.device}: pass image.real, or what was read from a file"
        )
    image = image[None, None] if image.ndim == 2 else image
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[1] != channels or not image.numel():
        raise ValueError(
            f"{name} must have {channels} channels, tensors the shape (n, {channels}, height, "
            f"width) and arrays (n, height, width, {channels}), got {described(image)}"
        )
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point() or not ((image >= 0) & (image <= 1)).all():
        raise ValueError(
            f"{name} must be bytes, or floating-point numbers in [0, 1], got {described(image)} "
            f"from {image.min().item():g} to {image.max().item():g}: numbers in [-1, 1] become "
            "these by x / 2 + 0.5"
        )
    return image.float()


def in_mode(name: str, image: Image.Image, channels: int) -> Image.Image:
    """Return a picture in the mode with so many channels, if that loses nothing.

    Raises:
        ValueError: if it does.
    """
    mode = next((mode for mode, count in MODES.items() if count == channels), None)
    has_alpha = image.has_transparency_data and mode != "RGBA"
    if image.mode == mode and not has_alpha:
        return image
    if (image.mode, mode) not in LOSSLESS or has_alpha:
        hidden = " with transparency" if image.has_transparency_data else ""
        raise ValueError(
            f"{name} must have {channels} channels ({mode or 'a tensor, no picture has these'}), "
            f"got a picture in mode {image.mode}{hidden}: what is lost by a conversion is yours "
            f'to choose, {name}.convert("{mode}") is one'
        )
    return image.convert(mode)
