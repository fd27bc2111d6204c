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
from diffusers.utils import make_image_grid
from PIL import Image

from fm_diffusers.pipeline import FlowMatchingPipeline
from fm_diffusers.pipelines.cards import steps_shown
from fm_diffusers.scheduler import GaussianFlowScheduler


def processes(
    pipe: FlowMatchingPipeline,
    ode_steps: int | None = None,
    sde_steps: int | None = None,
    diffusion: str = "memoryless",
) -> Iterator[tuple[str, int]]:
    """Yield a title and a number of steps, with the pipeline set to the ODE, then to the SDE.

    By default that is 20 and 50 steps, of a flow map 1 and 4.
    """
    ode, sde = steps_shown(pipe.scheduler.config.solver)
    ode_steps, sde_steps = ode_steps or ode, sde_steps or sde
    for title, coefficient, steps in (
        (f"ODE, {ode_steps} steps", None, ode_steps),
        (f"SDE ({diffusion}), {sde_steps} steps", diffusion, sde_steps),
    ):
        pipe.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config, diffusion=coefficient
        )
        yield title, steps


def sample_grid(
    pipe: FlowMatchingPipeline, rows: int = 4, stochastic: bool = True, **asked: Any
) -> Image.Image:
    """Return rows of ODE samples, and below them as many of SDE samples.

    They are left out if not `stochastic`, or if there is no SDE.
    """
    pipe.set_progress_bar_config(disable=True)
    stochastic &= not pipe.scheduler.path.coupled
    images, configured = [], pipe.scheduler
    for _, steps in islice(processes(pipe), 1 + stochastic):
        generator = torch.Generator("cpu").manual_seed(0)
        drawn: Any = pipe(**asked, num_inference_steps=steps, generator=generator)
        images += drawn.images
    pipe.scheduler = configured
    rows *= 1 + stochastic
    return make_image_grid(images, rows=rows, cols=len(images) // rows)


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
