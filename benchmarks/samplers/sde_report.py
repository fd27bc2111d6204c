"""Tables and pictures of the SDE benchmark, from its rows."""

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.samplers.ode_report import annotate, number

#: The kinds of rows that compete in a table.
KINDS = {"default": ("default", "floor"), "tuned": ("default", "tuned", "floor")}


def tables(rows: list[Any]) -> str:
    """Return Markdown: a table for each problem and kind, methods down and budgets across."""
    text = []
    for problem in dict.fromkeys(row.problem for row in rows):
        for kind in ("default", "tuned"):
            here = [r for r in rows if r.problem == problem and r.kind in KINDS[kind]]
            if not any(row.kind == kind for row in here):
                continue
            budgets = sorted({row.nfe for row in here})
            text += [f"## {problem}, {kind}: sw2 / std / weights", ""]
            text += ["| method | " + " | ".join(map(str, budgets)) + " |"]
            text += ["|---" * (len(budgets) + 1) + "|"]
            for method in dict.fromkeys(row.method for row in here):
                cells = [
                    _cell([r for r in here if (r.method, r.nfe) == (method, n)]) for n in budgets
                ]
                text.append(f"| {method} | " + " | ".join(cells) + " |")
            text.append("")
    return "\n".join(text)


def _cell(rows: list[Any]) -> str:
    finite = [row for row in rows if math.isfinite(row.std)]
    if not finite:
        return "nan"
    row = min(finite, key=lambda row: abs(row.std))
    values = [number(v) for v in (row.sw2, row.std, row.weights) if math.isfinite(v)]
    return " / ".join(values) + (f" ({row.grid})" if len(rows) > 1 else "")


#: What the picture of the SDE benchmark shows of each problem: a column of the rows, and its name.
SDE_PANELS = {
    "sw2": "sliced Wasserstein-2 to data",
    "std": "relative error of the modes' width",
}


def draw_sde(rows: list[Any], ours: list[str], file: Path) -> None:
    """Draw the default settings: both measures of each problem, then the weak orders."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    sampled = [p for p in problems if not p.startswith("s=")]
    panels = [(p, metric) for metric in SDE_PANELS for p in sampled]
    panels += [(p, "std") for p in problems if p.startswith("s=")]
    figure, axes = plt.subplots(-(-len(panels) // 2), 2, figsize=(13, 12.5), squeeze=False)
    for axis, (problem, metric) in zip(axes.flat, panels, strict=False):
        here = [row for row in rows if row.problem == problem and row.kind in ("default", "floor")]
        _sde_panel(axis, here, metric, ours)
        title = (
            f"problem {problem}" if problem in sampled else f"exactly, Gaussian data, {problem}"
        )
        axis.set_title(title)
        axis.set_ylabel(SDE_PANELS[metric])
    for axis in axes[-1]:
        axis.set_xlabel("evaluations of the field")
    figure.suptitle(
        "Samplers of the SDE, default settings, linear path (DDIM: variance preserving)"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _sde_panel(axis: Any, rows: list[Any], metric: str, ours: list[str]) -> None:
    ends, reds = [], plt.get_cmap("autumn")
    for method in dict.fromkeys(row.method for row in rows if row.method not in ours[2:]):
        points = {}
        for row in rows:
            if row.method == method and math.isfinite(getattr(row, metric)):
                points[row.nfe] = abs(getattr(row, metric))
        if not points:
            continue
        color = reds(0.1 + 0.15 * ours.index(method)) if method in ours else "#7d8794"
        color = "#2c7a3f" if method == "fresh data" else color
        wide = 2.0 if method in ours else 1.2
        axis.loglog(
            *zip(*sorted(points.items()), strict=True), color=color, lw=wide, marker="o", ms=3
        )
        ends.append((points[max(points)], method, color, max(points)))
    axis.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    ticks = sorted({row.nfe for row in rows})
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.minorticks_off()
    annotate(axis, ends)
