r"""Laps of the training benchmark as rows of a file, and as tables.

A ratio is the time of a training's lap over that of the plain loop's lap in the same round; of the
rounds' ratios the median is shown, with the quartiles.
"""

import csv
from collections.abc import Iterable
from typing import Any, TextIO

import numpy as np

from benchmarks.header import header
from benchmarks.training.speed_relay import Lap

CLOCKS = ("cpu", "wall")
NETWORK = ("network", "backward")  # parts that no training can do without


def recorded(laps: Iterable[Lap], race: str, file: TextIO) -> list[Lap]:
    """Write laps as they come, a row for each of their figures, and return them.

    Example:
        >>> import io
        >>> lap, file = Lap("a", 0, 10, 1.5, 1.25, {"data": 0.125}), io.StringIO()
        >>> recorded([lap], "trainings", file) == [lap]
        True
        >>> print(file.getvalue(), end="")  # doctest: +NORMALIZE_WHITESPACE
        race,training,round,steps,figure,seconds
        trainings,a,0,10,wall,1.500000
        trainings,a,0,10,cpu,1.250000
        trainings,a,0,10,data,0.125000
    """
    writer, found = csv.writer(file, lineterminator="\n"), []
    if not file.tell():
        writer.writerow(["race", "training", "round", "steps", "figure", "seconds"])
    for lap in laps:
        figures = {"wall": lap.wall, "cpu": lap.cpu} | lap.parts
        for name, seconds in figures.items():
            row = [race, lap.training, lap.round, lap.steps, name, f"{seconds:.6f}"]
            writer.writerow(row)
        file.flush()
        found.append(lap)
    return found


def names_of(laps: list[Lap], yardstick: str) -> list[str]:
    """Return the names of the trainings, the plain loop first."""
    return sorted({lap.training for lap in laps}, key=lambda name: (name != yardstick, name))


def of(laps: list[Lap], training: str) -> list[Lap]:
    """Return the laps of a training, by round."""
    return sorted((lap for lap in laps if lap.training == training), key=lambda lap: lap.round)


def ratios(laps: list[Lap], training: str, yardstick: str, clock: str) -> np.ndarray:
    """Return the time of a training over that of another, round by round."""
    times = [
        np.array([getattr(lap, clock) for lap in of(laps, name)]) for name in (training, yardstick)
    ]
    return times[0] / times[1]


def speeds(laps: list[Lap], yardstick: str, batch_size: int, missing: dict[str, str]) -> list[str]:
    """Return the table of images a second and of ratios."""
    lines = [
        "| training | images/s of CPU time | images/s | time / plain, CPU | time / plain, wall |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in names_of(laps, yardstick):
        cells = []
        for clock in CLOCKS:
            found = [batch_size * lap.steps / getattr(lap, clock) for lap in of(laps, name)]
            cells.append(f"{np.median(found):.1f}")
        for clock in CLOCKS:
            low, middle, high = np.percentile(ratios(laps, name, yardstick, clock), [25, 50, 75])
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines + [f"| {name} | {reason} | | | |" for name, reason in missing.items()]


def shares(laps: list[Lap], yardstick: str) -> list[str]:
    """Return the table of CPU milliseconds of a step by part, the mean over all laps."""
    names = names_of(laps, yardstick)
    steps = {name: sum(lap.steps for lap in of(laps, name)) for name in names}
    parts = list(dict.fromkeys(part for lap in laps for part in lap.parts))
    rows = {
        part: [1000 * sum(lap.parts.get(part, 0) for lap in of(laps, n)) / steps[n] for n in names]
        for part in parts
    }
    rows = dict(sorted(rows.items(), key=lambda row: -max(row[1])))
    total = [1000 * sum(lap.cpu for lap in of(laps, n)) / steps[n] for n in names]
    network = [sum(row) for row in zip(*(rows[n] for n in NETWORK), strict=True)]
    rows["the rest"] = [t - sum(values) for t, *values in zip(total, *rows.values(), strict=True)]
    rows["a step"] = total
    rows["a step without the network"] = [t - n for t, n in zip(total, network, strict=True)]
    lines = ["| ms of CPU time | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for part, values in rows.items():
        lines.append(f"| {part} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return lines


def report(
    args: Any,
    trainings: list[Lap],
    variants: list[Lap],
    missing: dict[str, str],
    yardstick: str,
) -> str:
    """Return the report in Markdown.

    Args:
        args: the command line.
        trainings: laps of the first race.
        variants: laps of the second race, of the plain loop run otherwise.
        missing: trainings that could not be run, with the reason.
        yardstick: name of the plain loop.
    """
    rounds = {
        race: 1 + max(lap.round for lap in laps)
        for race, laps in (("trainings", trainings), ("variants", variants))
    }
    batch = args.train_batch_size
    return header("Training speed", args) + "\n".join(
        [
            f"U-Net of widths {args.block_out_channels} on RGB images of side "
            f"{args.resolution}, without classes, batches of {batch}; turns of {args.steps} "
            f"steps, {rounds['trainings']} and {rounds['variants']} rounds; median (quartiles) of "
            "the rounds.",
            "",
            "## Trainings",
            "",
            *speeds(trainings, yardstick, batch, missing),
            "",
            "## Where the time goes",
            "",
            *shares(trainings, yardstick),
            "",
            "## The plain loop, run otherwise",
            "",
            *speeds(variants, yardstick, batch, {}),
            "",
        ]
    )
