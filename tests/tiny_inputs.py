"""What the rows of `tiny_pipelines` are made of, beside networks."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch

SIZE, WIDTH, TOKENS = 16, 8, 4  # of pictures, of embeddings, and how many of these


@dataclass(frozen=True)
class Row:
    """One pipeline: its class, its scheduler, its networks and what it is called with.

    `solver` is ours for what its scheduler does, None where it does something of its own;
    `bfloat16` says whether the pipeline itself works in that precision.
    """

    pipeline: str
    scheduler: Callable[[], Any]
    solver: str | None
    components: Callable[[], dict[str, Any]]
    arguments: Callable[[], dict[str, Any]]
    prepare: Callable[[Any], None] = lambda pipe: None
    bfloat16: bool = True
    slow: bool = False


def make(name, **kwargs):
    """Return one of diffusers' models with random weights, none of them zero or undefined."""
    model = getattr(diffusers, name)(**kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    for key, weight in model.named_parameters():
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        mean = float(weight.ndim == 1 and key.endswith("weight"))  # of a norm
        torch.nn.init.normal_(weight, mean, scale, generator)
    return model


def given(pipeline, **components):
    """Return the components, with None for what a pipeline asks for beside them."""
    wanted = inspect.signature(getattr(diffusers, pipeline).__init__).parameters.values()
    return {p.name: None for p in wanted if p.default is p.empty and p.name != "self"} | components


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(width=WIDTH, negative=True, mask=False, pooled=False, tokens=TOKENS):
    """Return embeddings of a prompt, of its negative, their masks and pooled embeddings."""
    found = {}
    for seed, sign in enumerate(["", "negative_"][: 1 + negative]):
        found[f"{sign}prompt_embeds"] = noise(1, tokens, width, seed=seed)
        if mask:
            found[f"{sign}prompt_attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
        if pooled:
            found[f"{sign}pooled_prompt_embeds"] = noise(1, width, seed=seed + 2)
    return found


def size(width=SIZE):
    return {"height": width, "width": width}


def picture(size=SIZE, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, len(mode)), dtype=np.uint8)
    return PIL.Image.fromarray(pixels.squeeze(), mode)


def half(size=SIZE):
    """Return a mask of the lower half."""
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[size // 2 :] = 255
    return PIL.Image.fromarray(pixels)


def video(frames=5, size=SIZE):
    return [picture(size)] * frames


# --- schedulers ----------------------------------------------------------------------------------


def table(name="DDIMScheduler", **kwargs):
    """Return a scheduler of the DDPM family, by default with the table of Stable Diffusion."""
    given = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    return getattr(diffusers, name)(**{k: v for k, v in given.items() if k in known} | kwargs)


def flow(**kwargs):
    return diffusers.FlowMatchEulerDiscreteScheduler(**kwargs)


def static():
    return flow(shift=3.0)


def dynamic(**kwargs):
    return flow(use_dynamic_shifting=True, **kwargs)


def unipc(shift=3.0):
    """Return the scheduler of Wan."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
