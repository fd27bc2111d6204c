"""The figures of docs/few_evaluations.md are those of the table."""

import csv
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/few_evaluations.md").read_text()


def test_the_figures_are_those_of_the_table():
    with (ROOT / "benchmarks/results/one_evaluation_mnist.csv").open() as file:
        rows = list(csv.DictReader(file))
    for method in {row["method"] for row in rows} - {"converged"}:
        for steps in ("1", "2", "4"):
            found = [row for row in rows if (row["method"], row["evaluations"]) == (method, steps)]
            figure = f"{mean(float(row['frechet']) for row in found):.3f}".removeprefix("0")
            assert f" {figure} " in DOCUMENT
