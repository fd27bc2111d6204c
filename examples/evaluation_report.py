"""The table and the picture of `evaluate.py`."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

#: The figures of a row: their names in the table, and how they are written.
FIGURES = {
    "frechet_distance": ("Fréchet", ".3f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "accuracy": ("accuracy", ".1%"),
    "sliced_wasserstein": ("sliced W", ".4f"),
}

#: From this ratio of the largest to the smallest on, distances are drawn on a logarithmic axis.
WIDE = 20


def line(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    process = "ODE" if row["diffusion"] is None else f"SDE ({row['diffusion']})"
    name = f"{row['solver']}, {process}, guidance {row['guidance_scale']:g}"
    return f"{name:52s}{row['evaluations']:5d}" + numbers(row) + f"{row['seconds']:8.1f} s"


def numbers(figures: dict[str, Any]) -> str:
    """Return the figures of a row in columns."""
    values = [(figures[name], style) for name, (_, style) in FIGURES.items()]
    return "".join(f"{'-' if v is None else format(v, style):>11s}" for v, style in values)


def draw(figures: dict[str, Any], file: Path) -> None:
    """Draw quality against evaluations: ODE and SDE, and the floor."""
    rows, real = figures["rows"], figures["real"]
    shown = [
        name for name in ("frechet_distance", "accuracy", "precision") if rows[0][name] is not None
    ]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, shown, strict=False):
        for key in dict.fromkeys((r["solver"], r["diffusion"], r["guidance_scale"]) for r in rows):
            of = [r for r in rows if (r["solver"], r["diffusion"], r["guidance_scale"]) == key]
            process = "ODE" if key[1] is None else f"SDE ({key[1]})"
            label = f"{process}, {key[0]}" + (f", guidance {key[2]:g}" if key[2] != 1 else "")
            points = [r["evaluations"] for r in of], [r[name] for r in of]
            axis.plot(*points, "o-" if key[1] is None else "s--", label=label, markersize=4)
        axis.axhline(real[name], color="gray", linewidth=1, label="real images")
        axis.set_xscale("log")
        ticks = sorted({r["evaluations"] for r in rows})
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_xticks([], minor=True)
        axis.set(xlabel="evaluations of the network", ylabel=FIGURES[name][0])
        axis.grid(alpha=0.3)
    found = [row[shown[0]] for row in rows] + [real[shown[0]]]
    if min(found) > 0 and max(found) > WIDE * min(found):
        axes[0].set_yscale("log")
    else:
        axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)
