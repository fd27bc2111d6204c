"""Rows of the comparison of trainings as a table and as a picture.

A figure is the mean over the seeds of the training, with the least and the greatest.
"""

import csv
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.header import header

FIELDS = ("training", "sampler", "evaluations", "seed", "frechet", "accuracy", "seconds")

#: Lines of a training in the picture: first that of the sampler of its users.
STYLES = ("-o", ":", "--", "-.")

#: The greatest distance in the picture, over the least one.
SHOWN = 10

#: Distances by training, sampler and evaluations, one for each seed.
Figures = dict[tuple[str, str, int], list[float]]


def rows(path: Path) -> list[dict[str, str]]:
    """Return what has been measured."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def figures_of(measured: list[dict[str, str]]) -> Figures:
    """Return the distances of all seeds, in the order of the rows."""
    figures: Figures = {}
    for row in measured:
        key = row["training"], row["sampler"], int(row["evaluations"])
        figures.setdefault(key, []).append(float(row["frechet"]))
    return figures


def cell(values: list[float]) -> str:
    """Return a cell of the table.

    Example:
        >>> cell([2.0, 1.0, 6.0]), cell([])
        ('3.000 (1.000 to 6.000)', '')
    """
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""


def write_report(args: Any, path: Path, floor: float) -> None:
    """Write the table and the picture of what has been measured.

    Args:
        args: the command line.
        path: of the rows; the others have the same name.
        floor: the distance of as many real images.
    """
    figures, budgets = figures_of(rows(path)), args.evaluations
    lines = [
        f"{args.max_train_steps} steps of {args.train_batch_size}, widths "
        f"{args.block_out_channels}, {args.num_samples} samples; mean of the training seeds "
        f"(least to greatest). As many real images: {floor:.3f}.",
        "",
        "| training | sampler | " + " | ".join(map(str, budgets)) + " |",
        "|---|---|" + "---|" * len(budgets),
    ]
    for line in dict.fromkeys(key[:2] for key in figures):
        cells = [cell(figures.get((*line, budget), [])) for budget in budgets]
        lines.append(f"| {' | '.join([*line, *cells])} |")
    text = header("Training: Fréchet distance by evaluations", args) + "\n".join(lines)
    path.with_suffix(".md").write_text(text + "\n")
    draw(figures, path.with_suffix(".png"), floor)


def draw(figures: Figures, path: Path, floor: float) -> None:
    """Draw the distance by evaluations: a colour for each training, a style for each sampler.

    The axis ends at `SHOWN` times the least distance; the legend names the lines above it.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    top = SHOWN * min(fmean(values) for values in figures.values())
    for number, training in enumerate(dict.fromkeys(key[0] for key in figures)):
        samplers = dict.fromkeys(s for t, s, _ in figures if t == training)
        for sampler, style in zip(samplers, cycle(STYLES), strict=False):
            keys = [key for key in sorted(figures) if key[:2] == (training, sampler)]
            means = [fmean(figures[key]) for key in keys]
            label = f"{training}: {sampler}" + (" (above)" if min(means) > top else "")
            axis.plot([key[2] for key in keys], means, style, color=f"C{number}", label=label)
    axis.axhline(floor, color="grey", lw=1, label="as many real images")
    axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="Fréchet distance")
    axis.set_ylim(top=top)
    axis.set_xticks(budgets := sorted({key[2] for key in figures}), map(str, budgets))
    axis.minorticks_off()
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
