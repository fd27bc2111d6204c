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

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTTransformer2DModel,
    ImagePipelineOutput,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fm_diffusers.pipelines.conditioning import Conditioning
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.hub import HubShims
from fm_diffusers.pipelines.latents import Latents
from fm_diffusers.pipelines.lora import LoraLoader
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.transition import Generators

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class FlowMatchingPipeline(HubShims, LoraLoader, Conditioning, Latents, DiffusionPipeline):
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
        if scheduler is None or (unet is None) == (transformer is None):
            raise ValueError("a pipeline needs a scheduler, and a unet or a transformer, not both")
        self.register_modules(
            unet=unet,
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.check_components(null_label)
        self.register_to_config(null_label=null_label)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def network(self) -> nn.Module:
        """The `unet` or the `transformer`."""
        return self.transformer if self.unet is None else self.unet

    def check_inputs(
        self,
        asked: Asked,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = (),
    ) -> None:
        """Raise a `ValueError` for what cannot be sampled, saying why and what to pass."""
        self.check_conditions(asked)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        known = self._callback_tensor_inputs[: 1 + (self.takes == "text")]
        unknown = set(callback_on_step_end_tensor_inputs) - set(known)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {known}, got {sorted(unknown)}"
            )

    def predict(
        self, latents: Tensor, t: Tensor, condition: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """Return what the network predicts, guided; see `encode_condition` for the condition."""
        guide = guidance_scale != 1
        model_input = torch.cat([latents] * 2) if guide else latents
        if hasattr(self.scheduler, "scale_model_input"):  # diffusers' flow schedulers have none
            model_input = self.scheduler.scale_model_input(model_input, t)
        model_input = model_input.to(self.network.dtype)
        timesteps = t.expand(len(model_input))  # a DiT takes no other
        output = self.network(model_input, timesteps, condition, return_dict=False)[0]
        output = output[:, : latents.shape[1]].to(latents.dtype)  # the rest is a learned variance
        return torch.lerp(*output.chunk(2), guidance_scale) if guide else output

    def calibration_field(
        self,
        num_samples: int,
        generator: Generators | None = None,
        noise: Tensor | None = None,
        **conditions: Any,
    ) -> tuple[Callable[[Tensor, Tensor, slice], Tensor], Tensor]:
        """Return the network as a field of parts of a batch, and standard normal noise.

        Args:
            num_samples: how much noise is drawn if none is given.
            generator: of the noise.
            noise: shape `(n, ...)`.
            **conditions: arguments of a call, `class_labels` (by default all), `prompt` and their
                like, taken in turn; `guidance_scale`.
        """
        if noise is None:
            noise = self.prepare_latents(num_samples, generator, None) / self.init_noise_sigma
        else:
            noise = self.prepare_latents(len(noise), None, noise)
        if conditions.get("class_labels") is None:
            conditions["class_labels"] = list(range(self.num_classes)) or None
        asked = Asked(**conditions).cycled(len(noise))
        self.check_inputs(asked)
        with torch.no_grad():
            condition = self.encode_condition(asked)
        each = None if condition is None else condition.unflatten(0, (-1, len(noise)))

        def field(x: Tensor, t: Tensor, part: slice) -> Tensor:
            timestep = self.scheduler.to_timestep(t).to(x.device, torch.float32)
            of_part = None if each is None else each[:, part].flatten(0, 1)
            return self.predict(x, timestep, of_part, asked.guidance_scale)

        return field, noise

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        num_images_per_label: int = 1,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[float] | None = None,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
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
            num_inference_steps: number of steps from noise to data.
            timesteps: where the steps start instead, descending from `num_train_timesteps`.
            guidance_scale: w of `uncond + w (cond - uncond)`; 1 is no guidance.
            generator: of all noise, that of an SDE included; or a list, one for each image, which
                then does not depend on its batch.
            latents: samples at the first timestep, shape `(batch, channels, height, width)`.
            output_type: `pil`, `np` (in [0, 1], channels last), `pt` (in [0, 1]), or `latent`, the
                samples themselves.
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: called as `(pipe, index, timestep, tensors)` after every step;
                may return a dictionary with new tensors.
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
            ValueError: for conditions, sizes or options that the network cannot serve.
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
        self.check_inputs(asked, output_type, callback_on_step_end_tensor_inputs)
        condition = self.encode_condition(asked)
        grid = {"timesteps": timesteps} if timesteps is not None else {}
        steps = None if timesteps is not None else num_inference_steps
        self.scheduler.set_timesteps(steps, device=self._execution_device, **grid)
        latents = self.prepare_latents(asked.count, generator, latents, height, width)

        takes_noise = "generator" in inspect.signature(self.scheduler.step).parameters
        noise = {"generator": generator} if takes_noise else {}
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                output = self.predict(latents, t, condition, guidance_scale)
                latents = self.scheduler.step(output, t, latents, return_dict=False, **noise)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": condition}
                    shown = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= callback_on_step_end(self, i, t, shown)
                    latents, condition = tensors["latents"], tensors["prompt_embeds"]
                progress_bar.update()

        images = latents if output_type == "latent" else self.decode_latents(latents)
        images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
