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
from collections import ChainMap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from fm_diffusers import DIFFUSIONS, SOLVERS, GaussianFlowScheduler
from fm_diffusers.pipelines.other_folders import why_not_saved
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.faults import line
from fm_diffusers.training.outputs import check_file, check_least
from fm_diffusers.training.sheets import contact_sheet

#: Sides of shown pictures, in pixels: larger ones are reduced.
LARGEST = 256


@dataclass
class SwapArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline of diffusers: a folder or a Hub id."})
    call_kwargs: str = field(
        default="{}", metadata={"help": "JSON, what the pipeline is called with, as its prompt."}
    )
    num_inference_steps: list[int] = field(
        default_factory=lambda: [10, 20, 50], metadata={"help": "A group of columns for each."}
    )
    solver: str = field(
        default="predictor_corrector", metadata={"choices": SOLVERS, "help": "Of our scheduler."}
    )
    diffusion: list[str] = field(
        default_factory=lambda: ["none", "memoryless"],
        metadata={
            "choices": ChainMap({"none": None}, DIFFUSIONS),
            "help": "Coefficients of the SDE, or none for the ODE; a row for each.",
        },
    )
    dtype: str = field(
        default="float32",
        metadata={"choices": ["float32", "float16", "bfloat16"], "help": "Of the networks."},
    )
    device: str = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu",
        metadata={"help": "Where the pipeline runs, cpu or cuda."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "For pipelines that bring their code, ours among them."}
    )
    seed: int = 0
    output: str = field(default="swap.png", metadata={"help": "The picture."})

    def __post_init__(self) -> None:
        check_least(self, 1, "num_inference_steps")
        arguments_of(self.call_kwargs)
        check_file(self.output)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"--device {self.device} is none of this machine: choose cpu, cuda or mps, or "
                "leave the flag out"
            ) from error


def load(args: SwapArguments) -> DiffusionPipeline:
    """Return the pipeline.

    Raises:
        ValueError: if there is none, or it cannot be called with `--call_kwargs`.
    """
    folder = Path(args.model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"--model {args.model!r} is not a saved pipeline, {why_not_saved(folder)}"
        )
    if not folder.exists() and (args.model.count("/") > 1 or args.model[:1] in "./~"):
        raise ValueError(
            f"--model: there is no folder {args.model!r}, pass the folder that save_pretrained "
            "wrote, or a Hub id `user/name`"
        )
    try:
        pipe = DiffusionPipeline.from_pretrained(
            args.model,
            torch_dtype=getattr(torch, args.dtype),
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"--model {args.model} brings code of its own: read it, and pass "
                "--trust_remote_code if it may run"
            ) from error
        raise ValueError(f"--model {args.model} cannot be loaded: {line(error)}") from error
    known = inspect.signature(pipe.__call__).parameters
    unknown = [name for name in arguments_of(args.call_kwargs) if name not in known]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        raise ValueError(
            f"--call_kwargs names {unknown}, and {type(pipe).__name__} is called with "
            f"{', '.join(known)}"
        )
    return pipe


def schedulers(before: Any, args: SwapArguments) -> dict[str, Any]:
    """Return the pipeline's own scheduler, and ours as ODE and SDE, by title."""
    found = {f"before: {type(before).__name__}": before}
    for diffusion in args.diffusion:
        name = "ODE" if diffusion == "none" else f"SDE, {diffusion}"
        found[f"after: {args.solver}, {name}"] = GaussianFlowScheduler.from_config(
            before.config,
            solver=args.solver,
            diffusion=None if diffusion == "none" else diffusion,
        )
    return found


def draw(
    pipe: DiffusionPipeline, steps: int, kwargs: dict[str, Any], seed: int
) -> list[Image.Image]:
    """Return the first four pictures of a call, the first of a video's frames."""
    if isinstance(pipe.scheduler, GaussianFlowScheduler):
        # most flow pipelines hand no generator to `step`
        pipe.scheduler.set_generator(torch.Generator().manual_seed(seed))
    known = inspect.signature(pipe.__call__).parameters
    options = {"output_type": "np", "generator": torch.Generator().manual_seed(seed)}
    output = pipe(
        num_inference_steps=steps, **kwargs, **{k: options[k] for k in options if k in known}
    )
    arrays = output.images if "images" in output else output.frames[0]
    bytes_of = [np.rint(255 * x.clip(0, 1)).astype(np.uint8) for x in np.asarray(arrays)[:4]]
    pictures = [Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x) for x in bytes_of]
    for picture in pictures:
        picture.thumbnail((LARGEST, LARGEST))  # where it is larger
    return pictures


def arguments_of(call: str) -> dict[str, Any]:
    """Return the arguments of a call that are written in JSON."""
    try:
        kwargs = json.loads(call)
    except json.JSONDecodeError as error:
        raise ValueError(f"--call_kwargs {call!r} is no JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise ValueError(
            f"--call_kwargs {call!r} is no object: write names and values, "
            '{"prompt": "a lighthouse"} for example'
        )
    return kwargs


def main(args: SwapArguments) -> None:
    """Draw, and say where the picture is."""
    kwargs, steps = arguments_of(args.call_kwargs), args.num_inference_steps
    pipe = load(args)
    pipe.to(args.device).set_progress_bar_config(disable=True)
    parts: dict[str, list[Image.Image]] = {}
    swapped = schedulers(pipe.scheduler, args)
    with tqdm(total=len(swapped) * sum(steps), desc="steps", disable=None) as bar:
        for title, pipe.scheduler in swapped.items():
            drawn = []
            for n in steps:
                drawn.append(draw(pipe, n, kwargs, args.seed))
                bar.update(n)
            parts[title] = [picture for of_steps in drawn for picture in of_steps]
    names = [f"{n} steps" for n, of_steps in zip(steps, drawn, strict=True) for _ in of_steps]
    contact_sheet(parts, names).save(args.output)
    print(f"wrote {Path(args.output)}")


if __name__ == "__main__":
    with plain_errors():
        main(parse(SwapArguments))
