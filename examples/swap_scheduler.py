"""Swap the scheduler of any diffusers pipeline, and see it before and after, side by side.

    python examples/swap_scheduler.py --model stabilityai/stable-diffusion-3.5-medium \\
        --call_kwargs '{"prompt": "a lighthouse in a storm"}' --num_inference_steps 20

loads the pipeline, a folder or a Hub id, and draws from the same noise with the scheduler that it
was saved with and with ours, at each number of steps: one row of pictures for each scheduler.
`--solver` and `--diffusion` choose what ours does; with several diffusions there is a row for
each, and `none` is the ODE.
"""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from diffusers import DiffusionPipeline
from transformers import HfArgumentParser

from fm_diffusers import GaussianFlowScheduler

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@dataclass
class SwapArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline of diffusers: a folder or a Hub id."})
    call_kwargs: str = field(
        default="{}", metadata={"help": "JSON, what the pipeline is called with, as its prompt."}
    )
    num_inference_steps: list[int] = field(default_factory=lambda: [10, 20, 50])
    solver: str = "predictor_corrector"
    diffusion: list[str] = field(
        default_factory=lambda: ["none", "memoryless"],
        metadata={"help": "Coefficients of the SDE, or none for the ODE; a row for each."},
    )
    dtype: str = "float32"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    trust_remote_code: bool = field(
        default=False, metadata={"help": "For pipelines that bring their code, ours among them."}
    )
    seed: int = 0
    output: str = field(default="swap.png", metadata={"help": "The picture."})


def rows(pipe: DiffusionPipeline, args: SwapArguments) -> Iterator[tuple[str, DiffusionPipeline]]:
    """Yield the pipeline with its own scheduler, and with ours as ODE and SDE."""
    before = pipe.scheduler
    yield f"before: {type(before).__name__}", pipe
    for diffusion in args.diffusion:
        pipe.scheduler = GaussianFlowScheduler.from_config(
            before.config,
            solver=args.solver,
            diffusion=None if diffusion == "none" else diffusion,
        )
        name = "ODE" if diffusion == "none" else f"SDE, {diffusion}"
        yield f"after: {args.solver}, {name}", pipe


def draw(pipe: DiffusionPipeline, steps: int, kwargs: dict[str, Any], seed: int) -> np.ndarray:
    """Return the first pictures of a call, `(height, pictures * width, channels)`, in [0, 1]."""
    if isinstance(pipe.scheduler, GaussianFlowScheduler):
        # most flow pipelines hand no generator to `step`
        pipe.scheduler.set_generator(torch.Generator().manual_seed(seed))
    known = inspect.signature(pipe.__call__).parameters
    options = {"output_type": "np", "generator": torch.Generator().manual_seed(seed)}
    output = pipe(
        num_inference_steps=steps, **kwargs, **{k: options[k] for k in options if k in known}
    )
    images = output.images if "images" in output else output.frames[0]
    return np.concatenate(list(np.asarray(images)[:4]), axis=1).clip(0, 1)


def main(args: SwapArguments) -> None:
    """Draw, and say where the picture is."""
    pipe = DiffusionPipeline.from_pretrained(
        args.model,
        torch_dtype=getattr(torch, args.dtype),
        trust_remote_code=args.trust_remote_code,
    )
    pipe.to(args.device).set_progress_bar_config(disable=True)
    kwargs, steps = json.loads(args.call_kwargs), args.num_inference_steps
    pictures = [
        (title, [draw(swapped, n, kwargs, args.seed) for n in steps])
        for title, swapped in rows(pipe, args)
    ]
    height, width = pictures[0][1][0].shape[:2]
    size = (1.4 * len(steps) * width / height, 1.9 * len(pictures))
    figure, axes = plt.subplots(
        len(pictures), len(steps), figsize=size, squeeze=False, layout="constrained"
    )
    for line, (title, images) in zip(axes, pictures, strict=True):
        line[0].set_title(title, loc="left", fontsize=9)
        for axis, image, n in zip(line, images, steps, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([]), axis.set_yticks([])
            axis.set_xlabel(f"{n} steps")
    figure.savefig(args.output, dpi=130)
    print(f"wrote {Path(args.output)}")


if __name__ == "__main__":
    main(HfArgumentParser(SwapArguments).parse_args_into_dataclasses()[0])
