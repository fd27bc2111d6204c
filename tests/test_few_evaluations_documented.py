"""The examples of docs/few_evaluations.md run as written, its figures are those of the table."""

import csv
import re
from pathlib import Path
from statistics import mean

import torch
from test_pipeline import make_unet

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import with_two_times

ROOT = Path(__file__).parents[1]
DOCUMENTS = [(ROOT / name).read_text() for name in ("README.md", "docs/few_evaluations.md")]


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = with_two_times(make_unet(11))
    pipe = FlowMatchingPipeline(network, GaussianFlowScheduler(solver="flow_map"), 10)
    pipe.save_pretrained("outputs/mnist-few-steps")
    names = {"network": network, "x": torch.randn(2, 1, 8, 8), "label": torch.tensor([3, 7])}
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENTS[1], flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "few_evaluations.md", "exec"), names)
    assert len(names["images"]) == len(names["sde"]) == len(names["ode"]) == 2


def test_the_figures_are_those_of_the_table():
    with (ROOT / "benchmarks/results/one_evaluation_mnist.csv").open() as file:
        rows = list(csv.DictReader(file))
    for method in {row["method"] for row in rows} - {"converged"}:
        for steps in ("1", "2", "4"):
            found = [row for row in rows if (row["method"], row["evaluations"]) == (method, steps)]
            figure = f"{mean(float(row['frechet']) for row in found):.3f}".removeprefix("0")
            assert all(f" {figure} " in document for document in DOCUMENTS)
