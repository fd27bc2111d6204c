r"""Images of 8 bits as points of a density: what a density says of integers.

References: Theis et al., "A note on the evaluation of generative models",
https://arxiv.org/abs/1511.01844; Song et al., "Score-Based Generative Modeling through SDEs",
https://arxiv.org/abs/2011.13456.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def dequantize(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return 8-bit images as points of their cells, scaled to [-1, 1]; see `bits_per_dimension`.

    Raises:
        ValueError: if the images are not uint8.

    Example:
        >>> x = dequantize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        >>> (x * 127.5 + 127.5).round().byte()
        tensor([[[[  0, 255]]]], dtype=torch.uint8)
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, 0 to 255, got {images.dtype}")
    device = generator.device if generator is not None else images.device
    shift = torch.rand(images.shape, generator=generator, device=device).to(images.device) - 0.5
    return (images + shift) / 127.5 - 1


def in_bits(log_density: Tensor, num_dimensions: int) -> Tensor:
    """Return bits per dimension of densities in nats; see `bits_per_dimension`."""
    return -log_density / (num_dimensions * math.log(2)) + math.log2(127.5)


class BitsPerDimension(NamedTuple):
    """An upper bound of the code length of images, and the standard error of its mean."""

    value: float
    standard_error: float


def bits_per_dimension(log_density: Tensor, num_dimensions: int) -> BitsPerDimension:
    r"""Return bits per dimension of 8-bit images from densities at points of `dequantize`.

    An image of integers `k` is scaled to :math:`k/127.5 - 1`, as in training, and stands for the
    cube of side :math:`1/127.5` around it, in which it has the point
    :math:`x = (k + U)/127.5 - 1` with :math:`U` uniform on :math:`[-1/2, 1/2)^d`. By Jensen's
    inequality its probability, the integral of the density over that cube, has

    .. math:: -\frac1d \log_2 P(k) \le -\frac1d E_U[\log_2 p(x)] + \log_2 127.5.

    The standard error is that over the images; it includes what `dequantize` and random vectors
    add, since they are drawn for each image.

    Args:
        log_density: :math:`\log p(x)` in nats, one for each image, shape `(n,)`.
        num_dimensions: d, channels times height times width.

    Raises:
        ValueError: for fewer than two images, which tell nothing about the error, or for no
            dimension.

    Example:
        >>> log_density = torch.full((4,), 3 * math.log(0.5))  # uniform on [-1, 1]^3
        >>> round(bits_per_dimension(log_density, 3).value, 3)  # log2 of 255 cells
        7.994
    """
    if log_density.ndim != 1 or len(log_density) < 2:
        raise ValueError(
            "log_density must have the shape (n,) with n of at least 2, got "
            f"{tuple(log_density.shape)}"
        )
    if num_dimensions < 1:
        raise ValueError(
            "num_dimensions must be channels times height times width, at least 1, got "
            f"{num_dimensions}"
        )
    bits = in_bits(log_density.cpu().double(), num_dimensions)
    return BitsPerDimension(bits.mean().item(), (bits.std() / math.sqrt(len(bits))).item())
