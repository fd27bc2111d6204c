"""Tables and pictures of the SDE benchmarks, from their rows."""

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
    """Draw the default settings: both measures of each problem."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    size = 6.5 * len(problems), 8.4
    figure, axes = plt.subplots(2, len(problems), figsize=size, squeeze=False)
    for line, (metric, label) in zip(axes, SDE_PANELS.items(), strict=True):
        for axis, problem in zip(line, problems, strict=True):
            here = [r for r in rows if r.problem == problem and r.kind in ("default", "floor")]
            points: dict[str, dict[int, float]] = {}
            for row in here:
                points.setdefault(row.method, {})[row.nfe] = abs(getattr(row, metric))
            for name in ours[2:]:
                points.pop(name, None)
            panel(axis, points)
            axis.set_title(problem)
            axis.set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations of the field")
    figure.suptitle(
        "Samplers of the SDE, default settings, linear path (DDIM, ancestral: variance preserving)"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def panel(axis: Any, points: dict[str, dict[int, float]]) -> None:
    """Draw figures against evaluations, both logarithmic: `{method: {evaluations: figure}}`.

    Methods of ours, whose names begin so, are red, those of others grey.
    """
    ends, reds = [], iter(plt.get_cmap("autumn")([0.1, 0.25, 0.4, 0.55]))
    for method, found in points.items():
        found = {n: value for n, value in sorted(found.items()) if math.isfinite(value)}
        if not found:
            continue
        mine = method.startswith("ours")
        color = next(reds) if mine else {"fresh data": "#2c7a3f"}.get(method, "#7d8794")
        style = {"color": color, "linewidth": 2.0 if mine else 1.2, "markersize": 3}
        axis.loglog(list(found), list(found.values()), marker="o", **style)
        ends.append((found[max(found)], method, color, max(found)))
    axis.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    ticks = sorted({n for found in points.values() for n in found})
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.minorticks_off()
    annotate(axis, ends)
