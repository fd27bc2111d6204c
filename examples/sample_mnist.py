"""Draw digits from one trained network, as an ODE and as an SDE.

    python examples/sample_mnist.py --model outputs/mnist

loads the pipeline with `from_pretrained`, a folder or a Hub id, and writes two pictures beside it:
`ode_and_sde.png`, samples of every class from both processes, and `trajectories.png`, the same
noise on its way to a digit along the ODE and along the SDE.
"""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.pictures import processes
from fm_diffusers.training.plugins import PLUGINS, load_plugins

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@dataclass
class SamplingArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline: a folder or a Hub id."})
    output_dir: str | None = field(default=None, metadata={"help": "By default the model folder."})
    ode_steps: int | None = field(
        default=None, metadata={"help": "By default 20, of a flow map 1."}
    )
    sde_steps: int | None = field(
        default=None, metadata={"help": "By default 50, of a flow map 4."}
    )
    diffusion: str = field(
        default="memoryless", metadata={"choices": DIFFUSIONS, "help": "Coefficient of the SDE."}
    )
    guidance_scale: float = 1.0
    seed: int = 0
    plugins: list[str] = field(default_factory=list, metadata=PLUGINS)

    def __post_init__(self) -> None:
        load_plugins(self.plugins)


def show(axis: plt.Axes, images: np.ndarray, rows: list, columns: list) -> None:
    """Show images `(rows, columns, size, size, channels)` as a grid with names at two sides."""
    gap = max(1, images.shape[2] // 14)
    margins = ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0))
    images = np.pad(images, margins, constant_values=0.3)
    size = images.shape[2]
    joined = np.concatenate(np.concatenate(images, axis=1), axis=1)
    axis.imshow(joined, cmap="gray", vmin=0, vmax=1)
    axis.set_xticks(size * (np.arange(len(columns)) + 0.5), columns)
    axis.set_yticks(size * (np.arange(len(rows)) + 0.5), rows)
    axis.tick_params(length=0)
    axis.set_ylabel("class")


def plot_samples(pipe: FlowMatchingPipeline, args: SamplingArguments, file: Path) -> None:
    """Write six samples of every class from each process, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 7), layout="constrained")
    for axis, (title, steps) in zip(
        axes, processes(pipe, args.ode_steps, args.sde_steps, args.diffusion), strict=True
    ):
        images = pipe(
            class_labels=list(range(pipe.num_classes)),
            num_images_per_label=6,
            num_inference_steps=steps,
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(args.seed),
            output_type="np",
        ).images
        images = images.reshape(pipe.num_classes, 6, *images.shape[1:])
        show(axis, images, rows=list(range(pipe.num_classes)), columns=6 * [""])
        axis.set_title(title)
    figure.suptitle("One network, two processes")
    figure.savefig(file, dpi=130)


def plot_trajectories(pipe: FlowMatchingPipeline, args: SamplingArguments, file: Path) -> None:
    """Write the way of the same noise to four digits, along each process."""
    labels = [pipe.num_classes * i // 4 for i in range(4)]
    shown = np.linspace(0, 1, 11)
    figure, axes = plt.subplots(2, 1, figsize=(10, 8), layout="constrained")
    for axis, (title, steps) in zip(
        axes, processes(pipe, args.ode_steps, args.sde_steps, args.diffusion), strict=True
    ):
        noise = pipe.prepare_latents(4, torch.Generator().manual_seed(args.seed), None)
        path = [noise]

        def record(pipe, index, timestep, tensors, path=path):  # noqa: ANN001, ANN202
            path.append(tensors["latents"])
            return tensors

        pipe(
            class_labels=labels,
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(args.seed + 1),
            callback_on_step_end=record,
        )
        frames = torch.stack([path[round(t * (len(path) - 1))] for t in shown], dim=1)
        frames = (frames.permute(0, 1, 3, 4, 2).cpu().numpy() / 2 + 0.5).clip(0, 1)
        show(axis, frames, rows=labels, columns=[f"{t:.1f}" for t in shown])
        axis.set_title(title)
    axes[-1].set_xlabel("share of the steps from noise (0) to data (1)")
    figure.suptitle("From the same noise to a digit")
    figure.savefig(file, dpi=130)


def main(args: SamplingArguments) -> None:
    """Write both pictures and say where they are."""
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    if pipe.takes != "labels" or pipe.vae is not None:
        raise ValueError(
            f"{args.model} is not a pipeline of classes in pixels, which these pictures show: "
            "call it for images, FlowMatchingPipeline.from_pretrained(...)(...).images"
        )
    pipe.set_progress_bar_config(disable=True)
    folder = Path(args.output_dir or args.model)
    for plot, name in (
        (plot_samples, "ode_and_sde.png"),
        (plot_trajectories, "trajectories.png"),
    ):
        plot(pipe, args, folder / name)
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    with plain_errors():
        main(parse(SamplingArguments))
