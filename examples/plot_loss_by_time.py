r"""Where in time is the loss of a trained network, and where is the noise of its gradient?

    python examples/plot_loss_by_time.py --model outputs/mnist

At fixed times, many mini-batches give the mean loss and the covariance of the gradient of all
parameters. A weighting multiplies both by a number, so one measurement serves every one of
`WEIGHTINGS`. Three panels: the loss by time; the standard deviation of one sample's gradient,
the root of the trace of the covariance; the density of times with the least noise,

.. math:: p^*(t) \propto w_t \sqrt{E\, \|\nabla_\theta \ell_t\|^2},

beside which the samplers' densities are drawn. Crosses are the score-matching loss and its
gradient, measured by themselves and divided by the weight that ties them to flow matching,
:math:`(\alpha/D)^2`: they lie on its curve. The table says how many times more samples a sampler
needs than the best density for gradients as precise, each loss being divided by the density from
which its time is drawn.

Reference: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models",
https://arxiv.org/abs/2102.09672 (importance sampling of the times).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.objectives import flow_matching_loss, score_matching_loss
from fm_diffusers.paths import GaussianPath
from fm_diffusers.tables import look_up
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.data import ImageData, load_images
from fm_diffusers.training.outputs import check_file, check_least
from fm_diffusers.training.tuning import image_channels
from fm_diffusers.weightings import WEIGHTINGS, loss_weight

SAMPLERS = "uniform", "logit_normal", "beta", "cosmap"  # of which the density is a weighting
Batch = tuple[Tensor, Tensor, Tensor | None]  # images, noise, labels
LOSSES = {"flow_matching": flow_matching_loss, "snr": score_matching_loss}


@dataclass
class PlotArguments:
    """Command line."""

    model: str = field(metadata={"help": "A saved pipeline: a folder or a Hub id."})
    dataset_name: str = "ylecun/mnist"
    image_column: str = "image"
    label_column: str = "label"
    weightings: list[str] = field(
        default_factory=lambda: ["flow_matching", "snr", "min_snr", "sigmoid", "likelihood"],
        metadata={"choices": WEIGHTINGS, "help": "Each with its default parameters."},
    )
    num_times: int = 20
    num_batches: int = field(default=16, metadata={"help": "Mini-batches at each time."})
    batch_size: int = 32
    seed: int = 0
    output: str | None = field(
        default=None, metadata={"help": "By default `loss_by_time.png` in the model folder."}
    )

    def __post_init__(self) -> None:
        check_least(self, 2, "num_times", "num_batches")  # a curve, and a variance
        check_least(self, 1, "batch_size")
        for name in self.weightings:
            look_up("weighting of --weightings", WEIGHTINGS, name)


class Curve(NamedTuple):
    """What is known of one loss, each of shape `(times,)`.

    Attributes:
        loss: the mean loss.
        variance: the trace of the covariance of one sample's gradient.
        moment: the mean squared norm of one sample's gradient.
    """

    loss: Tensor
    variance: Tensor
    moment: Tensor

    def weighted(self, w: Tensor) -> "Curve":
        """Return the curve of the loss times `w`."""
        return Curve(w * self.loss, w**2 * self.variance, w**2 * self.moment)


def load(args: PlotArguments) -> ImageData:
    """Return the images of the data set."""
    return load_images(
        args.dataset_name, image_column=args.image_column, label_column=args.label_column
    )


def draw_batches(args: PlotArguments, data: ImageData | None = None) -> list[Batch]:
    """Return images in [-1, 1], noise and labels: one list for all times."""
    data = load(args) if data is None else data
    torch.manual_seed(args.seed)
    chosen = list(islice(data.loader(args.batch_size), args.num_batches))
    if len(chosen) < args.num_batches:
        raise ValueError(
            f"the data set has {len(chosen)} batches of --batch_size {args.batch_size}, fewer "
            f"than --num_batches {args.num_batches}"
        )
    scaled = [batch["image"].float() / 127.5 - 1 for batch in chosen]
    labels = [batch.get("label") for batch in chosen]
    return [(z, torch.randn_like(z), label) for z, label in zip(scaled, labels, strict=True)]


def measure(pipe: FlowMatchingPipeline, batches: list[Batch], times: Tensor) -> dict[str, Curve]:
    """Return the curves of flow matching and of score matching, each from its own gradients."""
    parameters, points = list(pipe.unet.parameters()), {name: [] for name in LOSSES}
    for t in tqdm(times.tolist(), desc="times", disable=None):
        measured = {name: [] for name in LOSSES}
        for batch in batches:
            for name, loss in network_losses(pipe, *batch, t).items():
                parts = torch.autograd.grad(loss, parameters, retain_graph=True)
                gradient = torch.cat([part.flatten() for part in parts])
                measured[name].append((loss.detach(), gradient))
        for name, pairs in measured.items():
            points[name].append(moments(*zip(*pairs, strict=True), len(batches[0][0])))
    return {name: Curve(*map(torch.stack, zip(*p, strict=True))) for name, p in points.items()}


def network_losses(
    pipe: FlowMatchingPipeline, z: Tensor, eps: Tensor, label: Tensor | None, t: float
) -> dict[str, Tensor]:
    """Return the losses of one forward pass at the time `t`."""
    path, t = pipe.scheduler.path, torch.full((len(z),), t)
    timestep, label = pipe.scheduler.to_timestep(t), label if pipe.num_classes else None
    output = pipe.unet(path.flow_map(z, eps, t), timestep, label, return_dict=False)[0]
    given = output, path, z, eps, t, pipe.scheduler.config.prediction_type
    return {name: loss(*given) for name, loss in LOSSES.items()}


def moments(
    losses: tuple[Tensor, ...], gradients: tuple[Tensor, ...], batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss, and of one sample's gradient the variance and the squared norm."""
    g = torch.stack(gradients)
    variance = batch_size * g.var(0).cpu().double().sum()
    # the mean of n gradients has the expected squared norm |E g|^2 + variance/n
    squared_mean = g.mean(0).cpu().double().square().sum() - variance / (batch_size * len(g))
    return torch.stack(losses).cpu().double().mean(), variance, variance + squared_mean


def excess(curve: Curve, density: Tensor, t: Tensor) -> float:
    r"""Return :math:`\int m/p\; \int p / (\int \sqrt m)^2`: at least 1, and 1 for the best p."""
    squared = torch.trapezoid(curve.moment / density, t) * torch.trapezoid(density, t)
    return (squared / torch.trapezoid(curve.moment.sqrt(), t) ** 2).item()


def draw(
    path: GaussianPath, t: Tensor, measured: dict[str, Curve], weightings: list[str]
) -> Figure:
    """Return the three panels."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    panels: tuple[Callable[[Curve], Tensor], ...] = (
        lambda curve: curve.loss,
        lambda curve: curve.variance.sqrt(),
        lambda curve: curve.moment.sqrt() / torch.trapezoid(curve.moment.sqrt(), t),
    )
    matched = measured["snr"].weighted(1 / loss_weight(path, t, "velocity", "snr"))
    for axis, panel in zip(axes, panels, strict=True):
        for name in weightings:
            curve = measured["flow_matching"].weighted(loss_weight(path, t, "velocity", name))
            axis.plot(t, panel(curve), label=name)
        label = "score matching, reweighted"
        axis.plot(t, panel(matched), "x", c="black", ms=4, label=label)
        axis.set(xlim=(0, 1), xlabel="time $t$: noise to data")
    for name, style in zip(SAMPLERS, ("-", ":", "--", "-."), strict=True):
        density = loss_weight(path, t, "velocity", name)
        axes[2].plot(t, density, style, c="grey", lw=1.2, label=f"sampler {name}")
    axes[0].set(title="loss", yscale="log")
    axes[1].set(title="standard deviation of a sample's gradient", yscale="log")
    axes[2].set(title="density of times with the least noise", ylim=(0, 4))
    axes[0].legend(fontsize=8)
    axes[2].legend(handles=axes[2].lines[-len(SAMPLERS) :], fontsize=8)
    return figure


def table(
    path: GaussianPath, t: Tensor, flow_matching: Curve, weightings: list[str]
) -> dict[str, dict[str, float]]:
    """Print and return the excess of every sampler for every weighting."""
    print(f"{'samples needed, relative':24s}" + "".join(f"{name:>14s}" for name in SAMPLERS))
    rows = {}
    for weighting in weightings:
        curve = flow_matching.weighted(loss_weight(path, t, "velocity", weighting))
        densities = {name: loss_weight(path, t, "velocity", name) for name in SAMPLERS}
        rows[weighting] = {name: excess(curve, p, t) for name, p in densities.items()}
        print(f"{weighting:24s}" + "".join(f"{x:14.2f}" for x in rows[weighting].values()))
    return rows


def output_file(args: PlotArguments) -> Path:
    """Return the file of the picture, which can be written."""
    if args.output is None and not Path(args.model).is_dir():
        raise ValueError(f"{args.model!r} is no folder: say by --output where the picture goes")
    file = args.output or Path(args.model, "loss_by_time.png")
    return check_file(file, [f".{end}" for end in FigureCanvasBase.get_supported_filetypes()])


def check_fit(args: PlotArguments, pipe: FlowMatchingPipeline, data: ImageData) -> None:
    """Raise a `ValueError` for a pipeline whose loss is not that of images, or for other ones."""
    if pipe.unet is None or pipe.takes == "text" or pipe.vae is not None:
        raise ValueError(
            f"--model {args.model} is no U-Net of pixels by class or without classes, whose loss "
            "alone is drawn: choose a pipeline of train_mnist.py with --backbone unet"
        )
    if data.shape[0] != (channels := image_channels(pipe)):
        raise ValueError(
            f"--model {args.model} takes {channels} channels, the images of {args.dataset_name} "
            f"have {data.shape[0]}: choose another --dataset_name"
        )
    if pipe.num_classes and not data.num_classes:
        raise ValueError(
            f"--model {args.model} takes classes: name their column by --label_column"
        )


def main(args: PlotArguments) -> tuple[dict[str, Curve], dict[str, dict[str, float]]]:
    """Measure, write the picture, and return the curves and the table."""
    pipe, file = FlowMatchingPipeline.from_pretrained(args.model), output_file(args)
    data = load(args)
    check_fit(args, pipe, data)
    pipe.unet.eval()
    # the middles of equal parts of [0, 1]: a score-matching loss says nothing at t = 0
    t = (torch.arange(args.num_times) + 0.5) / args.num_times
    measured, path = measure(pipe, draw_batches(args, data), t), pipe.scheduler.path
    draw(path, t, measured, args.weightings).savefig(file, dpi=110)
    return measured, table(path, t, measured["flow_matching"], args.weightings)


if __name__ == "__main__":
    matplotlib.use("Agg")
    with plain_errors():
        main(parse(PlotArguments))
