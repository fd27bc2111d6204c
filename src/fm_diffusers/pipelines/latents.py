r"""From noise to images around the loop: the shape of samples, their noise, their decoding.

The part of `FlowMatchingPipeline` that knows the size of its network and its `vae`.
"""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.scheduling.transition import Generators


class Latents:
    """Samples of a pipeline with a `network`, a `scheduler` and perhaps a `vae`."""

    network: Any
    scheduler: Any
    vae: Any
    transformer: Any
    _execution_device: torch.device

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image for each of a sample, along a side; 1 without a `vae`."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Standard deviation of the noise to start from; 1 for diffusers' flow schedulers."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)

    def sample_shape(self, height: int | None, width: int | None) -> tuple[int | None, ...]:
        """Return channels, height and width of a sample for an image's height and width."""
        size, factor = self.network.config.sample_size, self.vae_scale_factor
        default = (size, size) if isinstance(size, int) else size or (None, None)
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side < 1 or side % factor):
                raise ValueError(f"{name} must be a multiple of {factor} pixels, got {side}")
        height = default[0] if height is None else height // factor
        width = default[1] if width is None else width // factor
        return self.network.config.in_channels, height, width

    def prepare_latents(
        self,
        batch_size: int,
        generator: Generators | None,
        latents: Tensor | None,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Return the samples at the first timestep, in float32 or better: noise, unless given."""
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"a list of generators must have one for each of the {batch_size} images, "
                f"got {len(generator)}"
            )
        shape = (batch_size, *self.sample_shape(height, width))
        found = shape if latents is None else tuple(latents.shape)
        fixed = 2 if (height, width) == (None, None) else 4
        if len(found) != 4 or found[:fixed] != shape[:fixed]:
            raise ValueError(
                f"latents must have the shape {shape}, got {found}: they are the samples at the "
                "first timestep, one for each image"
            )
        if None in found:
            raise ValueError("the network has no sample_size: pass height and width, or latents")
        patch = 0 if self.transformer is None else self.transformer.config.patch_size
        if patch and (found[2] != found[3] or found[2] % patch):
            raise ValueError(
                f"a transformer takes square images, samples of a multiple of {patch}: got "
                f"{found[2:]}"
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device)
            return latents * self.init_noise_sigma
        dtype = torch.promote_types(latents.dtype, torch.float32)
        return latents.to(self._execution_device, dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images around [-1, 1]: the samples, or what the `vae` makes of them."""
        if self.vae is None:
            return latents
        codes = latents / self.vae.config.scaling_factor
        codes = codes + (self.vae.config.get("shift_factor") or 0)
        return self.vae.decode(codes.to(self.vae.dtype), return_dict=False)[0].to(latents.dtype)
