r"""What `app.py` draws: the choices of its page, and one drawing of a pipeline by one sampler.

`draw(pipe, asked, sampler)` builds a pipeline of the same components with a scheduler of its own,
so that many may draw with one pipeline, each by another sampler.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.pipelines.cards import steps_shown

#: Choices beside the rows of the tables.
ODE, OWN_GRID, EVERY, NONE = "none (the ODE)", "default", "every class in turn", "no class"
#: The most that one drawing may ask for.
MOST_STEPS, MOST_IMAGES, MOST_SEED = 1000, 100, 2**32 - 1
#: How many moments of a trajectory are kept.
MOMENTS = 8


@dataclass(frozen=True)
class Asked:
    """What both samplers draw: a class by number or name, `EVERY` or `NONE`; or a prompt.

    Each image has its own seed, from `seed` on.
    """

    condition: int | str | None
    guidance_scale: float
    number: int
    seed: int

    def arguments(self, pipe: FlowMatchingPipeline) -> dict[str, Any]:
        """Return what a call is told."""
        number = within("Images", self.number, 1, MOST_IMAGES)
        seed = within("Seed", self.seed, 0, MOST_SEED)
        noise = [torch.Generator().manual_seed(seed + i) for i in range(number)]
        told = {"guidance_scale": self.guidance_scale, "generator": noise}
        if pipe.takes == "text":
            return told | {"prompt": [self.condition] * number}
        if pipe.takes == "nothing" or self.condition == NONE:
            return told | {"batch_size": number}
        every = [i % pipe.num_classes for i in range(number)]
        labels = every if self.condition == EVERY else [self.condition] * number
        return told | {"class_labels": labels}


@dataclass(frozen=True)
class Sampler:
    """How one of them draws it, by rows of the tables, `OWN_GRID` and `ODE`."""

    solver: str
    grid: str
    steps: int
    diffusion: str = ODE
    scale: float | None = None

    def scheduler(self, config: Any) -> GaussianFlowScheduler:
        """Return the scheduler that samples so, for the network of another one's configuration."""
        noisy = self.diffusion != ODE
        return GaussianFlowScheduler.from_config(
            config,
            solver=self.solver,
            grid=None if self.grid == OWN_GRID else self.grid,
            diffusion=self.diffusion if noisy else None,
            diffusion_kwargs={"scale": self.scale} if noisy and self.scale is not None else None,
        )


@dataclass(frozen=True)
class Drawing:
    """What was drawn, by how many evaluations for each image, in how many seconds for all.

    At `times`, from 0 (noise) to 1 (data), the first image was one of `states`, from which the
    network foretold one of `forecasts`.
    """

    images: list[Image.Image]
    times: list[float]
    states: list[Image.Image]
    forecasts: list[Image.Image]
    evaluations: int
    seconds: float


def within(name: str, value: Any, least: int, most: int) -> int:
    """Return an entry that is a whole number in a range."""
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value}")
    return value


def draw(pipe: FlowMatchingPipeline, asked: Asked, sampler: Sampler) -> Drawing:
    """Draw by a sampler; the pipeline, which others may be drawing with, is left as it is."""
    steps = within("Steps", sampler.steps, 1, MOST_STEPS)
    arguments, scheduler = asked.arguments(pipe), sampler.scheduler(pipe.scheduler.config)
    own = FlowMatchingPipeline(**pipe.components | {"scheduler": scheduler})
    own.set_progress_bar_config(disable=True)
    scheduler.set_timesteps(steps)
    noise = own.prepare_latents(asked.number, arguments["generator"], None)
    states, forecasts = [noise[:1]], []

    def keep(call: Any, index: int, timestep: torch.Tensor, told: dict[str, Any]) -> None:
        states.append(told["latents"][:1])
        forecasts.append(told["pred_original_sample"][:1])

    begun = time.perf_counter()
    images = own(
        **arguments,
        latents=noise,
        num_inference_steps=steps,
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    ).images
    seconds = time.perf_counter() - begun
    evaluations = own.num_timesteps * (1 + own.do_classifier_free_guidance)
    times = [*scheduler.to_time(scheduler.timesteps).tolist(), 1.0]
    moments = sorted({round(i * own.num_timesteps / (MOMENTS - 1)) for i in range(MOMENTS)})
    rows = [states, [*forecasts, states[-1]]]
    with torch.no_grad():
        decoded = [own.decode_latents(torch.cat([row[i] for i in moments])) for row in rows]
    ways = [own.image_processor.postprocess(row, output_type="pil") for row in decoded]
    return Drawing(images, [times[i] for i in moments], *ways, evaluations, seconds)


def first_entries(pipe: FlowMatchingPipeline) -> tuple[Asked, dict[str, Sampler]]:
    """Return what the page shows at first: the pipeline's own sampler, as an ODE and as an SDE."""
    guidable = pipe.takes == "text" or pipe.config.null_label is not None
    learned = distilled_guidance(pipe.network) or (2.0 if guidable else 1.0)
    guidance = learned[0] if isinstance(learned, list | tuple) else learned
    condition = {"text": "a picture", "labels": EVERY}.get(pipe.takes)
    own = GaussianFlowScheduler.from_config(pipe.scheduler.config).config
    ode, sde = steps_shown(own.solver)
    method, noise = (own.solver, own.grid or OWN_GRID), "memoryless"
    first, second = Sampler(*method, ode), Sampler(*method, sde, noise, DIFFUSIONS[noise].scale)
    return Asked(condition, guidance, 10, 0), {"Sampler A": first, "Sampler B": second}
