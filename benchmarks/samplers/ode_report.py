"""Tables and pictures of the ODE benchmark, from its rows.

A table holds, for one problem and path, two comparisons at each budget: default settings against
the best peer's default settings, and our best grid against the best peer's best grid, once by rms
and once by median. Below a ratio of 1 ours is the closer one. A picture holds error against
evaluations in logarithmic scales, so that an order of convergence is a slope.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

METRICS = {"rms": "rms error", "median": "median error of a sample"}


class Line(NamedTuple):
    """A line of the picture: the best at each budget of the rows that it takes.

    Attributes:
        label: written at the line.
        style: a name in `STYLES`.
        takes: which rows.
        kind: of the rows; None is default and tuned ones.
    """

    label: str
    style: str
    takes: Callable[[Any], bool]
    kind: str | None

    def shows(self, row: Any) -> bool:
        """Whether the row belongs to the line."""
        kinds = (self.kind,) if self.kind else ("default", "tuned")
        return row.kind in kinds and math.isfinite(row.rms) and self.takes(row)


STYLES: dict[str, dict[str, Any]] = {
    "peer": {"color": "#9a9a9a", "linewidth": 1.3},
    "best": {"color": "#1f4e9c", "linewidth": 1.8},
    "ours": {"color": "#c8401f", "linewidth": 2.0},
}
#: Lines that share a colour differ in their dashes.
DASHES = {"default": "-", None: (0, (5, 1.5)), "calibrated": (0, (1, 1.2))}


def best(rows: list[Any], metric: str) -> Any | None:
    """Return the row of the smallest error; None if there is none."""
    finite = [row for row in rows if math.isfinite(getattr(row, metric))]
    return min(finite, key=lambda row: getattr(row, metric), default=None)


def number(value: float) -> str:
    """Return three significant digits, without an exponent down to 1e-5.

    Example:
        >>> number(0.012345)
        '.0123'
    """
    if not math.isfinite(value) or value == 0:
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}" if digits <= 7 else f"{value:.1e}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _cells(rows: list[Any], names: list[str], metric: str) -> list[str]:
    """Return the cells of one budget and metric."""
    peers = [row for row in rows if row.method not in names]
    peer = best([row for row in peers if row.kind == "default"], metric)
    mine = [row for row in rows if row.method in names]
    fixed = [
        best([r for r in mine if (r.method, r.kind) == (n, "default")], metric) for n in names
    ]
    tuned = best([row for row in mine if row.kind != "calibrated"], metric)
    calibrated = best([row for row in mine if row.kind == "calibrated"], metric)
    rival = best(peers, metric)
    cells = [_figure(row, metric) for row in (peer, *fixed[:2])]
    cells += [_ratio(row, peer, metric) for row in fixed[:2]]
    cells += [_figure(row, metric, grid=True) for row in (rival, tuned)]
    cells += [_ratio(tuned, rival, metric), _figure(calibrated, metric)]
    return [*cells, _ratio(calibrated, rival, metric)]


def _figure(row: Any | None, metric: str, grid: bool = False) -> str:
    if row is None:
        return "-"
    named = row.method + (f", {row.grid}" if grid and row.grid != "own" else "")
    return number(getattr(row, metric)) + (
        "" if "ours" in row.method and not grid else f" ({named})"
    )


def _ratio(ours: Any | None, peer: Any | None, metric: str) -> str:
    values = [None if row is None else getattr(row, metric) for row in (ours, peer)]
    return "-" if None in values or values[1] == 0 else f"{values[0] / values[1]:.2f}"


HEAD = [
    "NFE",
    "best default peer",
    "ours, default",
    "ours, exact",
    "default/peer",
    "exact/peer",
    "best tuned peer",
    "ours, tuned",
    "tuned/tuned",
    "ours, calibrated",
    "calibrated/tuned",
]


def table(rows: list[Any], names: list[str]) -> str:
    """Return the tables of all problems and paths in Markdown.

    Args:
        rows: of `ode`.
        names: our methods; the first two are compared at their own settings.
    """
    text = []
    for problem, path in dict.fromkeys((row.problem, row.path) for row in rows):
        for metric in METRICS:
            text += [f"## {problem}, {path} path: {metric}", "", _line(HEAD)]
            text += [_line(["---:"] * len(HEAD))]
            here = [row for row in rows if (row.problem, row.path) == (problem, path)]
            for nfe in sorted({row.nfe for row in here}):
                now = [row for row in here if row.nfe == nfe]
                text.append(_line([str(nfe), *_cells(now, names, metric)]))
            text.append("")
    return "\n".join(text)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(rows: list[Any], lines: list[Line], file: Path) -> None:
    """Draw error against evaluations: a column for each problem, a row for each metric."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    size = 4.4 * len(problems) + 1.6, 7.6
    figure, axes = plt.subplots(2, len(problems), figsize=size, squeeze=False, sharex=True)
    for column, problem in enumerate(problems):
        here = [row for row in rows if row.problem == problem]
        for axis, metric in zip(axes[:, column], METRICS, strict=True):
            _panel(axis, here, lines, metric, labels=column == len(problems) - 1)
        axes[0, column].set_title(problem)
        axes[1, column].set_xlabel("evaluations of the field")
    for axis, name in zip(axes[:, 0], METRICS.values(), strict=True):
        axis.set_ylabel(name)
    figure.suptitle("Distance from the converged endpoint of the ODE, linear path")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _panel(axis: Any, rows: list[Any], lines: list[Line], metric: str, labels: bool) -> None:
    ends = []
    for line in lines:
        shown = [row for row in rows if line.shows(row)]
        budgets = sorted({row.nfe for row in shown})
        points = [best([r for r in shown if r.nfe == n], metric) for n in budgets]
        values = [getattr(row, metric) for row in points]
        style = STYLES[line.style] | {"linestyle": DASHES[line.kind]}
        axis.loglog(budgets, values, marker="o", markersize=3, **style)
        ends.append((values[-1], line.label, style["color"], budgets[-1]))
    axis.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    ticks = sorted({row.nfe for row in rows})
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.minorticks_off()
    if labels:
        annotate(axis, ends)


def annotate(axis: Any, ends: list[tuple[float, str, str, int]]) -> None:
    """Write the labels to the right of the ends of the lines, apart from each other."""
    low, high = map(math.log10, axis.get_ylim())
    ends, heights = sorted(ends), []
    for value, *_ in ends:
        place = (math.log10(value) - low) / (high - low)
        heights.append(max(place, heights[-1] + 0.06) if heights else place)
    excess = max(0.0, heights[-1] - 1)
    for (value, label, color, nfe), height in zip(ends, heights, strict=True):
        axis.annotate(
            label,
            (nfe, value),
            (1.04, height - excess),
            textcoords="axes fraction",
            color=color,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5},
        )
