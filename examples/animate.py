"""Draw noise on its way to digits, as a picture that moves: the ODE, the SDE, and one evaluation.

    python examples/animate.py --model pretrained/mnist --flow_map pretrained/mnist-one-step

loads two pipelines, folders or Hub ids: a trained flow, and its flow map (see
`train_few_steps.py`). It draws each class from one noise in all rows, and writes `flow.gif`: a row
of the ODE, a row of the SDE, and, where there is a flow map, a row of its only evaluation.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.utils import export_to_gif, make_image_grid
from PIL import Image, ImageDraw

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.command_line import parse, plain_errors

#: Between pictures, in pixels.
GAP = 4


@dataclass
class AnimationArguments:
    """Command line."""

    model: str = field(
        default="pretrained/mnist", metadata={"help": "A saved flow: a folder or a Hub id."}
    )
    flow_map: str | None = field(
        default=None, metadata={"help": "A saved flow map of it: a folder or a Hub id."}
    )
    steps: int = field(default=30, metadata={"help": "Of the ODE and of the SDE."})
    diffusion: str = field(default="memoryless", metadata={"help": "Coefficient of the SDE."})
    guidance_scale: float = field(default=2.0, metadata={"help": "1 is no guidance."})
    scale: int = field(default=2, metadata={"help": "How many pixels a pixel becomes."})
    seed: int = 0
    output: str = "flow.gif"


def states(
    pipe: FlowMatchingPipeline, args: AnimationArguments, steps: int
) -> list[list[Image.Image]]:
    """Return what every class looks like before the first step and after each."""
    pipe.set_progress_bar_config(disable=True)
    labels = list(range(min(pipe.num_classes, 10)))
    noise = pipe.prepare_latents(len(labels), torch.Generator().manual_seed(args.seed), None)
    seen = [noise]

    def keep(pipe: FlowMatchingPipeline, step: int, t: torch.Tensor, told: dict) -> dict:
        seen.append(told["latents"])
        return {}

    pipe(
        labels,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=args.guidance_scale,
        generator=torch.Generator().manual_seed(args.seed),
        callback_on_step_end=keep,
    )
    decode = pipe.image_processor.postprocess
    return [decode(x.clamp(-1, 1), output_type="pil") for x in seen]


def rows(args: AnimationArguments) -> dict[str, list[list[Image.Image]]]:
    """Return the titles of the rows, with the states of each."""
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    found = {f"ODE, {args.steps} steps": states(pipe, args, args.steps)}
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, diffusion=args.diffusion
    )
    found[f"SDE ({args.diffusion}), {args.steps} steps"] = states(pipe, args, args.steps)
    if args.flow_map is not None:
        pipe = FlowMatchingPipeline.from_pretrained(args.flow_map)
        found["flow map, 1 step"] = states(pipe, args, 1)
    return found


def frame(titles: list[str], images: list[list[Image.Image]], scale: int) -> Image.Image:
    """Return one frame: a title above each row of pictures."""
    title_height, (first, *_) = 16, images[0]
    side = first.width * scale + GAP
    height = len(titles) * (title_height + side)
    canvas = Image.new("L", (len(images[0]) * side + GAP, height + GAP), 255)
    write = ImageDraw.Draw(canvas)
    for i, (title, row) in enumerate(zip(titles, images, strict=True)):
        top = GAP + i * (title_height + side)
        write.text((GAP, top), title, fill=0)
        larger = [p.resize((side - GAP, side - GAP), Image.Resampling.NEAREST) for p in row]
        padded = [Image.new("L", (side, side), 255) for _ in larger]
        for cell, picture in zip(padded, larger, strict=True):
            cell.paste(picture.convert("L"), (0, 0))
        canvas.paste(make_image_grid(padded, 1, len(padded)), (GAP, top + title_height))
    return canvas.quantize(8)  # eight greys make a small file


def main(args: AnimationArguments) -> None:
    """Draw the animation."""
    found = rows(args)
    frames = []
    for i in range(args.steps + 1):
        now = [kept[min(i, len(kept) - 1)] for kept in found.values()]
        frames.append(frame(list(found), now, args.scale))
    hold = 12  # frames at each end
    frames = frames[:1] * (hold // 2) + frames + frames[-1:] * hold * 2
    export_to_gif(frames, args.output, fps=12)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    with plain_errors():
        main(parse(AnimationArguments))
