"""Change images of a data set: in part, inside a mask, and from one to another.

    python examples/edit_images.py --model outputs/mnist --dataset_name ylecun/mnist

writes two pictures beside the pipeline. Each row of `edits.png` is one image: as it is, changed
with growing strength, with the square in its middle drawn anew, and under a mask that grows from
black on the left to white on the right. `interpolation.png` goes from each image to the next one.
It prints how well each image returns from its noise, and its bits per dimension.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.data import ImageData, load_images
from fm_diffusers.training.folders import of_results
from fm_diffusers.training.outputs import check_least
from fm_diffusers.training.pictures import GUIDANCE
from fm_diffusers.training.sheets import contact_sheet
from fm_diffusers.training.tuning import check_data

STRENGTHS = (0.3, 0.5, 0.7, 0.9)

#: Names of what `edits` returns.
EDITS = [
    "as it is",
    *(f"strength {strength}" for strength in STRENGTHS),
    "its middle drawn anew",
    "drawn anew to the right",
]


@dataclass
class EditingArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline: a folder or a Hub id."})
    dataset_name: str = field(metadata={"help": "What the images are of."})
    dataset_split: str = "train"
    image_column: str = "image"
    label_column: str = "label"
    caption_column: str | None = field(default=None, metadata={"help": "Of pipelines by text."})
    image_mode: str | None = None
    resolution: int | None = field(
        default=None, metadata={"help": "Side of the images; by default that of the pipeline's."}
    )
    indices: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3], metadata={"help": "Which images of the split."}
    )
    num_inference_steps: int = 50
    guidance_scale: float | None = field(default=None, metadata=GUIDANCE)
    diffusion: str | None = field(
        default=None, metadata={"choices": DIFFUSIONS, "help": "Changes as an SDE, or the ODE."}
    )
    side: int = field(default=96, metadata={"help": "Of a shown image in pixels, at least."})
    seed: int = 0
    output_dir: str | None = field(default=None, metadata={"help": "By default the model folder."})

    def __post_init__(self) -> None:
        check_least(self, 0, "indices")
        check_least(self, math.ceil(1 / min(STRENGTHS)), "num_inference_steps")
        check_least(self, 1, "side", "resolution")


def chosen(pipe: FlowMatchingPipeline, args: EditingArguments) -> tuple[torch.Tensor, list[dict]]:
    """Return images in [0, 1], and what the pipeline is asked with for each."""
    height, width = pipe.sample_shape(None, None)[1:]
    own = height * pipe.vae_scale_factor if height and height == width else None
    data = load_images(
        args.dataset_name,
        split=args.dataset_split,
        image_column=args.image_column,
        label_column=args.label_column,
        caption_column=args.caption_column,
        resolution=own if args.resolution is None else args.resolution,
        image_mode=args.image_mode,
    )
    check_shown(args, pipe, data)
    images = torch.stack([data.images[i] for i in args.indices])
    of_each: dict[str, Any] = {}
    if pipe.takes == "text":
        of_each["prompt"] = [data.captions[i] for i in args.indices]
    elif pipe.takes == "labels":
        of_each["class_labels"] = [int(data.labels[i]) for i in args.indices]
    told = [{name: values[i] for name, values in of_each.items()} for i in range(len(images))]
    scale = {"guidance_scale": args.guidance_scale} if of_each else {}
    return images / 255, [one | scale for one in told]


def check_shown(args: EditingArguments, pipe: FlowMatchingPipeline, data: ImageData) -> None:
    """Raise a `ValueError` for images that are not there, or that the pipeline does not take."""
    if data.images is None:
        raise ValueError(
            f"--dataset_name {args.dataset_name} does not fit into memory: choose a smaller "
            "--resolution, or a part of it by --dataset_split 'train[:100]'"
        )
    if max(args.indices) >= len(data.images):
        raise ValueError(
            f"--indices {max(args.indices)}: the split {args.dataset_split!r} has "
            f"{len(data.images)} images, from 0 to {len(data.images) - 1}"
        )
    if pipe.takes == "text" and data.captions is None:
        raise ValueError("the pipeline takes prompts: name their column by --caption_column")
    if pipe.takes == "labels" and data.labels is None:
        raise ValueError("the pipeline takes classes: name their column by --label_column")
    check_data(args, args.model, pipe, data)


def edits(
    pipe: FlowMatchingPipeline, image: torch.Tensor, asked: dict[str, Any], steps: int, seed: int
) -> list[Image.Image]:
    """Return an image and what becomes of it."""
    height, width = image.shape[1:]
    square = np.zeros((height, width), np.uint8)
    square[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    gradient = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    ways = [{"strength": 0.0}, *({"strength": s} for s in STRENGTHS)]
    ways += [{"mask_image": Image.fromarray(square)}, {"mask_image": Image.fromarray(gradient)}]
    return [
        pipe(
            image=image,
            **asked,
            **way,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        for way in ways
    ]


def main(args: EditingArguments) -> None:
    """Write both pictures, and print what was measured."""
    folder, steps = of_results(args.model, args.output_dir), args.num_inference_steps
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    images, told = chosen(pipe, args)
    ode = pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion=None)
    between = []
    for i, (image, asked) in enumerate(zip(images, told, strict=True)):
        other = images[(i + 1) % len(images)]
        between += pipe.interpolate(image, other, 8, steps, **asked).images
        found = pipe.invert(image, steps, **asked)
        density = pipe.log_likelihood(
            image,
            num_probes=4,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            **asked,
        )
        bits = density.bits_per_dimension
        print(
            f"image {args.indices[i]}: returns from its noise with an error of "
            f"{found.round_trip_error[0].item():.1e} (root mean square, pixels in [-1, 1])"
            + ("" if bits is None else f"; {bits[0].item():.2f} bits per dimension")
        )
    pipe.scheduler = GaussianFlowScheduler.from_config(ode.config, diffusion=args.diffusion)
    changed = [
        picture
        for image, asked in zip(images, told, strict=True)
        for picture in edits(pipe, image, asked, steps, args.seed)
    ]
    for name, pictures, names in (
        ("edits.png", changed, EDITS),
        ("interpolation.png", between, ["image", *6 * [""], "next image"]),
    ):
        contact_sheet({"": pictures}, names, args.side).save(folder / name)
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    with plain_errors():
        main(parse(EditingArguments))
