r"""`FlowMatchingPipeline`: draws images from a flow-matching model, as an ODE or as an SDE.

The pipeline knows nothing of paths or solvers: it draws noise, asks the network at the scheduler's
`timesteps`, guides its output, and hands it to `scheduler.step`; a `vae` decodes what comes out.
Which process is sampled is a matter of the scheduler's configuration::

    pipe = FlowMatchingPipeline.from_pretrained("user/flow-mnist")
    ode = pipe(class_labels=[3, 7]).images
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, diffusion="memoryless"
    )
    sde = pipe(class_labels=[3, 7]).images
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    ImagePipelineOutput,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fm_diffusers.pipelines.arguments import check_callback, check_output, steps_of
from fm_diffusers.pipelines.calibrating import field_and_noise
from fm_diffusers.pipelines.conditioning import Conditioning
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.denoising import alone, denoise, predict, visible
from fm_diffusers.pipelines.hub import SavedPipeline
from fm_diffusers.pipelines.latents import Latents
from fm_diffusers.pipelines.networks import check_components
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.transition import Generators


class FlowMatchingPipeline(SavedPipeline):
    r"""Image generation by flow matching: unconditional, by class or by text, in pixels or codes.

    Args:
        unet: the network, fed samples, `timesteps` and labels or states of text; images are scaled
            to [-1, 1]. A `UNet2DModel`, or a `UNet2DConditionModel` for text.
        scheduler: says what the network predicts on which path, and how to sample it; or one of
            diffusers', for a network that predicts what it expects (`flow_prediction` on the
            linear path for its flow schedulers).
        null_label: the class label that stands for "no class", the last of the network's; needed
            for classifier-free guidance. None for networks trained without it.
        transformer: the network in place of `unet`, a `DiTTransformer2DModel`: its null label is
            `num_embeds_ada_norm`. Of outputs with twice the channels, the first half is taken.
        vae: decodes samples, which are codes `(encode(x) - shift_factor) scaling_factor`.
        text_encoder: turns prompts into the states that the network attends to.
        tokenizer: of the text encoder.

    Calls may run in several threads at once: each steps a scheduler of its own, and afterwards
    `scheduler.timesteps` are those of the call that ended last. Give each its own `generator`; the
    global one and that of `scheduler.set_generator` hand out noise in the order of the threads.
    Offloading moves components that all calls share: then one call at a time.

    Raises:
        ValueError: for components that do not fit together.

    References: Lipman et al., "Flow Matching for Generative Modeling",
    https://arxiv.org/abs/2210.02747; Ho, Salimans, "Classifier-Free Diffusion Guidance",
    https://arxiv.org/abs/2207.12598; Rombach et al., "High-Resolution Image Synthesis with Latent
    Diffusion Models", https://arxiv.org/abs/2112.10752; Peebles, Xie, "Scalable Diffusion Models
    with Transformers", https://arxiv.org/abs/2212.09748.
    """

    model_cpu_offload_seq = "text_encoder->unet->transformer->vae"
    _optional_components = ["unet", "scheduler", "transformer", "vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel | None = None,
        scheduler: GaussianFlowScheduler | None = None,
        null_label: int | None = None,
        transformer: DiTTransformer2DModel | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(null_label=null_label)
        check_components(self)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def network(self) -> nn.Module:
        """The `unet` or the `transformer`."""
        return self.transformer if self.unet is None else self.unet

    @property
    def conditioning(self) -> Conditioning:
        """What turns labels and prompts into the condition that the network is fed."""
        texts = (self.text_encoder, self.tokenizer)
        return Conditioning(self.network, self.config.null_label, *texts)

    @property
    def canvas(self) -> Latents:
        """What turns noise into samples of the network's size, and samples into images."""
        patch = 0 if self.transformer is None else self.transformer.config.patch_size
        return Latents(self.network, self.vae, patch)

    @property
    def network_takes_labels(self) -> bool:
        """Whether the network is called with labels, be it only that for "no class"."""
        return self.conditioning.takes_labels

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for; 0 for networks without."""
        return self.conditioning.num_classes

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
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = (),
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        return_dict: bool = True,
    ) -> None:
        """Raise a `ValueError` for what cannot be sampled, saying why and what to pass."""
        check_components(self)
        self.conditioning.check(asked)
        check_output(output_type, return_dict)
        seen = callback_on_step_end_tensor_inputs
        check_callback(callback_on_step_end, seen, visible(self))

    def encode_condition(self, asked: Asked) -> Tensor | None:
        """Return the condition of every image, preceded by as many null ones if it is guided."""
        return self.conditioning.encode(asked, self._execution_device)

    def encode_labels(
        self, labels: list[int] | None, num_images_per_label: int, batch_size: int, guide: bool
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
        self, latents: Tensor, t: Tensor, condition: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """Return what the network predicts, guided; see `encode_condition` for the condition."""
        return predict(self.network, self.scheduler, latents, t, condition, guidance_scale)

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

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        num_images_per_label: int = 1,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        r"""Draw images.

        Args:
            class_labels: a label or a list of labels, one for each image; None draws from the
                network without a class.
            num_images_per_label: number of images of each label, next to each other.
            batch_size: number of images where there are no labels and no prompts; by default 1.
            num_inference_steps: number of steps from noise to data, by default 50.
            timesteps: where the steps start instead, descending from `num_train_timesteps`.
            guidance_scale: w of `uncond + w (cond - uncond)`; 1 is no guidance.
            generator: of all noise, that of an SDE included; or a list, one for each image, which
                then does not depend on its batch.
            latents: samples at the first timestep, shape `(batch, channels, height, width)`.
            output_type: `pil`, `np` (in [0, 1], channels last), `pt` (in [0, 1]), or `latent`, the
                samples themselves.
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: called as `(pipe, index, timestep, tensors)` after every step;
                may return a dictionary with new tensors. Its `pipe` is that of the call, with the
                components of this one and a scheduler at the call's place.
            callback_on_step_end_tensor_inputs: its tensors: `latents`, and `prompt_embeds`, which
                a guided call precedes with the negative ones.
            prompt: a text or a list of texts, for a network that takes text; None draws with the
                empty prompt.
            num_images_per_prompt: number of images of each prompt, next to each other.
            negative_prompt: what guidance leads away from, one text or one for each prompt; by
                default empty.
            prompt_embeds: what `encode_prompt` returned, in place of `prompt`.
            negative_prompt_embeds: likewise, in place of `negative_prompt`.
            height: of the images in pixels; by default the `sample_size` of the network.
            width: likewise.

        Returns:
            The images.

        Raises:
            ValueError: for conditions, sizes or options that the network cannot serve, and for
                components that return something else than they should.
        """
        asked = Asked(
            class_labels=class_labels,
            num_images_per_label=num_images_per_label,
            batch_size=batch_size,
            prompt=prompt,
            num_images_per_prompt=num_images_per_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            guidance_scale=guidance_scale,
        )
        callback, seen = callback_on_step_end, callback_on_step_end_tensor_inputs
        self.check_inputs(asked, output_type, seen, callback, return_dict)
        steps = steps_of(self.scheduler, num_inference_steps, timesteps)
        condition = self.encode_condition(asked)
        with alone(self) as own:
            own.scheduler.set_timesteps(**steps, device=self._execution_device)
            latents = own.prepare_latents(asked.count, generator, latents, height, width)
            guided = (condition, asked.guidance_scale)
            latents = denoise(own, latents, *guided, generator, callback, seen)
        images = latents if output_type == "latent" else self.decode_latents(latents)
        images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
