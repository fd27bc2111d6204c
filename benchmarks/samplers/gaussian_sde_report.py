"""Tables and picture of `gaussian_sde`, from its rows: the worst case named beside every range."""

from collections.abc import Callable, Iterable
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

from benchmarks.samplers.sde_report import panel

TITLE = "SDE samplers on Gaussian data, computed exactly"
INTRODUCTION = """\
Bias of the standard deviation in per cent, of data of several standard deviations ("widths") and
mean 1: 0 is right, -100 a single point. No samples are drawn; `gaussian_sde.csv` has all figures.
Ours runs on the default grid unless "equal steps" in t are said, with each coefficient's default
scale unless a strength is said. In a table of worst cases a cell is the bias of largest magnitude,
with where it is.

Two biases are the path's own and no sampler's: `variance_exploding` ends with noise of 0.01 in the
samples, which is +0.50 at width 0.1; and where a path begins with data in the noise, or sampling
begins inside it, pure noise has no mean to begin with, which costs some of the mean.
"""


class Cell(NamedTuple):
    """A bias and where it is."""

    value: float
    row: Any
    width: float


def cells(rows: Iterable[Any], widths: list[float], figure: str = "std") -> list[Cell]:
    """Return all biases of the rows."""
    return [
        Cell(value, row, width)
        for row in rows
        for width, value in zip(widths, getattr(row, figure), strict=True)
    ]


def worst(found: list[Cell]) -> Cell:
    """Return the first cell of largest magnitude, as far as it is shown; nan counts as largest."""
    return max(found, key=lambda cell: round(abs(cell.value), 4) if isfinite(cell.value) else inf)


def percent(value: float) -> str:
    """Return per cent with a sign, two digits below 10 and one from there on.

    Example:
        >>> percent(-0.0964), percent(0.159), percent(-0.00004)
        ('-9.64', '+15.9', '0.00')
    """
    value = 100 * value
    text = f"{value:+.1f}" if abs(value) >= 9.995 else f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def table(head: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def beside_peers(rows: list[Any], widths: list[float]) -> str:
    """Return a table for each number of steps: samplers down, widths across."""
    text = ""
    names = {"ODE": "the ODE", "memoryless": "memoryless", "flow_grpo": "flow_grpo"}
    for n in sorted({row.steps for row in rows}):
        body = []
        for row in rows:
            mine = row.method in ("ours", "ours, ddim") and row.path == "linear"
            mine = mine and row.diffusion in names and row.strength == 1
            if row.steps != n or not (mine or row.diffusion == "own"):
                continue
            name = f"{row.method}, {names[row.diffusion]}" if mine else row.method
            body.append([name, row.path, *map(percent, row.std)])
        head = ["sampler", "path", *(f"width {width:g}" for width in widths)]
        text += f"\n### {n} steps\n\n" + table(head, body)
    return text


#: By what a table of worst cases is sorted, and what it writes beside the figure.
VIEWS: dict[str, tuple[Callable[[Cell], str], Callable[[Cell], str]]] = {
    "width": (lambda c: f"{c.width:g}", lambda c: f"{c.row.diffusion}, {c.row.path}"),
    "coefficient": (lambda c: c.row.diffusion, lambda c: f"{c.row.path}, {c.width:g}"),
    "path": (lambda c: c.row.path, lambda c: f"{c.row.diffusion}, {c.width:g}"),
    "coefficient and strength": (
        lambda c: f"{c.row.diffusion} x {c.row.strength:g}",
        lambda c: f"{c.width:g}",
    ),
}


def worst_table(rows: list[Any], widths: list[float], view: str, figure: str = "std") -> str:
    """Return the worst cells of a view, down, and by the number of steps, across.

    Args:
        rows: among which.
        widths: of the data.
        view: a name in `VIEWS`.
        figure: `std` or `mean`.
    """
    (key, place), found = VIEWS[view], cells(rows, widths, figure)
    steps = sorted({row.steps for row in rows})
    body = []
    for value in dict.fromkeys(map(key, found)):
        of = [worst([c for c in found if key(c) == value and c.row.steps == n]) for n in steps]
        body.append([value, *(f"{percent(cell.value)} ({place(cell)})" for cell in of)])
    return table([view, *(f"{n} steps" for n in steps)], body)


def report(rows: list[Any], widths: list[float]) -> str:
    """Return all tables in Markdown."""
    noisy = [r for r in rows if r.method.startswith("ours") and r.diffusion != "ODE"]
    plain = [row for row in noisy if row.strength == 1]
    first = [row for row in plain if row.method == "ours"]
    text = INTRODUCTION + "\n" + worst_sentence(first, widths)
    text += "\n## Beside peers\n" + beside_peers(rows, widths)
    for method in dict.fromkeys(row.method for row in plain):
        these = [row for row in plain if row.method == method]
        for view in ("width", "coefficient", "path"):
            text += f"\n## {method}: the worst by {view}\n\n" + worst_table(these, widths, view)
    view = "coefficient and strength"
    for method in dict.fromkeys(row.method for row in noisy if row.strength != 1):
        these = [row for row in noisy if row.method == method and row.path == "linear"]
        these.sort(key=lambda row: (row.diffusion, row.strength))
        text += f"\n## {method}, linear path: the worst by {view}\n\n"
        text += worst_table(these, widths, view)
    text += "\n## ours: the worst of the mean by path\n\n"
    return text + worst_table(first, widths, "path", "mean")


def worst_sentence(rows: list[Any], widths: list[float]) -> str:
    """Return the worst cell of every number of steps in words."""
    parts = []
    for n in sorted({row.steps for row in rows}):
        value, row, width = worst(cells([row for row in rows if row.steps == n], widths))
        place = f"`{row.diffusion}` on `{row.path}`, width {width:g}"
        parts.append(f"{percent(value)} % at {n} steps ({place})")
    return "**The worst of ours**, by the default solver: " + "; ".join(parts) + ".\n"


def draw(rows: list[Any], widths: list[float], file: Path) -> None:
    """Draw the bias of the standard deviation against steps: ours memoryless, and the peers."""
    figure, axes = plt.subplots(1, len(widths), figsize=(4.6 * len(widths), 4.4), squeeze=False)
    for i, (axis, width) in enumerate(zip(axes[0], widths, strict=True)):
        points: dict[str, dict[int, float]] = {}
        for row in rows:
            ours = row.method in ("ours", "ours, ddim") and row.path == "linear"
            ours = ours and row.diffusion == "memoryless" and row.strength == 1
            if ours or row.diffusion == "own":
                points.setdefault(row.method, {})[row.steps] = abs(row.std[i])
        panel(axis, points)
        axis.set_title(f"data of standard deviation {width:g}")
        axis.set_xlabel("evaluations of the field")
    axes[0][0].set_ylabel("relative error of the standard deviation")
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
