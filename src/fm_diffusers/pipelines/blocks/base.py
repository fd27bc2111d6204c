"""What a block says of itself: its components, what it is told, what it writes down."""

from dataclasses import fields
from typing import Any

import PIL.Image
import torch
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
)

from fm_diffusers.pipelines.blocks.parts import CONFIGS, specs
from fm_diffusers.pipelines.conditions import Asked

#: By which diffusers finds the pipeline that these blocks belong to.
MODEL_NAME = "flow-matching"
#: What passes through the state, by name: its type, and what it is.
VALUES = {
    "class_labels": (list[int], "a label or a list of labels, one for each image"),
    "num_images_per_label": (int, "number of images of each label, next to each other"),
    "batch_size": (int, "number of images where there are no labels and no prompts"),
    "prompt": (str | list[str], "a text or a list of texts, for a network that takes text"),
    "num_images_per_prompt": (int, "number of images of each prompt, next to each other"),
    "negative_prompt": (str | list[str], "what guidance leads away from, by default nothing"),
    "prompt_embeds": (torch.Tensor, "states of texts in place of prompt"),
    "negative_prompt_embeds": (torch.Tensor, "states of texts in place of negative_prompt"),
    "guidance_scale": (float, "w of uncond + w (cond - uncond), by default that of the guider"),
    "condition": (torch.Tensor, "labels or states of texts, null ones first where it is guided"),
    "num_images": (int, "number of images"),
    "num_inference_steps": (int, "number of steps, by default 50"),
    "sigmas": (list[float], "noise levels where the steps start, in place of timesteps"),
    "timesteps": (torch.Tensor, "where the steps start, or when the network is asked"),
    "generator": (torch.Generator, "of all noise, or a list of them, one for each image"),
    "latents": (torch.Tensor, "samples: noise at the first timestep, data after the last"),
    "height": (int, "of the images in pixels, by default that of the network"),
    "width": (int, "of the images in pixels, by default that of the network"),
    "output_type": (str, "pil, np (in [0, 1], channels last), pt (in [0, 1]), or latent"),
    "images": (list[PIL.Image.Image], "the images"),
}
#: Defaults of those that are not None.
DEFAULTS = {field.name: field.default for field in fields(Asked)} | {
    "guidance_scale": None,
    "output_type": "pil",
}


class Block(ModularPipelineBlocks):
    """A block that says in class attributes what it does, needs, is told and writes down."""

    model_name = MODEL_NAME
    says = ""
    components: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What the block does."""
        return self.says

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Components that it uses."""
        return specs(self.components)

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """What a saved pipeline says beside its components."""
        return [ConfigSpec(name, *row) for name, row in CONFIGS.items()]

    @property
    def inputs(self) -> list[InputParam]:
        """What it reads."""
        return inputs(self.takes, self.requires)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What it writes down."""
        return outputs(self.gives)


def inputs(names: tuple[str, ...], required: tuple[str, ...] = ()) -> list[InputParam]:
    """Return what a block says of the values that it reads."""
    return [_input(name, name in required) for name in (*required, *names)]


def outputs(names: tuple[str, ...]) -> list[OutputParam]:
    """Return what a block says of the values that it writes down."""
    return [OutputParam(name, *VALUES[name]) for name in names]


def _input(name: str, required: bool) -> InputParam:
    kind, text = VALUES[name]
    return InputParam(name, kind, DEFAULTS.get(name), required, text)


def values_of(block_state: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return values of a state by name."""
    return {name: getattr(block_state, name) for name in names}
