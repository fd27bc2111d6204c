"""Every line of the table of inference features runs, on the networks that stand beside it."""

import csv
import re
import shutil
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
import torch
from test_inference_precision import PIPES
from test_pipeline import CLASSES, assert_same, draw
from test_pipeline_latent import make_pipe as make_latent_pipe
from test_pipeline_transformer import make_pipe, make_transformer
from tiny_networks import vae
from torch._dynamo.testing import CompileCounter

from fm_diffusers import GaussianFlowScheduler

DOCUMENT = (Path(__file__).parents[1] / "docs/inference.md").read_text()
STEPS = 6
NETWORKS = PIPES | {
    "labels": lambda: make_pipe(make_transformer(num_layers=3), CLASSES),
    "latent": lambda: make_latent_pipe(vae().eval()),
}
#: Words of the document for the pipelines of tests.
WORDS = {
    "DiT": ["labels"],
    "U-Net": ["unet", "unconditional"],
    "text U-Net": ["text"],
    "vae": ["latent"],
}


def rows():
    """Return the rows with a line of code: feature, networks, code and effect."""
    table = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    found = [row for row in cells if len(row) == 4 and row[2].startswith("`")]
    return [(a, n, code.strip("`").replace(r"\|", "|"), effect) for a, n, code, effect in found]


LINES = [
    (feature, name, code, effect)
    for feature, networks, code, effect in rows()
    for word in networks.split(", ")
    for name in WORDS[word]
]
PROCESSES = {"ode": None, "sde": "memoryless"}
#: One line after the other as an ODE and as an SDE.
CASES = {
    f"{feature}-{name}-{process}": (name, code, effect, PROCESSES[process])
    for (feature, name, code, effect), process in zip(LINES, cycle(PROCESSES), strict=False)
}
#: Tracing a whole network takes seconds.
MARKED = [
    pytest.param(case, marks=pytest.mark.slow) if case.startswith("compiled-") else case
    for case in CASES
]


def sample(pipe, name):
    asked = {"num_inference_steps": STEPS}
    if name == "text":
        return draw(pipe, prompt=["a seven", "dark"], guidance_scale=2.0, **asked)
    if name == "unconditional":
        return draw(pipe, batch_size=2, **asked)
    return draw(pipe, [0, 1], guidance_scale=2.0, **asked)


def pipe_of(name, diffusion):
    pipe = NETWORKS[name]()
    pipe.scheduler = GaussianFlowScheduler(diffusion=diffusion)
    return pipe


@cache
def plain(name, diffusion):
    """Return what a pipeline, whose weights are always the same, draws without a line."""
    return sample(pipe_of(name, diffusion), name)


def run(code, pipe, tmp_path):
    """Run the head of the document and a line of its table."""
    (head,) = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.S)
    names = {"pipe": pipe, "steps": STEPS, "ratios": [0.99] * STEPS, "folder": str(tmp_path)}
    names["device"] = torch.device("cpu")
    exec(head + "\n" + code, names)


@pytest.mark.parametrize("case", MARKED)
def test_a_line_of_the_table_runs_and_does_what_it_says(case, tmp_path):
    name, code, effect, diffusion = CASES[case]
    pipe = pipe_of(name, diffusion)
    if ".compile" in code:
        code = re.sub(r"(compile\w*\()", r'\1backend="eager"', code)  # the graph, without its code
        torch.compiler.reset()
    run(code, pipe, tmp_path)
    found = sample(pipe, name)
    if effect.startswith("the same images"):
        assert_same(found, plain(name, diffusion))
    else:
        before = plain(name, diffusion)
        assert found.isfinite().all() and not torch.allclose(found, before, atol=1e-5)
    assert torch.equal(sample(pipe, name), found)


def test_the_table_is_whole():
    features = {feature for feature, *_ in rows()}
    assert len(features) >= 15 and {name for name, *_ in CASES.values()} == set(NETWORKS)


def in_two(code):
    """Write patterns that are joined by a bar, which would end a cell of the table, one by one."""
    return re.sub(r'r"([^"]*)\((\w+)\|(\w+)\)"', r'r"\1\2", r"\1\3"', code)


def test_no_line_has_a_bar_which_the_site_would_show_behind_a_backslash():
    assert [code for _, _, code, _ in rows() if "|" in code] == []


def measured(model):
    """Return the rows of the benchmark of a model, by process and feature."""
    with open(Path(__file__).parents[1] / "benchmarks/results/inference.csv", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["model"] == model]
    return {(row["process"], row["feature"]): row for row in found}


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_the_figures_of_the_document_are_those_of_the_table(model):
    from benchmarks.inference.features import FEATURES

    cells = {code.replace(" ", ""): effect for _, _, code, effect in rows()}
    table, missing = measured(model), []
    plain = table["ODE", "plain"]
    for (process, feature), row in table.items():
        if feature.startswith("fewer"):
            assert row["change"] in DOCUMENT
        if process == "SDE" or feature not in FEATURES:
            continue
        line = in_two(FEATURES[feature][0]).replace(" ", "")
        line = line.replace("cache_interval=2", "cache_interval=4")  # share a cell
        if line not in cells:
            missing.append(feature)
            continue
        effect = cells[line]
        assert f"{row['seconds']} of {plain['seconds']} s" in effect
        if float(row["seconds"]) >= float(plain["seconds"]):
            assert "no faster" in effect or "slower" in effect
        if row["megabytes"] != plain["megabytes"]:
            assert f"{row['megabytes']} of {plain['megabytes']} MB" in effect
        if not effect.startswith("the same images"):
            assert row["change"] in effect
        assert row["evaluations"] in effect or row["evaluations"] == "40"
    assert missing == (["first block, 0.05"] if model == "dit" else [])


def test_no_time_of_the_document_is_in_no_table():
    known = set()
    for table in map(measured, ("dit", "unet")):
        plain = table["ODE", "plain"]["seconds"]
        known |= {f"{row['seconds']} of {plain} s" for row in table.values()}
    assert {*re.findall(r"[\d.]+ of [\d.]+ s\b", DOCUMENT)} <= known


def test_the_figures_of_sdes_and_of_autoencoders_are_those_of_the_table():
    dit, decoding = measured("dit"), measured("autoencoder")
    for feature in ("TaylorSeer, every 4", "MagCache", "first block, 0.2"):
        assert dit["SDE", feature]["change"] in DOCUMENT
    skipped = dit["SDE", "first block, 0.2"]["evaluations"]
    assert f"{skipped} evaluations" in " ".join(DOCUMENT.split())
    slices, tiles, plain = (decoding["decode", name] for name in ("slices", "tiles", "plain"))
    assert f"{slices['megabytes']} of {plain['megabytes']} MB" in DOCUMENT
    assert f"at {tiles['megabytes']} MB, change {tiles['change']}" in DOCUMENT


@pytest.mark.slow  # the C++ compiler
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["labels", "unet", "text"])
def test_compiled_networks_draw_the_same_images(name):
    torch.compiler.reset()
    pipe = pipe_of(name, None)
    plain = sample(pipe, name)
    pipe.network.compile()
    assert_same(sample(pipe, name), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "unet", "text"])
def test_a_loop_compiles_a_network_once(name):
    torch.compiler.reset()
    pipe, counter = pipe_of(name, None), CompileCounter()
    pipe.network.compile(backend=counter)
    sample(pipe, name)
    graphs = counter.frame_count
    sample(pipe, name)
    assert counter.frame_count == graphs


def test_attention_backends_reach_none_of_these_networks():
    """Which is why the table sends to torch's own choice of kernels."""
    for name in ("labels", "unet", "text"):
        network = NETWORKS[name]().network
        processors = [m.processor for m in network.modules() if hasattr(m, "processor")]
        assert processors
        assert not any(hasattr(processor, "_attention_backend") for processor in processors)


def test_a_dit_is_offloaded_by_leaves_only():
    pipe = NETWORKS["labels"]()
    with pytest.raises(ValueError, match="does not support group offloading"):
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


class Int8Linear(torch.nn.Module):
    """A linear layer whose weights are stored in eight bits, a scale for each output."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@torch.no_grad()
@pytest.mark.parametrize("name", ["labels", "unet", "text"])
def test_a_quantised_network_is_the_one_with_rounded_weights(name):
    pipe, rounded = NETWORKS[name](), NETWORKS[name]()
    for path, layer in [*rounded.network.named_modules()]:
        if isinstance(layer, torch.nn.Linear):
            quantised = Int8Linear(layer)
            layer.weight.copy_(quantised.weight * quantised.scale)
            parent, _, child = path.rpartition(".")
            setattr(pipe.network.get_submodule(parent), child, quantised)
    found = sample(pipe, name)
    assert_same(found, sample(rounded, name))
    assert not torch.allclose(found, sample(NETWORKS[name](), name), atol=1e-5)


def test_the_table_is_written_from_what_is_measured(tmp_path):
    from benchmarks.inference.features import FIELDS, FeatureArguments, main

    NETWORKS["labels"]().save_pretrained(tmp_path / "dit")
    rows = main(
        FeatureArguments(
            models=[str(tmp_path / "dit")],
            steps=STEPS,
            num_samples=2,
            features=["MagCache", "TaylorSeer, every 2", "channels last"],
            repeats=1,
            autoencoder=False,
            output_dir=str(tmp_path),
        )
    )
    with open(tmp_path / "inference.csv", newline="") as file:
        table = [*csv.DictReader(file)]
    assert [*table[0]] == [*FIELDS] and len(table) == len(rows) == 2 * 4 + 3
    found = {(row["process"], row["feature"]): row for row in rows}
    for process in ("ODE", "SDE"):
        assert found[process, "plain"]["change"] == 0
        assert found[process, "TaylorSeer, every 2"]["evaluations"] < STEPS
        assert found[process, "channels last"]["evaluations"] == STEPS
        assert found[process, "channels last"]["change"] < 1e-5
