r"""Pictures of the theory's pages: what a network regresses, what it could predict, and the ends.

    python examples/plot_theory.py --output_dir outputs/paths

- `regression.png`: conditional velocities at one point, and their mean, which is the marginal one;
- `predictions.png`: one noisy digit, and the exact field of every kind at it;
- `ends.png`: by how much a conversion magnifies an error, at every time.

All fields are exact, nothing is trained; `plot_paths.py` draws the other pictures.
"""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from plot_paths import TIME, digits, draw_image, even_times, randn, two_moons

from fm_diffusers.paths import PATHS, GaussianPath
from fm_diffusers.predictions import conversion
from fm_diffusers.training.command_line import parse, plain_errors
from fm_diffusers.training.folders import make

SHOWN = 0.25  # of a unit of time, in the arrows
COLORS = ["#3d5a98", "#e8743b", "#2e8b6f", "#a569a6"]


@dataclass
class TheoryArguments:
    """Command line."""

    output_dir: str = field(default="outputs/paths", metadata={"help": "Where the pictures go."})


def regression(path: GaussianPath, n: int = 40000) -> Figure:
    """Draw the targets of all pairs whose sample comes near one point, and their mean."""
    data = two_moons()
    z, eps = data.sample(n, torch.Generator().manual_seed(0)), randn(n, 2, seed=1)
    figure, axes = plt.subplots(1, 3, figsize=(15, 2.9), layout="constrained")
    for ax, t in zip(axes, (0.1, 0.4, 0.7), strict=True):
        x_t, c = path.flow_map(z, eps, t), path(t)
        targets = c.d_alpha * z + c.d_beta * eps
        x = x_t[3:4]
        near = (x_t - x).square().sum(1).sqrt() < 0.3
        mean = targets[near].mean(0)
        exact = data.field(path)(x, torch.tensor(t, dtype=torch.float64))[0]
        ax.scatter(*x_t[:2000].T, s=2, c="lightgrey", zorder=0)
        arrows = {"angles": "xy", "scale_units": "xy", "scale": 1 / SHOWN, "zorder": 3}
        for target in targets[near][:60]:
            ax.quiver(*x[0], *target, color=TIME(t), width=0.002, alpha=0.5, **arrows)
        ax.quiver(*x[0], *exact, color="black", width=0.008, **arrows)
        ax.scatter(*(x[0] + SHOWN * mean), s=60, marker="o", fc="none", ec="black", zorder=5)
        ax.set(title=f"$t = {t}$", xticks=[], yticks=[], xlim=(-3.5, 11.5), ylim=(-3.3, 3.3))
        ax.set_aspect("equal")
    axes[0].set_xlabel("thin arrows: velocities of pairs (noise, data)")
    axes[1].set_xlabel("circle: where their mean points")
    axes[2].set_xlabel("thick arrow: the exact marginal velocity")
    return figure


def predictions(path: GaussianPath) -> Figure:
    """Draw what each kind of network would answer to one noisy digit."""
    data, _ = digits()
    z, eps = data.means[4:5], randn(1, 8, 8, seed=3)
    kinds = {
        "sample": r"data $\mathbb{E}[z|x]$",
        "epsilon": r"noise $\mathbb{E}[\varepsilon|x]$",
        "velocity": "velocity $u$",
        "score": r"score $\nabla\log p_t$",
        "v_prediction": r"$v = \alpha\varepsilon - \beta z$",
    }
    times = [0.2, 0.4, 0.6, 0.8, 0.95]
    size = {"figsize": (11, 9.4), "layout": "constrained"}
    figure, axes = plt.subplots(len(times), 1 + len(kinds), **size)
    for row, t in zip(axes, times, strict=True):
        x = path.flow_map(z, eps, t)
        draw_image(row[0], x)
        row[0].set_ylabel(f"$t = {t}$")
        for ax, kind in zip(row[1:], kinds, strict=True):
            image = data.field(path, kind)(x, torch.tensor(t, dtype=torch.float64))
            draw_image(ax, image / image.abs().max())
            ax.set_xlabel(f"largest {image.abs().max():.3g}", fontsize="small")
    for ax, name in zip(axes[0], ["$x_t$", *kinds.values()], strict=True):
        ax.set_title(name)
    return figure


def ends(path: GaussianPath) -> Figure:
    """Draw the factor by which the error of one prediction becomes that of another."""
    t = even_times(2000)[1:-1]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), sharey=True, layout="constrained")
    for ax, source in zip(axes, ("velocity", "epsilon", "sample"), strict=True):
        kinds = [k for k in ("velocity", "epsilon", "sample", "score") if k != source]
        for kind in kinds:
            factor = conversion(path, source, kind, t)[1].abs()
            color = COLORS[["velocity", "epsilon", "sample", "score"].index(kind)]
            ax.semilogy(t, factor, label=kind, color=color)
        ax.axhline(1, color="grey", lw=0.8, ls=":")
        ax.set(title=f"the network predicts the {source}", xlabel="$t$: noise 0, data 1")
        ax.legend(title="error of the")
        ax.set_ylim(1e-2, 1e2)
    axes[0].set_ylabel("error, for an error of 1 of the network")
    return figure


def main(args: TheoryArguments) -> None:
    """Draw and save the pictures."""
    folder = Path(args.output_dir)
    make(folder)
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    for draw in (regression, predictions, ends):
        file = folder / f"{draw.__name__}.png"
        draw(PATHS["linear"]()).savefig(file, dpi=100)
        print(file)


if __name__ == "__main__":
    with plain_errors():
        main(parse(TheoryArguments))
