r"""`FlowMatchingPipeline`: draws images from a flow-matching model, as an ODE or as an SDE.

The pipeline knows nothing of paths or solvers: it draws noise, asks the network at the scheduler's
`timesteps`, guides its output, and hands it to `scheduler.step`; a `vae` decodes what comes out.
Which process is sampled is a matter of the scheduler's configuration::

    pipe = FlowMatchingPipeline.from_pretrained("user/flow-mnist")
    ode = pipe([3, 7]).images  # labels, by number or by name; or prompts
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, diffusion="memoryless"
    )
    sde = pipe([3, 7]).images
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
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fm_diffusers.pipelines.arguments import steps_of
from fm_diffusers.pipelines.callbacks import TENSORS, inputs_of
from fm_diffusers.pipelines.denoising import alone, denoise
from fm_diffusers.pipelines.editing import Editing
from fm_diffusers.pipelines.guidance import guidance_of
from fm_diffusers.pipelines.labels import by_number
from fm_diffusers.pipelines.networks import check_components, warn_of_size
from fm_diffusers.pipelines.operations import Operations
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.noise import Generators


class FlowMatchingPipeline(Operations):
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
        guider: guides every call that brings no other and no `guidance_scale`, one of diffusers'
            guiders; see `pipelines.guidance`.
        id2label: names of the classes by number, by which they can be asked for as well; several
            of one class stand between commas, as in diffusers' `DiTPipeline`.

    Calls may run in several threads at once: each steps a scheduler of its own, and afterwards
    `scheduler.timesteps` are those of the call that ended last. Give each its own `generator`; the
    global one and that of `scheduler.set_generator` hand out noise in the order of the threads.
    Offloading moves components that all calls share, and some guiders hook the network's layers:
    then one call at a time.

    Raises:
        ValueError: for components that do not fit together.

    References: Lipman et al., "Flow Matching for Generative Modeling",
    https://arxiv.org/abs/2210.02747; Ho, Salimans, "Classifier-Free Diffusion Guidance",
    https://arxiv.org/abs/2207.12598; Rombach et al., "High-Resolution Image Synthesis with Latent
    Diffusion Models", https://arxiv.org/abs/2112.10752; Peebles, Xie, "Scalable Diffusion Models
    with Transformers", https://arxiv.org/abs/2212.09748.
    """

    model_cpu_offload_seq = "text_encoder->unet->transformer->vae"
    _optional_components = [
        *("unet", "transformer", "scheduler", "vae"),
        *("text_encoder", "tokenizer", "guider"),
    ]
    _callback_tensor_inputs = TENSORS

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel | None = None,
        scheduler: GaussianFlowScheduler | None = None,
        null_label: int | None = None,
        transformer: DiTTransformer2DModel | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guider: BaseGuidance | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guider=guider,
        )
        self.register_to_config(null_label=null_label, id2label=id2label)
        check_components(self)
        self.register_to_config(id2label=by_number(id2label, self.num_classes))
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def components(self) -> dict[str, Any]:
        """All that makes the pipeline anew, `FlowMatchingPipeline(**pipe.components)`.

        Beside the modules that is `null_label` and `id2label`, where they are set.
        """
        told = {name: self.config[name] for name in ("null_label", "id2label")}
        return super().components | {k: v for k, v in told.items() if v is not None}

    @property
    def parameters(self) -> dict[str, Any]:
        """What diffusers passes beside the components: nothing, they hold all."""
        return {}

    @torch.no_grad()
    def __call__(
        self,
        condition: int | str | list[int | str] | Tensor | None = None,
        /,
        num_images_per_label: int = 1,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[float] | None = None,
        guidance_scale: float | None = None,
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
        sigmas: list[float] | None = None,
        guider: BaseGuidance | None = None,
        image: Any = None,
        strength: float | None = None,
        mask_image: Any = None,
        class_labels: int | str | list[int | str] | Tensor | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        r"""Draw images, or change some.

        Args:
            condition: `class_labels` for a network that takes labels, `prompt` for one that takes
                text; it has no name of its own.
            num_images_per_label: number of images of each label, next to each other.
            batch_size: number of images where there are no labels and no prompts; by default 1.
            num_inference_steps: number of steps from noise to data, by default 50.
            timesteps: where the steps start instead, descending from `num_train_timesteps`.
            guidance_scale: w of `uncond + w (cond - uncond)`; 1, the default, is no guidance. The
                network of a flow map that has learned a scale takes that one alone, by default.
            generator: of all noise, that of an SDE included; or a list, one for each image, which
                then does not depend on its batch.
            latents: samples at the first timestep, shape `(batch, channels, height, width)`.
            output_type: `pil`, `np` (in [0, 1], channels last), `pt` (in [0, 1]), or `latent`, the
                samples themselves.
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: called as `(pipe, index, timestep, tensors)` after every step;
                may return a dictionary with new tensors. Its `pipe` is that of the call, with the
                components of this one and a scheduler at the call's place; setting
                `pipe._interrupt = True` ends the loop, `pipe._guidance_scale` changes the scale.
            callback_on_step_end_tensor_inputs: its tensors: `latents`; `prompt_embeds` or
                `class_labels`, which a guided call precedes with the null ones; `model_output` and
                `pred_original_sample`, which it cannot replace. Official ones name theirs.
            prompt: a text or a list of texts, for a network that takes text; None draws with the
                empty prompt.
            num_images_per_prompt: number of images of each prompt, next to each other.
            negative_prompt: what guidance leads away from, one text or one for each prompt; by
                default empty.
            prompt_embeds: what `encode_prompt` returned, in place of `prompt`.
            negative_prompt_embeds: likewise, in place of `negative_prompt`.
            height: of the images in pixels; by default the `sample_size` of the network.
            width: likewise.
            sigmas: noise levels at which the steps start, in place of `timesteps`; equal ones too.
            guider: guides this call in place of the pipeline's, instead of a `guidance_scale`.
            image: what is changed: pictures, arrays `(n, height, width, channels)` or tensors
                `(n, channels, height, width)` in [0, 1], one for all or one for each. Then
                `latents` are the noise that is added to it.
            strength: share of the steps that are taken, 0 to 1; by default 0.8, with a mask 1. 0
                returns the image, 1 ignores what is not held by a mask.
            mask_image: what may change, one grey picture for all or one for each: white may, black
                comes back as it was, a grey of m may from where the share m of the steps is left.
            class_labels: a label or a list of labels, one for each image, by number or by a name
                in `labels`; None draws from the network without a class.

        Returns:
            The images.

        Raises:
            ValueError: for conditions, sizes or options that the network cannot serve, and for
                components that return something else than they should.
        """
        check_components(self)
        asked = self.asking(
            condition,
            class_labels=class_labels,
            prompt=prompt,
            num_images_per_label=num_images_per_label,
            batch_size=batch_size,
            num_images_per_prompt=num_images_per_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            guidance_scale=guidance_scale,
            guider=guider,
        )
        editing = Editing(image, strength, mask_image)
        self.check_inputs(asked, output_type, return_dict)
        seen = inputs_of(callback_on_step_end, callback_on_step_end_tensor_inputs, self)
        steps = steps_of(self.scheduler, num_inference_steps, timesteps, sigmas)
        own_size = height is None and width is None
        pixels = editing.pixels(self.canvas.channels, height, width)
        if pixels is not None:
            asked, (height, width) = asked.for_images(len(pixels)), pixels.shape[2:]
        condition = self.encode_condition(asked)
        with alone(self) as own:
            scheduler = own.scheduler
            scheduler.set_timesteps(**steps, device=self._execution_device)
            latents = own.prepare_latents(asked.count, generator, latents, height, width)
            edit = None
            if pixels is not None:
                if own_size:
                    warn_of_size(self.network, latents.shape[2:], self.vae_scale_factor)
                edit = editing.begun(own, pixels, latents, asked.repeats)
                latents = edit.start(scheduler)
            guidance = guidance_of(asked.guider or asked.scale, scheduler)
            looked_at = (callback_on_step_end, seen, edit)
            latents = denoise(own, latents, condition, guidance, generator, *looked_at)
        images = latents if output_type == "latent" else self.decode_latents(latents)
        changed = edit is not None and output_type != "latent"
        if edit is not None and changed:
            images = edit.finish(self.image_processor.denormalize(images))
        scaled = [not changed] * len(images)
        images = self.image_processor.postprocess(images, output_type, scaled)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
