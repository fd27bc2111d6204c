"""Pictures of what a network has learned: ODE samples above SDE samples, from the same noise.

A network that was trained with coupled noise is one of the ODE alone (see `GaussianPath`).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from fm_diffusers.pipeline import FlowMatchingPipeline
from fm_diffusers.pipelines.cards import named, steps_shown
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.training.sheets import contact_sheet

#: Of the flag `--guidance_scale` of scripts that draw.
GUIDANCE = {"help": "1 is no guidance. By default 1, or the one that a flow map has learned."}


def processes(
    pipe: FlowMatchingPipeline,
    ode_steps: int | None = None,
    sde_steps: int | None = None,
    diffusion: str = "memoryless",
) -> Iterator[tuple[str, int]]:
    """Yield a title and a number of steps, with the pipeline set to the ODE, then to the SDE.

    By default that is 20 and 50 steps, of a flow map 1 and 4. There is no SDE of coupled noise.

    Raises:
        ValueError: for a number of steps below 1.
    """
    for name, given in (("ode_steps", ode_steps), ("sde_steps", sde_steps)):
        if given is not None and given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    ode, sde = steps_shown(pipe.scheduler.config.solver)
    for title, coefficient, steps in (
        ("ODE", None, ode if ode_steps is None else ode_steps),
        (f"SDE ({diffusion})", diffusion, sde if sde_steps is None else sde_steps),
    ):
        if coefficient is not None and pipe.scheduler.path.coupled:
            return
        pipe.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config, diffusion=coefficient
        )
        yield f"{title}, {steps} step{'s' * (steps > 1)}", steps


def column_names(asked: dict[str, Any], id2label: dict[int, str] | None) -> list[str]:
    """Return what each of some samples is asked for: a prompt, or the name of a class."""
    values = asked.get("class_labels", asked.get("prompt"))
    if values is None:
        return [""] * asked["batch_size"]
    return [str(value) for value in named(values, id2label)]


def sample_parts(
    pipe: FlowMatchingPipeline,
    asked: dict[str, Any],
    rows: int = 4,
    stochastic: bool = True,
    ode_steps: int | None = None,
    sde_steps: int | None = None,
    diffusion: str = "memoryless",
    seed: int = 0,
    **options: Any,
) -> dict[str, list[Image.Image]]:
    """Return samples of the ODE and of the SDE, from the same noise, by title.

    Args:
        pipe: the pipeline, which is left as it was.
        asked: what a row is asked for: `class_labels`, `prompt` or `batch_size`.
        rows: of each process.
        stochastic: whether there is to be the SDE.
        ode_steps: see `processes`.
        sde_steps: see `processes`.
        diffusion: coefficient of the SDE.
        seed: of the noise.
        options: of the call.
    """
    pipe.set_progress_bar_config(disable=True)
    parts, configured = {}, pipe.scheduler
    call = options | {name: rows * of_row for name, of_row in asked.items()}
    for title, steps in islice(processes(pipe, ode_steps, sde_steps, diffusion), 1 + stochastic):
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn: Any = pipe(**call, num_inference_steps=steps, generator=generator)
        parts[title] = drawn.images
    pipe.scheduler = configured
    return parts


def sample_grid(
    pipe: FlowMatchingPipeline, asked: dict[str, Any], rows: int = 4, **options: Any
) -> Image.Image:
    """Return the samples of `sample_parts` as a picture, with titles and names."""
    parts = sample_parts(pipe, asked, rows, **options)
    return contact_sheet(parts, column_names(asked, pipe.config.id2label))


def states(
    pipe: FlowMatchingPipeline,
    labels: list[int | str],
    steps: int,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> list[list[Image.Image]]:
    """Return what samples look like before the first step, and after each.

    Raises:
        ValueError: for a pipeline that does not take classes, or whose states are not pixels.
    """
    if pipe.takes != "labels" or pipe.vae is not None:
        raise ValueError(
            f"the pipeline takes {pipe.takes}{' and has a vae' * (pipe.vae is not None)}, and the "
            "way to an image is shown of classes in pixels: call it for the images alone, "
            "FlowMatchingPipeline.from_pretrained(...)(...).images"
        )
    pipe.set_progress_bar_config(disable=True)
    seen = [pipe.prepare_latents(len(labels), torch.Generator().manual_seed(seed), None)]

    def keep(pipe: Any, step: int, timestep: Any, told: dict[str, Any]) -> dict[str, Any]:
        seen.append(told["latents"])
        return {}

    pipe(
        labels,
        latents=seen[0],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed + 1),  # of the SDE, not the noise once more
        callback_on_step_end=keep,
    )
    show = pipe.image_processor.postprocess
    return [show(x.clamp(-1, 1), output_type="pil") for x in seen]


def keep_picture(accelerator: Accelerator, folder: str, picture: Image.Image, step: int) -> None:
    """Save a picture, and hand it to the trackers that take pictures, each in its own way."""
    if not accelerator.is_main_process:
        return
    title = "samples"
    picture.save(Path(folder, f"{title}-{step}.png"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({title: np.array(picture)[None]}, step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({title: [picture]}, step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({title: trackio.Image(np.array(picture))}, step)
