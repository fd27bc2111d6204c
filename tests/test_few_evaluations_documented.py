"""The figures of docs/few_evaluations.md are those of the table."""

import csv
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/few_evaluations.md").read_text()


def test_the_figures_are_those_of_the_table():
    with (ROOT / "benchmarks/results/one_evaluation_mnist.csv").open() as file:
        rows = list(csv.DictReader(file))
    for guidance, method in {(row["guidance"], row["method"]) for row in rows}:
        kind = [row for row in rows if (row["guidance"], row["method"]) == (guidance, method)]
        for steps in {row["evaluations"] for row in kind}:
            found = [float(row["frechet"]) for row in kind if row["evaluations"] == steps]
            assert f" {mean(found):.3f}".replace(" 0.", " .") in DOCUMENT
