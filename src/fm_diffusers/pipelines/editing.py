r"""Changing an image: noise it in part, hold the pixels that are known, draw the others anew.

An image z is carried to the time t at which the loop begins, :math:`\alpha_t z + \beta_t
\varepsilon`, and the loop goes on from there: `strength` is the share of the steps that are
taken, from 0, the image itself, to 1, an image drawn from noise. A mask says so for every pixel: a
pixel of value m is held on the path of the image, with the same noise, until the share m of the
steps is left, and is free from there on. White is free from the beginning, black never: a black
pixel of the outcome is that of the image, bit for bit. With a `vae` codes are held, a code being
as free as the freest of its pixels, and black pixels are put back after the decoding.

References: Meng et al., "SDEdit", https://arxiv.org/abs/2108.01073; Lugmayr et al., "RePaint",
https://arxiv.org/abs/2201.09865; Levin, Fried, "Differential Diffusion",
https://arxiv.org/abs/2306.00950.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fm_diffusers.pipelines.arguments import number
from fm_diffusers.pipelines.images import as_pixels

#: `strength` of a call that does not say: with an image alone, and with a mask.
STRENGTH, STRENGTH_OF_MASKED = 0.8, 1.0
#: How far a number of steps may be off by rounding, 50 x 0.58 for one.
ROUNDING = 1e-6
#: Half of a step between two greys of 8 bits.
HALF_A_GREY = 0.5 / 255


@dataclass(frozen=True)
class Editing:
    """What a call is told about an image, by arguments of the pipeline with the same names.

    Raises:
        ValueError: for a strength outside of [0, 1], or one or a mask without an image.
    """

    image: Any = None
    strength: float | None = None
    mask_image: Any = None

    def __post_init__(self) -> None:
        for name in ("mask_image", "strength"):
            if self.image is None and getattr(self, name) is not None:
                raise ValueError(f"{name} was given without an image: pass image, or drop it")
        strength = self.strength
        if strength is None:
            strength = STRENGTH if self.mask_image is None else STRENGTH_OF_MASKED
        way_out = "0 is the image itself, 1 draws it anew"
        strength = number("strength", strength, way_out)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must lie in [0, 1], got {strength}: {way_out}")
        object.__setattr__(self, "strength", strength)

    def pixels(self, channels: int, height: int | None, width: int | None) -> Tensor | None:
        """Return the images in [0, 1], shape `(n, channels, height, width)`; None without.

        Raises:
            ValueError: for what is no image, or has another size than is asked for.
        """
        if self.image is None:
            return None
        pixels = as_pixels("image", self.image, channels)
        for name, asked, side in zip(
            ("height", "width"), (height, width), pixels.shape[2:], strict=True
        ):
            if asked not in (None, side):
                raise ValueError(
                    f"{name}={asked} contradicts the image, which has {side} pixels: resize it "
                    "first, or leave it out"
                )
        return pixels

    def mask(self, pixels: Tensor) -> Tensor | None:
        """Return how free pixels are, shape `(n or 1, 1, height, width)`; None without a mask.

        Raises:
            ValueError: if it does not have the size of the images, or another number.
        """
        if self.mask_image is None:
            return None
        mask = as_pixels("mask_image", self.mask_image, 1)
        if mask.shape[2:] != pixels.shape[2:] or len(mask) not in (1, len(pixels)):
            raise ValueError(
                f"mask_image must have the height and width {tuple(pixels.shape[2:])} of the "
                f"{len(pixels)} images, one for all or one for each, got {len(mask)} of "
                f"{tuple(mask.shape[2:])}"
            )
        return mask

    def begun(self, pipe: Any, pixels: Tensor, drawn: Tensor, repeats: int) -> "Edit":
        """Return the change of images by a pipeline's loop, whose scheduler begins there.

        Args:
            pipe: the pipeline of this call alone.
            pixels: the images.
            drawn: the samples of a loop from noise.
            repeats: number of samples of each condition.
        """
        scheduler, canvas, mask = pipe.scheduler, pipe.canvas, self.mask(pixels)
        timesteps, order = len(scheduler.timesteps), getattr(scheduler, "order", 1)
        intervals = (timesteps + order - 1) // order
        assert self.strength is not None
        begin = begin_of(self.strength, intervals, order)
        if 0 < begin < timesteps and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)

        def for_each(images: Tensor) -> Tensor:
            return spread(images, len(drawn), repeats).to(drawn.device)

        masks = {}
        if mask is not None:
            free = freedom(mask, canvas.scale_factor, intervals)
            masks = {"mask": for_each(mask), "free": for_each(free)}
        return Edit(
            pixels=for_each(pixels),
            codes=for_each(canvas.encode(pixels)).to(drawn),
            drawn=drawn,
            noise=drawn / pipe.init_noise_sigma,
            begin=begin,
            count=intervals,
            order=order,
            **masks,
        )


@dataclass(frozen=True)
class Edit:
    """An image that a loop changes.

    Attributes:
        pixels: the image in [0, 1], one for each sample.
        codes: the samples that it is.
        drawn: the samples of a loop from noise.
        noise: these as standard normal noise.
        begin: index in the scheduler's `timesteps` at which the loop begins.
        count: number of intervals of the whole run.
        order: evaluations of an interval.
        mask: how free the pixels are, None where all are.
        free: for how many intervals the samples are free, shape of the mask over the codes.
    """

    pixels: Tensor
    codes: Tensor
    drawn: Tensor
    noise: Tensor
    begin: int
    count: int
    order: int
    mask: Tensor | None = None
    free: Tensor | None = None

    def start(self, scheduler: Any) -> Tensor:
        """Return the samples at which the loop begins: pure noise at the first timestep."""
        if self.begin == 0:
            return self.hold(scheduler, self.drawn, 0)
        if self.begin >= len(scheduler.timesteps):
            return self.codes
        return noised(scheduler, self.codes, self.noise, self.begin)

    def hold(self, scheduler: Any, latents: Tensor, steps: int) -> Tensor:
        """Return samples of which those that are not free yet lie on the path of the image.

        Args:
            scheduler: at the step that comes next.
            latents: the samples there.
            steps: how many evaluations of the loop have been made.
        """
        index = self.begin + steps
        ended = index >= len(scheduler.timesteps)
        if self.free is None or (index % self.order and not ended):
            return latents
        left = 0 if ended else self.count - index // self.order
        held = self.codes if ended else noised(scheduler, self.codes, self.noise, index)
        is_free = (self.free > left) | (self.free == self.count)
        return torch.where(is_free, latents, held.to(latents.dtype))

    def finish(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] with what may not change as it was: black pixels of the mask."""
        if self.begin >= self.count * self.order:
            return self.pixels
        if self.mask is None:
            return images
        return torch.where(self.mask > 0, images, self.pixels.to(images))


def begin_of(strength: float, count: int, order: int) -> int:
    """Return the index of the timestep at which a share of `count` intervals is left.

    Raises:
        ValueError: if no interval is left although the strength is not 0.

    Example:
        >>> begin_of(0.58, 50, 1)  # 29 of 50 steps
        21
    """
    left = int(count * strength + ROUNDING)
    if strength and not left:
        raise ValueError(
            f"strength={strength} of {count} steps is none: pass at least {1 / count:g}, more "
            "steps, or 0 for the image itself"
        )
    return (count - left) * order


def noised(scheduler: Any, codes: Tensor, noise: Tensor, index: int) -> Tensor:
    """Return samples on the path of the data `codes` at one of a scheduler's timesteps."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(codes, noise, scheduler.timesteps[index : index + 1])
    sigma = scheduler.sigmas[index].to(codes)  # diffusers' flow schedulers
    return (1 - sigma) * codes + sigma * noise


def freedom(mask: Tensor, factor: int, count: int) -> Tensor:
    """Return for how many of `count` intervals samples are free: the freest of their pixels.

    A mask of 8 bits cannot say one half: 127 of 255 is taken for it.
    """
    freest = mask if factor == 1 else F.max_pool2d(mask, factor)
    grey = (freest > 0) & (freest < 1)
    return torch.where(grey, count * (freest + HALF_A_GREY) + ROUNDING, count * freest).floor()


def spread(images: Tensor, count: int, repeats: int) -> Tensor:
    """Return one image for each of `count` samples: one for all, one each, or one a condition.

    Raises:
        ValueError: for another number of images.
    """
    if len(images) == 1:
        return images.expand(count, *images.shape[1:])
    if len(images) * repeats == count:
        return images.repeat_interleave(repeats, 0)
    if len(images) != count:
        raise ValueError(
            f"image must be one for all or one for each of the {count} images that are asked "
            f"for, got {len(images)}: pass as many labels or prompts, or batch_size"
        )
    return images
