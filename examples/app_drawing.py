r"""What `app.py` draws: the choices of its page, and one drawing of a pipeline by one sampler.

`draw(pipe, asked, sampler)` builds a pipeline of the same components with a scheduler of its own,
so that many may draw with one pipeline, each by another sampler.
"""

import time
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from PIL import Image

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.pipelines.arguments import number as finite
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
        scale = guidance_of(pipe, self.guidance_scale, self.condition)
        told = {"guidance_scale": scale, "generator": noise}
        if pipe.takes == "text":
            return told | {"prompt": [self.condition] * number}
        if pipe.takes == "nothing" or (self.condition == NONE and has_null(pipe)):
            return told | {"batch_size": number}
        every = [i % pipe.num_classes for i in range(number)]
        one = None if self.condition == EVERY else class_of(pipe, self.condition)
        return told | {"class_labels": every if one is None else [one] * number}


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
        scale = strength(self.scale) if noisy else None
        return GaussianFlowScheduler.from_config(
            config,
            solver=self.solver,
            grid=None if self.grid == OWN_GRID else self.grid,
            diffusion=self.diffusion if noisy else None,
            diffusion_kwargs={"scale": scale} if noisy else None,
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


def filled(name: str, value: Any, way_out: str) -> Any:
    """Return an entry that is not empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} is empty: {way_out}")
    return value


def within(name: str, value: Any, least: int, most: int) -> int:
    """Return an entry that is a whole number in a range."""
    rule = f"a whole number from {least} to {most}"
    if not isinstance(filled(name, value, f"enter {rule}"), int) or not least <= value <= most:
        raise ValueError(f"{name} must be {rule}, got {value}")
    return value


def strength(value: Any) -> float:
    """Return how strong the noise on the way is."""
    scale = finite(
        "Strength", filled("Strength", value, "enter 1 for example"), "enter 1, or less"
    )
    if scale < 0:
        raise ValueError(f"Strength must be 0, which is no noise, or more, got {value}")
    return scale


def has_null(pipe: FlowMatchingPipeline) -> bool:
    """Return whether a network knows what no condition is, from which guidance leads away."""
    return pipe.takes == "text" or pipe.config.null_label is not None


def guidance_of(pipe: FlowMatchingPipeline, value: Any, condition: Any) -> float:
    """Return a guidance scale that fits the network and what is drawn."""
    name, learned = "Guidance scale", distilled_guidance(pipe.network)
    scale = finite(name, filled(name, value, "enter 1 for no guidance"), "1 is no guidance")
    if learned is not None:
        least, most = learned if isinstance(learned, list | tuple) else (learned, learned)
        if not least <= scale <= most:
            rule = f"{least}" if least == most else f"from {least} to {most}"
            raise ValueError(f"{name} must be {rule}, as the network has learned, got {value}")
    elif scale != 1 and (condition == NONE or not has_null(pipe)):
        why = "there is no class to guide to" if has_null(pipe) else "this network takes no other"
        raise ValueError(f"{name} must be 1, which is no guidance, got {value}: {why}")
    return scale


def class_of(pipe: FlowMatchingPipeline, value: Any) -> int:
    """Return the number of a class that is entered by its name or number."""
    entry = filled("Class", value, "choose one of its list")
    if isinstance(entry, str):
        number = int(entry) if entry.strip().isdecimal() else None
        entry = pipe.labels.get(entry.strip(), number)
    if not isinstance(entry, int) or not 0 <= entry < pipe.num_classes:
        close = get_close_matches(str(value), pipe.labels, n=1)
        hint = f": the closest name is {close[0]!r}" if close else ""
        rule = f"one of its list, or a number from 0 to {pipe.num_classes - 1}"
        raise ValueError(f"Class must be {rule}, got {value!r}{hint}")
    return entry


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
    learned = distilled_guidance(pipe.network) or (2.0 if has_null(pipe) else 1.0)
    guidance = learned[0] if isinstance(learned, list | tuple) else learned
    condition = {"text": "a picture", "labels": EVERY}.get(pipe.takes)
    own = GaussianFlowScheduler.from_config(pipe.scheduler.config).config
    ode, sde = steps_shown(own.solver)
    method, noise = (own.solver, own.grid or OWN_GRID), "memoryless"
    first, second = Sampler(*method, ode), Sampler(*method, sde, noise, DIFFUSIONS[noise].scale)
    return Asked(condition, guidance, 10, 0), {"Sampler A": first, "Sampler B": second}
