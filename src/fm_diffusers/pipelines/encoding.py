"""What a pipeline makes of its components: conditions, samples, images and predictions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fm_diffusers.pipelines.arguments import check_output
from fm_diffusers.pipelines.calibrating import field_and_noise
from fm_diffusers.pipelines.conditioning import Conditioning
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.denoising import predict
from fm_diffusers.pipelines.guidance import Guidance
from fm_diffusers.pipelines.labels import label_ids
from fm_diffusers.pipelines.latents import Latents
from fm_diffusers.pipelines.life_cycle import LifeCycle
from fm_diffusers.pipelines.networks import check_components
from fm_diffusers.scheduling.noise import Generators


class Encoding(LifeCycle):
    """A pipeline that encodes what it is asked, and decodes what it draws."""

    @property
    def network(self) -> nn.Module:
        """The `unet` or the `transformer`."""
        return self.transformer if self.unet is None else self.unet

    @property
    def conditioning(self) -> Conditioning:
        """What turns labels and prompts into the condition that the network is fed."""
        texts, config = (self.text_encoder, self.tokenizer), self.config
        return Conditioning(self.network, config.null_label, *texts, config.id2label)

    @property
    def canvas(self) -> Latents:
        """What turns noise into samples of the network's size, and samples into images."""
        return Latents(self.network, self.vae)

    @property
    def network_takes_labels(self) -> bool:
        """Whether the network is called with labels, be it only that for "no class"."""
        return self.conditioning.takes_labels

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for; 0 for networks without."""
        return self.conditioning.num_classes

    @property
    def labels(self) -> dict[str, int]:
        """The class of every name that asks for one, as diffusers' `DiTPipeline` has it."""
        return label_ids(self.config.id2label)

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Return the classes that names ask for."""
        return self.conditioning.numbers(label)

    @property
    def takes(self) -> str:
        """What the network can be told: `labels`, `text` or `nothing`."""
        return self.conditioning.takes

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of an image for each of a sample, along a side; 1 without a `vae`."""
        return self.canvas.scale_factor

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Standard deviation of the noise to start from; 1 for diffusers' flow schedulers."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)

    def check_inputs(
        self,
        asked: Asked,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> None:
        """Raise a `ValueError` for what cannot be sampled, saying why and what to pass."""
        check_components(self)
        self.conditioning.check(asked)
        check_output(output_type, return_dict)

    def encode_condition(self, asked: Asked) -> Tensor | None:
        """Return the condition of every image, preceded by as many null ones if it is guided."""
        return self.conditioning.encode(asked, self._execution_device)

    def encode_labels(
        self,
        labels: int | str | list[int | str] | Tensor | None,
        num_images_per_label: int,
        batch_size: int,
        guide: bool,
    ) -> Tensor | None:
        """Return the labels of the batch, preceded by as many null labels where it is guided."""
        counts, device = (num_images_per_label, batch_size), self._execution_device
        return self.conditioning.encode_labels(labels, *counts, guide, device)

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = False,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the states of prompts for each image, and those that guidance starts from.

        They are None without guidance; for arguments see `Conditioning.encode_prompt`.
        """
        guide, embeds = do_classifier_free_guidance, (prompt_embeds, negative_prompt_embeds)
        texts = (prompt, num_images_per_prompt, guide, negative_prompt)
        return self.conditioning.encode_prompt(self._execution_device, *texts, *embeds)

    def sample_shape(self, height: int | None, width: int | None) -> tuple[int | None, ...]:
        """Return channels, height and width of a sample for an image's height and width."""
        return self.canvas.shape(height, width)

    def prepare_latents(
        self,
        batch_size: int,
        generator: Generators | None,
        latents: Tensor | None,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Return the samples at the first timestep, in float32 or better: noise, unless given."""
        size, start = (height, width), (self.init_noise_sigma, self._execution_device)
        return self.canvas.prepare(batch_size, generator, latents, *size, *start)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images around [-1, 1]: the samples, or what the `vae` makes of them."""
        return self.canvas.decode(latents)

    def enable_vae_slicing(self) -> None:
        """Let the `vae` decode one image of a batch at a time: less memory, the same images."""
        self.canvas.vae_for("enable_vae_slicing").enable_slicing()

    def enable_vae_tiling(self) -> None:
        """Let the `vae` decode images above its `sample_size` in tiles, blended at their edges."""
        self.canvas.vae_for("enable_vae_tiling").enable_tiling()

    def disable_vae_slicing(self) -> None:
        """Let the `vae` decode a batch at once."""
        self.canvas.vae_for("disable_vae_slicing").disable_slicing()

    def disable_vae_tiling(self) -> None:
        """Let the `vae` decode an image of any size at once."""
        self.canvas.vae_for("disable_vae_tiling").disable_tiling()

    def predict(
        self,
        latents: Tensor,
        t: Tensor,
        condition: Tensor | None,
        guidance: float | Guidance,
        advance: Tensor | None = None,
    ) -> Tensor:
        """Return what the network predicts, guided; see `encode_condition` for the condition.

        With `advance`, how far a step leads, it is the average slope of a flow map.
        """
        return predict(self.network, self.scheduler, latents, t, condition, guidance, advance)

    def calibration_field(
        self,
        num_samples: int,
        generator: Generators | None = None,
        noise: Tensor | None = None,
        **conditions: Any,
    ) -> tuple[Callable[[Tensor, Tensor, slice], Tensor], Tensor]:
        """Return the network as a field of parts of a batch, and standard normal noise.

        For arguments see `field_and_noise`; `conditions` are arguments of a call.
        """
        return field_and_noise(self, num_samples, generator, noise, conditions)
