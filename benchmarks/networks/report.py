"""Table and picture of `few_steps`: for each network and guidance, error against evaluations.

Of the peers FlowMatchEuler, which everybody knows, is shown on its own, then the best default and
the best tuned one of each budget (of all settings, defaults included), chosen by the median on the
noise of the comparison itself.

    python -m benchmarks.networks.report --network mnist --guidance 1

draws one panel of the picture again, from the table.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from transformers import HfArgumentParser

from benchmarks.header import header

FIELDS = (
    "network weights guidance kind method setting nfe samples seed rms median frechet accuracy "
    "seconds"
).split()

#: The distances, as they are written beside each other.
FIGURES = ("rms", "median")

#: What a peer's column may choose from.
CHOICES = {"default": ("default",), "tuned": ("tuned", "default")}

#: What stands above the table.
HEAD = """\
Distance to the network's own converged samples, RMS/median, by evaluations. Below a ratio of
1 ours is closer. Tuned peers are the best of five grids, chosen on the noise of the test.

"""

Row = dict[str, str]
Line = tuple[str, dict[int, Row]]


def best(rows: list[Row], kind: str) -> list[tuple[str, str, str]]:
    """Return kind, method and setting of the best peer by the median, if there is any."""
    rows = [
        row for row in rows if row["kind"] in CHOICES[kind] and row["median"] not in ("", "nan")
    ]
    least = min(rows, key=lambda row: float(row["median"]), default=None)
    return [] if least is None else [(least["kind"], least["method"], least["setting"])]


def panels(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield network, guidance and rows with distances, for the last weights of every network."""
    latest = {row["network"]: row["weights"] for row in rows}
    rows = [row for row in rows if row["weights"] == latest[row["network"]]]
    for network, guidance in dict.fromkeys((r["network"], r["guidance"]) for r in rows):
        yield (
            network,
            guidance,
            [r for r in rows if (r["network"], r["guidance"]) == (network, guidance)],
        )


def lines(rows: list[Row]) -> list[Line]:
    """Return what is compared in a panel: name, and the row of every number of evaluations."""
    rows = [row for row in rows if row["median"]]
    budgets = sorted({int(row["nfe"]) for row in rows if row["kind"] != "floor"})

    def pick(name: str, chosen: list[Row]) -> Line:
        by_budget = {n: [r for r in chosen if int(r["nfe"]) == n] for n in budgets}
        return name, {
            n: min(some, key=lambda r: float(r["median"])) for n, some in by_budget.items() if some
        }

    names = dict.fromkeys(row["method"] for row in rows if row["kind"] == "ours")
    result = [
        pick(name, [r for r in rows if r["kind"] == "ours" and r["method"] == name])
        for name in names
    ]
    result.append(pick("FlowMatchEuler", [r for r in rows if r["method"] == "FlowMatchEuler"]))
    result += [
        pick(f"best {kind} peer", [r for r in rows if r["kind"] in kinds])
        for kind, kinds in CHOICES.items()
    ]
    return [line for line in result if line[1]]


def markdown(rows: list[Row]) -> str:
    """Return distances as RMS/median, their ratios, and Fréchet distances as one table."""
    budgets = sorted({int(r["nfe"]) for r in rows if r["kind"] != "floor"})
    head = ["network", "guidance", "sampler", *map(str, budgets)]
    body = []
    for network, guidance, some in panels(rows):
        place = [network, f"{float(guidance):g}"]
        shown = lines(some)
        for name, of in shown:
            chosen = "best" in name
            cells = [
                f"{float(of[n]['rms']):.3g}/{float(of[n]['median']):.3g}"
                + (f" {of[n]['method']}, {of[n]['setting']}" if chosen else "")
                if n in of
                else ""
                for n in budgets
            ]
            body.append([*place, name, *cells])
        for row in (row for row in some if row["kind"] == "floor"):
            text = f"floor {float(row['rms']):.2g}/{float(row['median']):.2g}"
            body.append([*place, row["method"], text, *[""] * (len(budgets) - 1)])
        further = ratio_rows(shown, budgets) + frechet_rows(some, budgets)
        body += [[*place, *cells] for cells in further]
    table = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in table)


def ratio_rows(shown: list[Line], budgets: list[int]) -> list[list[str]]:
    """Return the distances of ours over those of the best peers, RMS/median."""
    mine = [line for line in shown if next(iter(line[1].values()))["kind"] == "ours"]
    peers = [line for line in shown if line[0].startswith("best")]

    def cell(n: int, of: dict[int, Row], peer: dict[int, Row]) -> str:
        if n not in of or n not in peer:
            return ""
        return "/".join(f"{float(of[n][k]) / float(peer[n][k]):.2f}" for k in FIGURES)

    return [
        [f"{name} over {other}", *(cell(n, of, peer) for n in budgets)]
        for (name, of), (other, peer) in product(mine, peers)
    ]


def frechet_rows(rows: list[Row], budgets: list[int]) -> list[list[str]]:
    """Return Fréchet distances and label accuracies, of the peers that the medians chose."""
    measured = [row for row in rows if row["frechet"]]
    names = dict.fromkeys(row["method"] for row in measured if row["kind"] == "ours")
    result = []
    for name in [*names, *CHOICES]:
        cells = []
        for n in budgets:
            of = [row for row in rows if row["nfe"] == str(n)]
            chosen = best(of, name) if name in CHOICES else [("ours", name, "own")]
            found = [r for r in measured if (r["kind"], r["method"], r["setting"]) in chosen]
            found = [r for r in found if r["nfe"] == str(n)]
            cells += [f"{float(r['frechet']):.3g} ({float(r['accuracy']):.1%})" for r in found[:1]]
            cells += [] if found else [""]
        title = f"best {name} peer" if name in CHOICES else name
        result.append([f"Fréchet (accuracy), {title}", *cells])
    return [row for row in result if any(row[1:])]


def draw(rows: list[Row], path: Path) -> None:
    """Draw the medians, a row of panels for each network and a column for each guidance."""
    cells = {(network, guidance): some for network, guidance, some in panels(rows)}
    networks = list(dict.fromkeys(network for network, _ in cells))
    scales = sorted({guidance for _, guidance in cells}, key=float)
    wide = 5 if len(cells) == 1 else 3.4
    size = (wide * len(scales), 3.1 * len(networks))
    figure, axes = plt.subplots(
        len(networks),
        len(scales),
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    colors: dict[str, str] = {}
    ticks = sorted({int(row["nfe"]) for row in rows if row["median"] and row["kind"] != "floor"})
    for i, network in enumerate(networks):
        for j, guidance in enumerate(scales):
            axis = axes[i][j]
            for name, of in lines(cells.get((network, guidance), [])):
                color = colors.setdefault(name, f"C{len(colors)}")
                style = "o-" if "peer" not in name and name != "FlowMatchEuler" else "s--"
                medians = [float(row["median"]) for row in of.values()]
                axis.loglog(list(of), medians, style, color=color, label=name, markersize=4)
            axis.set_xticks(ticks, map(str, ticks), minor=False)
            axis.set_xticks([], minor=True)
            axis.set_title(f"{network}, guidance {float(guidance):g}", fontsize=10)
            axis.grid(alpha=0.3, which="both")
    for axis in axes[-1]:
        axis.set_xlabel("evaluations")
    for row in axes:
        row[0].set_ylabel("median distance to converged\n(RMS of pixels from -1 to 1)")
    shown = {
        name: handle
        for axis in axes.flat
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    axes[0][0].legend(shown.values(), shown.keys(), fontsize=8, frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_report(rows: list[Row], args: Any, folder: Path) -> None:
    """Write `network.md` and `network.png`; `args` is the command line of `few_steps`."""
    text = header("Few-step samples of trained networks", args) + HEAD + markdown(rows)
    Path(folder, "network.md").write_text(text)
    draw(rows, Path(folder, "network.png"))


@dataclass
class Arguments:
    """Command line."""

    network: str = "mnist"
    guidance: float = 1.0
    table: str = "benchmarks/results/network.csv"
    output: str = "docs/images/samplers.png"


if __name__ == "__main__":
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    with Path(args.table).open(newline="") as content:
        found = list(csv.DictReader(content))
    kept = (args.network, args.guidance)
    draw([r for r in found if (r["network"], float(r["guidance"])) == kept], Path(args.output))
