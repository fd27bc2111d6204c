"""Every table of the benchmarks has a command that gives it anew, and a page that quotes it."""

import csv
import importlib
import json
import re
import shlex
import sys
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
from transformers import HfArgumentParser

from benchmarks import __main__ as bench
from benchmarks.parts import NEEDS, PARTS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
MODULES = [name for name, part in PARTS.items() if part.command.startswith("-m ")]
#: What gives its picture from the table of another part has no table of its own.
TABLES = {
    name: part for name, part in PARTS.items() if f"benchmarks/results/{name}.md" in part.results
}


def read(name):
    return (ROOT / name).read_text()


def rows(name):
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def arguments(part):
    """Return the arguments of a part's command, as its module reads them."""
    told = {"mnist": "ylecun/mnist", "out": "out"}
    _, module, *words = shlex.split(part.command.format(**told))
    found = importlib.import_module(module)
    (kind,) = (
        kind
        for kind in vars(found).values()
        if is_dataclass(kind) and kind.__module__ == module and kind.__doc__ == "Command line."
    )
    return HfArgumentParser(kind).parse_args_into_dataclasses(words)[0]


def test_every_result_is_given_by_one_part():
    given = [name for part in PARTS.values() for name in part.results]
    assert len(given) == len(set(given))
    assert [name for name in given if not (ROOT / name).exists()] == []
    kept = {f"benchmarks/results/{file.name}" for file in RESULTS.iterdir() if file.is_file()}
    assert kept == {name for name in given if name.startswith("benchmarks/")}


@pytest.mark.parametrize("name", PARTS)
def test_the_page_of_a_part_quotes_it(name):
    part = PARTS[name]
    files = [Path(result).name for result in part.results]
    assert any(file in read(part.page) for file in files)


@pytest.mark.parametrize("name", MODULES)
def test_the_command_of_a_part_is_the_one_above_its_table(name):
    for package in ("flow_matching", "torchdiffeq", "matplotlib"):
        pytest.importorskip(package, reason=f"the benchmarks need {package}: pip install .[bench]")
    from benchmarks.header import command

    told = command(arguments(PARTS[name]))
    assert told.startswith(f"python -m benchmarks.{PARTS[name].command.split()[1][11:]}")
    if name in TABLES:
        title, _, line, _, ran, *_ = read(f"benchmarks/results/{name}.md").splitlines()
        assert title.startswith("# ") and line == f"    {told}"
        assert re.match(r"fm_diffusers [\d.]+, .*commit \w{7,}\b.*; torch 2.*, diffusers 0", ran)


def test_a_head_names_no_folder_of_the_machine(tmp_path):
    from benchmarks.header import header
    from benchmarks.networks.sde import Arguments

    (tmp_path / "mine").mkdir()
    told = {"models": [str(tmp_path / "mine"), "outputs/digits"], "output_dir": str(tmp_path)}
    text = header("A title", Arguments(**told, num_samples=20))
    assert str(tmp_path) not in text
    assert (
        "    python -m benchmarks.networks.sde --models mine outputs/digits --num_samples=20\n"
        in text
    )


def test_scripts_of_the_examples_know_the_flags():
    known = {
        path.name: path.read_text() + "".join(p.read_text() for p in (ROOT / "src").rglob("*.py"))
        for path in (ROOT / "examples").glob("*.py")
    }
    for words in [*NEEDS.values(), *(part.command for part in PARTS.values())]:
        if found := re.match(r"examples/(\w+\.py)", words):
            for flag in re.findall(r" --(\w+)", words):
                assert f"{flag}: " in known[found[1]], (words, flag)
    assert {need for part in PARTS.values() for need in part.needs} == set(NEEDS)


def test_what_runs_unasked_is_quick_and_needs_no_training():
    plain, with_mnist = bench.chosen([], None), bench.chosen([], "ylecun/mnist")
    assert set(plain) < set(with_mnist)
    for name in with_mnist:
        assert PARTS[name].minutes <= bench.QUICK and not PARTS[name].needs
        assert name in plain or "{mnist}" in PARTS[name].command
    assert sum(PARTS[name].minutes for name in plain) <= 10
    assert sum(PARTS[name].minutes for name in with_mnist) <= 30  # as the Makefile says
    with pytest.raises(ValueError, match="parts must be of"):
        bench.chosen(["steps"], None)
    with pytest.raises(ValueError, match="pass --mnist ylecun/mnist"):
        bench.chosen(["ode"], None)


def test_what_a_part_needs_is_made_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, measured = bench.commands(PARTS["network_sde"], None, "out")
    assert made[1] == "examples/train_mnist.py" and made[-2:] == ["--output_dir", "outputs/digits"]
    assert measured[:3] == [sys.executable, "-m", "benchmarks.networks.sde"]
    Path("outputs/digits").mkdir(parents=True)
    assert bench.commands(PARTS["network_sde"], None, "out") == [measured]


# --- figures that a page quotes ------------------------------------------------------------------


def test_the_certificate_of_the_page_is_the_measured_one():
    table = [
        line for line in read("benchmarks/results/certificate.md").splitlines() if "|" in line
    ]
    assert len(table) == 2 + 2 * 19 + 1
    assert "\n".join(table) in read("docs/certificate.md")


@pytest.mark.parametrize(
    ("sampler", "key"),
    [("ours", ("ours", "memoryless")), ("DPM++ 2M SDE", ("DPM++2M SDE", "own"))],
)
def test_the_biases_of_the_page_are_the_measured_ones(sampler, key):
    for steps in ("8", "16", "32", "250"):
        (row,) = (
            row
            for row in rows("gaussian_sde")
            if (row["method"], row["diffusion"]) == key
            and (row["path"], row["strength"], row["steps"]) == ("linear", "1.0", steps)
        )
        (cells,) = re.findall(
            rf"^\| {steps} \| {re.escape(sampler)} \|(.*)\|$", read("docs/samplers.md"), flags=re.M
        )
        for cell, width in zip(cells.split("|"), ("0.1", "0.35", "0.5", "1", "2"), strict=True):
            shown = cell.strip(" *")
            digits = len(shown.partition(".")[2])
            assert round(100 * float(row[f"std {width}"]), digits) == pytest.approx(float(shown))


def test_the_readme_quotes_the_cards():
    cards = {
        name: json.loads(read(f"pretrained/{name}/evaluation.json"))
        for name in ("mnist", "mnist-mean-flow", "mnist-one-step")
    }

    def said(name, solver, steps, diffusion=None, guidance=1.0):
        key = (solver, diffusion, steps, guidance)
        names = ("solver", "diffusion", "num_inference_steps", "guidance_scale")
        (row,) = (r for r in cards[name]["rows"] if tuple(r[n] for n in names) == key)
        return f"{row['frechet_distance']:.3f}".lstrip("0")

    flow, mean_flow = (partial(said, name) for name in ("mnist", "mnist-mean-flow"))
    ode, sde = ("predictor_corrector", 20), ("predictor_corrector", 20, "memoryless")
    floors = {f"{card['real']['frechet_distance']:.3f}".lstrip("0") for card in cards.values()}
    text = " ".join(read("README.md").split())
    for words in (
        f"500 other test images have {floors.pop()})",
        f"the ODE has {flow(*ode)} in 20 steps, the SDE {flow(*sde)}",
        f"{mean_flow('flow_map', 1)} with one evaluation, {mean_flow('flow_map', 4)} with four, "
        f"{mean_flow(*ode)} along the ODE, {mean_flow(*sde)} along the SDE",
        f"{said('mnist-one-step', 'flow_map', 1, guidance=2.0)} with one evaluation, where its "
        f"teacher has {flow(*ode, guidance=2.0)} in 20 steps",
    ):
        assert words in text
    assert not floors


def test_the_sdes_of_a_network_are_as_measured():
    text = " ".join(read("docs/samplers.md").split())
    for method, said in {
        "ours, memoryless": "is {}, {} and {} at 8, 16 and 32 steps",
        "DPM++2M SDE": "that of DPM++ 2M SDE {}, {} and {}",
        "er_sde": "of `er_sde` {}, {} and {}",
    }.items():
        found = [
            fmean(
                float(row["frechet"])
                for row in rows("network_sde")
                if (row["method"], row["evaluations"]) == (method, steps)
            )
            for steps in ("8", "16", "32")
        ]
        assert said.format(*(f"{value:.3f}".lstrip("0") for value in found)) in text
