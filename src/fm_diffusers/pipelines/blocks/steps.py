"""Blocks around the loop: the condition, the timesteps, the noise, the images."""

from dataclasses import fields
from typing import Any

import torch
from diffusers.modular_pipelines import PipelineState

from fm_diffusers.pipelines.arguments import check_output, steps_of
from fm_diffusers.pipelines.blocks.base import VALUES, Block, values_of
from fm_diffusers.pipelines.blocks.guiding import given_guidance
from fm_diffusers.pipelines.blocks.parts import Parts
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.latents import Latents


class ConditionStep(Block):
    """Turns labels or prompts into what the network is told of every image."""

    says = (
        "Turns class labels or prompts into the condition of every image, preceded by as many "
        "null ones where the guider compares the two."
    )
    components = ("unet", "transformer", "text_encoder", "tokenizer", "guider")
    takes = tuple(field.name for field in fields(Asked) if field.name in VALUES)
    gives = ("condition", "num_images")

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the block."""
        block_state = self.get_block_state(state)
        told = values_of(block_state, self.takes)
        asked = Asked(**told | given_guidance(components, told.pop("guidance_scale")))
        conditioning = Parts.of(components).conditioning
        conditioning.check(asked)
        block_state.condition = conditioning.encode(asked, components._execution_device)
        block_state.num_images = asked.count
        self.set_block_state(state, block_state)
        return components, state


class SetTimestepsStep(Block):
    """Lays out the timesteps of the scheduler."""

    says = "Lays out the timesteps of the scheduler."
    components = ("scheduler",)
    takes = ("num_inference_steps", "timesteps", "sigmas")
    gives = ("timesteps",)

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the block."""
        block_state, scheduler = self.get_block_state(state), components.scheduler
        steps = steps_of(scheduler, *values_of(block_state, self.takes).values())
        scheduler.set_timesteps(**steps, device=components._execution_device)
        block_state.timesteps = scheduler.timesteps
        self.set_block_state(state, block_state)
        return components, state


class PrepareLatentsStep(Block):
    """Draws the noise that the loop starts from."""

    says = "Draws the noise that the loop starts from, or takes the latents that are given."
    components = ("unet", "transformer", "scheduler", "vae")
    takes = ("generator", "latents", "height", "width")
    requires = ("num_images",)
    gives = ("latents",)

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the block."""
        block_state = self.get_block_state(state)
        start = (
            getattr(components.scheduler, "init_noise_sigma", 1.0),
            components._execution_device,
        )
        given = (*values_of(block_state, self.takes).values(), *start)
        canvas = Parts.of(components).canvas
        block_state.latents = canvas.prepare(block_state.num_images, *given)
        self.set_block_state(state, block_state)
        return components, state


class DecodeStep(Block):
    """Makes images of samples."""

    says = "Makes images of samples, by the vae if there is one."
    components = ("vae", "image_processor")
    takes = ("output_type",)
    requires = ("latents",)
    gives = ("images",)

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the block."""
        block_state = self.get_block_state(state)
        images, output_type = block_state.latents, block_state.output_type
        check_output(output_type, True)
        if output_type != "latent":
            images = Latents(None, components.vae).decode(images)  # asks no network
        processor = components.image_processor
        block_state.images = processor.postprocess(images, output_type=output_type)
        self.set_block_state(state, block_state)
        return components, state
