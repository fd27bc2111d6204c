"""The loop of a modular pipeline: three blocks a step, between which others can stand."""

from typing import Any

import torch
from diffusers.modular_pipelines import (
    BlockState,
    InputParam,
    LoopSequentialPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from fm_diffusers.pipelines.blocks.base import MODEL_NAME, Block, inputs, outputs
from fm_diffusers.pipelines.blocks.guiding import LoopGuidance
from fm_diffusers.pipelines.blocks.parts import Parts
from fm_diffusers.pipelines.blocks.steps import PrepareLatentsStep, SetTimestepsStep
from fm_diffusers.pipelines.caching import remembered
from fm_diffusers.pipelines.denoising import alone, noise_option, predict
from fm_diffusers.pipelines.networks import check_components
from fm_diffusers.pipelines.outputs import is_finite, warn_unless_finite
from fm_diffusers.pipelines.two_times import advance_of, advance_option


class LoopBeforeDenoiser(Block):
    """Asks the guider how much a step is guided."""

    says = "At every step: asks the guider how much the step is guided (guidance)."
    components = ("guider",)
    takes = ("guidance_scale", "condition")
    requires = ("latents",)

    @torch.no_grad()
    def __call__(
        self, components: Any, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[Any, BlockState]:
        """Run the block."""
        if i == 0:
            block_state.of_loop = LoopGuidance(components, block_state.guidance_scale)
        told = (block_state.condition, len(block_state.latents))
        block_state.guidance = block_state.of_loop.at(i, block_state.timesteps, *told)
        return components, block_state


class LoopDenoiser(Block):
    """Asks the network."""

    says = "At every step: asks the network, and guides what it predicts (noise_pred)."
    components = ("unet", "transformer", "scheduler")
    takes = ("condition",)
    requires = ("latents",)

    @torch.no_grad()
    def __call__(
        self, components: Any, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[Any, BlockState]:
        """Run the block."""
        network, scheduler = Parts.of(components).network, components.scheduler
        block_state.advance = advance_of(scheduler, network, i, t)
        asked = (t, block_state.condition, block_state.guidance, block_state.advance)
        block_state.noise_pred = predict(network, scheduler, block_state.latents, *asked)
        return components, block_state


class LoopAfterDenoiser(Block):
    """Takes the scheduler's step."""

    says = "At every step: takes the scheduler's step (latents)."
    components = ("scheduler",)
    takes = ("generator",)
    requires = ("latents",)
    gives = ("latents",)

    @torch.no_grad()
    def __call__(
        self, components: Any, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[Any, BlockState]:
        """Run the block."""
        scheduler, asked = components.scheduler, (block_state.noise_pred, t, block_state.latents)
        options = noise_option(scheduler, block_state.generator)
        options |= advance_option(scheduler, block_state.advance)
        block_state.latents = scheduler.step(*asked, return_dict=False, **options)[0]
        return components, block_state


class DenoiseLoop(LoopSequentialPipelineBlocks):
    """Goes through all timesteps."""

    model_name = MODEL_NAME
    block_classes = [LoopBeforeDenoiser, LoopDenoiser, LoopAfterDenoiser]
    block_names = ["before_denoiser", "denoiser", "after_denoiser"]

    @property
    def description(self) -> str:
        """What the block does."""
        return (
            "Goes through all timesteps, and at each through its sub-blocks, which are called "
            "with (components, block_state, i=index, t=timestep)."
        )

    @property
    def loop_inputs(self) -> list[InputParam]:
        """What the loop itself reads."""
        return inputs((), ("timesteps",))

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the loop."""
        block_state, finite = self.get_block_state(state), []
        timesteps = block_state.timesteps
        memory = remembered(Parts.of(components).network, len(timesteps))
        with memory, self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                components, block_state = self.loop_step(components, block_state, i=i, t=t)
                finite.append(is_finite(block_state.noise_pred))
                progress_bar.update()
        warn_unless_finite(finite, timesteps, block_state.latents)
        self.set_block_state(state, block_state)
        return components, state


class DenoiseStep(SequentialPipelineBlocks):
    """From the condition to samples: timesteps, noise and the loop.

    As in `FlowMatchingPipeline`, calls may run in several threads: each steps its own scheduler.
    """

    model_name = MODEL_NAME
    block_classes = [SetTimestepsStep, PrepareLatentsStep, DenoiseLoop]
    block_names = ["set_timesteps", "prepare_latents", "denoise"]

    @property
    def description(self) -> str:
        """What the block does."""
        return "From the condition to samples: timesteps, noise and the loop."

    @property
    def outputs(self) -> list[OutputParam]:
        """What comes out."""
        return outputs(("latents",))

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Hand options of tqdm to the loop, which diffusers does not look for this deep."""
        for block in self.sub_blocks.values():
            if hasattr(block, "set_progress_bar_config"):
                block.set_progress_bar_config(**kwargs)

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the blocks."""
        check_components(Parts.of(components))
        vars(components).setdefault("_calls", [])  # as every pipeline of ours has them
        with alone(components) as own:
            super().__call__(own, state)
        return components, state
