r"""From noise to images around the loop: the shape of samples, their noise, their decoding.

Samples are pixels in [-1, 1], or with a `vae` codes `(encode(x) - shift_factor) scaling_factor`.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.pipelines.arguments import check_generator, count, finite_tensor, is_whole
from fm_diffusers.pipelines.networks import check_size
from fm_diffusers.pipelines.outputs import is_finite, taken
from fm_diffusers.pipelines.precision import upcast
from fm_diffusers.scheduling.noise import Generators


@dataclass(frozen=True)
class Latents:
    """What knows the shape of a network's samples and turns noise into them, them into images.

    Args:
        network: the network.
        vae: the autoencoder of the samples; None where they are pixels.
    """

    network: Any
    vae: Any

    @property
    def scale_factor(self) -> int:
        """Pixels of an image for each of a sample, along a side; 1 without a `vae`."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def vae_for(self, name: str) -> Any:
        """Return the `vae` that a method is about.

        Raises:
            ValueError: if there is none.
        """
        if self.vae is None:
            raise ValueError(
                f"{name} needs a pipeline with a vae, but the samples of this one are pixels, "
                "which nothing decodes"
            )
        return self.vae

    def shape(self, height: int | None, width: int | None) -> tuple[int | None, ...]:
        """Return channels, height and width of a sample for an image's height and width."""
        size, factor = self.network.config.get("sample_size"), self.scale_factor
        default = (size, size) if isinstance(size, int) else size or (None, None)
        for name, side in (("height", height), ("width", width)):
            if side is not None and (not is_whole(side) or side < 1 or side % factor):
                raise ValueError(f"{name} must be a multiple of {factor} pixels, got {side!r}")
        height = default[0] if height is None else height // factor
        width = default[1] if width is None else width // factor
        return self.network.config.in_channels, height, width

    def prepare(
        self,
        batch_size: int,
        generator: Generators | None,
        latents: Tensor | None,
        height: int | None,
        width: int | None,
        init_noise_sigma: float | Tensor,
        device: torch.device,
    ) -> Tensor:
        """Return the samples at the first timestep, in float32 or better: noise, unless given."""
        check_generator(generator, count("batch_size", batch_size))
        shape = (batch_size, *self.shape(height, width))
        if latents is not None:
            latents = finite_tensor("latents", latents, "they are the samples to start from")
        found = shape if latents is None else tuple(latents.shape)
        fixed = 2 if (height, width) == (None, None) else 4
        if len(found) != 4 or found[:fixed] != shape[:fixed]:
            raise ValueError(
                f"latents must have the shape {shape}, got {found}: they are the samples at the "
                "first timestep, one for each image"
            )
        if None in found:
            raise ValueError("the network has no sample_size: pass height and width, or latents")
        sides = tuple(side for side in found[2:] if side is not None)
        check_size(self.network, sides, self.scale_factor)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device)
            return latents * init_noise_sigma
        return latents.to(device, torch.promote_types(latents.dtype, torch.float32))

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.network.config.in_channels if self.vae is None else self.vae.config.in_channels

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the samples of images: 2 x - 1 of pixels in [0, 1], or the codes of a `vae`.

        The codes are the modes of what the encoder returns, so that an image has one.
        """
        images = 2 * pixels - 1
        if self.vae is None:
            return images
        with upcast(self.vae) as dtype:
            found = self.vae.encode(images.to(self.vae.device, dtype))
        if hasattr(found, "latent_dist"):
            codes = found.latent_dist.mode()
        else:
            codes = found[0]  # of a VQModel or an AutoencoderTiny, which draw nothing
        height, width = (side // self.scale_factor for side in images.shape[2:])
        shape = (len(images), self.network.config.in_channels, height, width)
        way_out = "codes of every image, smaller by the factor of its blocks"
        codes = taken(codes, "vae", (shape,), way_out).float()
        shift, scale = self.vae.config.get("shift_factor") or 0, self.vae.config.scaling_factor
        return (codes - shift) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return images around [-1, 1]: the samples, or what the `vae` makes of them.

        Warns if samples are finite and their images are not.
        """
        if self.vae is None:
            return latents
        config, factor = self.vae.config, self.scale_factor
        codes = latents / config.scaling_factor + (config.get("shift_factor") or 0)
        with upcast(self.vae) as dtype:
            output = self.vae.decode(codes.to(dtype), return_dict=False)
        height, width = latents.shape[2:]
        channels = config.get("out_channels", 3)
        shape = (len(latents), channels, height * factor, width * factor)
        way_out = f"an image of {channels} channels for every sample, {factor} times its size"
        images = taken(output, "vae", (shape,), way_out).to(latents.dtype)
        if is_finite(latents) & ~is_finite(images):
            warnings.warn(
                "the samples are finite, but the images that the vae makes of them are not (NaN "
                f"or infinite) in {self.vae.dtype}: half precision may overflow where "
                "torch.float32 and torch.bfloat16 do not, pipe.vae.to(torch.float32)",
                RuntimeWarning,
                stacklevel=5,
            )
        return images
