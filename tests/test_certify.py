"""Certificates of schedulers: right ones pass, wrong ones do not, and others are told of."""

import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fm_diffusers.certify import Driven, Judge, certify, least_samples, passes, warn_once
from fm_diffusers.certify.__main__ import main
from fm_diffusers.certify.arguments import Arguments, Parser

COUNT, STEPS = 4000, [16, 32]
WIDE = 0.045  # the least tolerance, to three digits, that so few samples decide
DPM = 'DPMSolverMultistepScheduler{"use_flow_sigmas": true, "prediction_type": "flow_prediction"}'


class Doubled(FlowMatchEulerDiscreteScheduler):
    """Goes twice as far as it should."""

    def step(self, model_output, timestep, sample, **kwargs):
        return super().step(2 * model_output, timestep, sample, **kwargs)


class Rising(FlowMatchEulerDiscreteScheduler):
    """Raises what its configuration says."""

    def step(self, model_output, timestep, sample, **kwargs):
        raise {3.0: RuntimeError("shapes"), 4.0: KeyError("sigma"), 5.0: SystemExit(0)}.get(
            self.shift, ZeroDivisionError("division by zero")
        )


@pytest.fixture(scope="module")
def judge():
    return Judge(COUNT, seed=0)


def rows_of(spec, judge, steps=STEPS, step_kwargs=None, tolerance=0.02, **network):
    return certify(Driven(spec, network, step_kwargs or {}), judge, steps, tolerance)


def small(*schedulers, **given):
    return main(Arguments([*schedulers], steps=[4, 8], num_samples=300, **given))


def test_what_passes_is_what_the_document_says():
    said = (Path(__file__).parents[1] / "docs/certificate.md").read_text()
    shown = re.search(r"([\d.]+) % for 20,000 samples; .* of a mean, ([\d.]+) %", said).groups()
    judge = SimpleNamespace(count=20_000, floor=(1.0, 1.0))
    right = {"width": 0.0, "mean": 0.0, "weights": 1.25, "distance": 1.25}
    assert passes(right, 0.02, judge)
    for name, bar in zip(("width", "mean"), shown, strict=True):
        assert passes(right | {name: (float(bar) - 0.05) / 100}, 0.02, judge)
        assert not passes(right | {name: (float(bar) + 0.05) / 100}, 0.02, judge)
    for name in ("weights", "distance"):
        assert not passes(right | {name: 1.26}, 0.02, judge)


@pytest.mark.parametrize(
    "spec",
    [
        "GaussianFlowScheduler",
        'GaussianFlowScheduler{"path": "cosine", "prediction_type": "epsilon"}',
        'GaussianFlowScheduler{"path": "cosine", "sampling_path": "noise_level"}',
        'GaussianFlowScheduler{"diffusion": "memoryless"}',
        'GaussianFlowScheduler{"diffusion": "constant", "path": "variance_preserving"}',
    ],
)
def test_ours_keep_the_distribution(spec, judge):
    rows = rows_of(spec, judge, tolerance=WIDE)
    assert [row.evaluations for row in rows] == STEPS
    assert rows[-1].passed, rows[-1]
    assert rows[-1].noisy == ("diffusion" in spec)


@pytest.mark.parametrize(
    ("spec", "order", "evaluations"),
    [
        ("FlowMatchEulerDiscreteScheduler", 1, 64),
        ("FlowMatchHeunDiscreteScheduler", 2, 127),
        (DPM, 2, 64),  # whose error does not fall after that: it cuts timesteps to integers
        ('GaussianFlowScheduler{"solver": "rk4", "grid": "uniform"}', 4, 256),
        ('DDIMScheduler{"clip_sample": false}', 1, 64),
        ("EDMEulerScheduler", 1, 64),
    ],
)
def test_orders_and_costs_are_those_of_the_methods(spec, order, evaluations, judge):
    row = rows_of(spec, judge, [16, 64])[-1]
    assert row.order == pytest.approx(order, abs=0.7)
    assert row.evaluations == evaluations


@pytest.mark.parametrize(
    "spec",
    [
        "test_certify:Doubled",
        'FlowMatchEulerDiscreteScheduler{"stochastic_sampling": true}',
        'DDIMScheduler{"clip_sample": true}',
    ],
)
def test_wrong_distributions_do_not_pass(spec, judge):
    assert rows_of(spec, judge)[-1].passed is False


def test_noise_in_step_kwargs_is_seen(judge):
    quiet, noisy = (
        rows_of('DDIMScheduler{"clip_sample": false}', judge, [16], {"eta": eta})[0]
        for eta in (0.0, 1.0)
    )
    assert (quiet.noisy, noisy.noisy) == (False, True)


def test_fresh_data_are_at_the_floor(judge):
    fresh = judge.data.sample(COUNT, torch.Generator().manual_seed(99))
    assert all(
        found <= 1.25 * floor for found, floor in zip(judge(fresh), judge.floor, strict=True)
    )
    assert judge(fresh + 0.3)[1] > 1.25 * judge.floor[1]


@pytest.mark.parametrize(
    ("schedulers", "code"),
    [
        (["GaussianFlowScheduler"], 0),
        (["GaussianFlowScheduler", "test_certify:Doubled"], 1),
        (["test_certify:Doubled", "NoSuchScheduler"], 2),
        (["LCMScheduler"], 2),
    ],
    ids=["right", "wrong", "unknown", "another"],
)
def test_the_exit_code_and_the_files_say_what_was_found(schedulers, code, tmp_path, capsys):
    output = tmp_path / "found.json"
    args = Arguments(schedulers, steps=[16], num_samples=COUNT, output=str(output), tolerance=WIDE)
    assert main(args) == code
    shown = capsys.readouterr()
    told = json.loads(output.read_text())
    rows = told["rows"]
    assert [f"| {row['scheduler']} | 16 |" in shown.out for row in rows] == [True] * len(rows)
    assert (code == 2) == ("cannot be driven" in shown.err)
    assert [fault in shown.err for fault in told["faults"]] == [True] * (code == 2)


# --- schedulers that fail ------------------------------------------------------------------------


def test_without_torchdiffeq_the_order_is_empty_and_that_is_said_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        small("GaussianFlowScheduler", "FlowMatchHeunDiscreteScheduler")
    assert ["torchdiffeq" in str(w.message) for w in told] == [True]
    shown = [line for line in capsys.readouterr().out.splitlines() if "| ODE |" in line]
    assert [line.split("|")[-3].strip() for line in shown] == [""] * 4


@pytest.mark.parametrize(
    ("shift", "cause"),
    [
        (3.0, "RuntimeError: shapes"),
        (4.0, "KeyError: 'sigma'"),
        (5.0, "SystemExit: 0"),
        (6.0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_scheduler_raises_is_said_and_the_others_go_on(shift, cause, capsys):
    spec = f'test_certify:{Rising.__name__}{{"shift": {shift}}}'
    assert small(spec, "FlowMatchEulerDiscreteScheduler") == 2
    shown = capsys.readouterr()
    assert f"{spec} cannot be driven: {cause}\n" in shown.err
    assert "| FlowMatchEulerDiscreteScheduler | 8 |" in shown.out


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("class Mine(:", "SyntaxError: "),
        ("import not_there_either", "ModuleNotFoundError: No module named 'not_there_either'"),
        ("from torch import not_there", "ImportError: cannot import name 'not_there'"),
        ("None.shape", "AttributeError: 'NoneType' object has no attribute 'shape'"),
        ("Other = 1", "there is no scheduler 'broken_module:Mine'"),
        (None, "there is no scheduler 'broken_module:Mine'"),
    ],
)
def test_a_module_that_fails_is_not_one_that_is_not_there(
    code, cause, tmp_path, monkeypatch, capsys
):
    if code is not None:
        (tmp_path / "broken_module.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    assert small("broken_module:Mine") == 2
    sys.modules.pop("broken_module", None)
    assert f"broken_module:Mine cannot be driven: {cause}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "given", "cause"),
    [
        ("GaussianFlowScheduler", {"network": '{"path": "cosine"}'}, '--network {"path": "cosine'),
        ("GaussianFlowScheduler", {"step_kwargs": '{"etta": 1}'}, "--step_kwargs has etta=1"),
        (DPM, {"step_kwargs": '{"etta": 1}'}, "--step_kwargs has etta=1"),
        (DPM, {"network": '{"solver": "heun"}'}, "--network has solver='heun'"),
        (DPM, {"network": '{"etta": 1}'}, "etta=1 is none of the arguments"),
        ("DDIMScheduler{bad", {}, "the configuration of DDIMScheduler must be an object in JSON"),
        ('GaussianFlowScheduler{"solver": "flow_map"}', {}, "a flow map needs a network of two"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(spec, given, cause, capsys):
    assert small(spec, **given) == 2
    assert f"{spec} cannot be driven: {cause}" in capsys.readouterr().err


def test_what_decides_the_network_is_taken():
    network = {"path": "linear", "prediction_type": "flow_prediction"}
    assert Driven("DDIMScheduler", network, {}).reads.config.path == "linear"


def test_keywords_that_our_step_reads_are_taken():
    spec, level = 'GaussianFlowScheduler{"diffusion": "constant"}', {"noise_level": 0.1}
    assert Driven(spec, {}, level).step_kwargs == level


# --- too few samples -----------------------------------------------------------------------------


def test_too_few_samples_do_not_pass_a_wrong_scheduler(capsys):
    few = {"steps": [4, 8], "num_samples": 20}
    assert main(Arguments(["FlowMatchEulerDiscreteScheduler"], **few)) == 3
    shown = capsys.readouterr()
    assert "| yes |" not in shown.out and "| undecided |" in shown.out
    assert "take --num_samples 20000" in shown.err
    both = ["FlowMatchEulerDiscreteScheduler", "test_certify:Doubled"]
    assert main(Arguments(both, **few)) == 1


def test_how_many_samples_decide():
    assert least_samples(Arguments().tolerance) == Arguments().num_samples
    right = {"width": 0.0, "mean": 0.0, "weights": 1.0, "distance": 1.0}
    for tolerance in (0.003, 0.01, 0.02, 0.1, 0.9):
        least = least_samples(tolerance)
        said = [
            passes(right, tolerance, SimpleNamespace(count=count, floor=(1.0, 1.0)))
            for count in (least - 1, least)
        ]
        assert said == [None, True]
    wrong = right | {"width": 0.9}
    assert passes(wrong, 0.02, SimpleNamespace(count=1000, floor=(1.0, 1.0))) is False


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network", "{bad"], "--network must be an object in JSON, got {bad"),
        (["--network", "[1]"], "--network must be an object in JSON, got [1]"),
        (["--step_kwargs", "{bad"], "--step_kwargs must be an object in JSON, got {bad"),
        (["--step_kwargs", '{"a": 1, "a": 2}'], "the key 'a' is there twice"),
        (["--step_kwargs", '{"generator": 1}'], "--step_kwargs has generator"),
        (["--num_samples", "0"], "--num_samples must be at least 2, got 0"),
        (["--num_samples", "-5"], "--num_samples must be at least 2, got -5"),
        (["--tolerance", "-1"], "--tolerance must lie between 0 and 1, got -1.0"),
        (["--tolerance", "nan"], "--tolerance must lie between 0 and 1, got nan"),
        (["--steps", "8", "8"], "--steps must be distinct numbers from 1 on, got 8 8"),
        (["--steps", "0"], "--steps must be distinct numbers from 1 on, got 0"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--x", "1"], "unrecognized arguments: --x 1"),
        (["--output", "nowhere/found.json"], "--output nowhere/found.json must lie in a folder"),
        (["--output", "."], "--output . must be a file, and is a folder"),
        (["--output", "a" * 300], "File name too long"),
        (["--output", "notes.json"], "--output notes.json holds something else"),
        (["--output", "notes.txt"], "--output notes.txt holds something else"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes.json").write_text('{"rows": 1}')
    Path("notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as left:
        Parser().read(words)
    line = capsys.readouterr().err
    assert left.value.code == 2
    assert line.startswith("certify: error: ") and line.count("\n") == 1 and said in line
    assert Path("notes.txt").read_text() == "mine"


def test_figures_are_written_anew_over_older_ones_and_empty_files(tmp_path):
    output = tmp_path / "found.json"
    output.touch()
    for seed in (1, 2):
        small("test_certify:Doubled", output=str(output), seed=seed)
        assert json.loads(output.read_text())["arguments"]["seed"] == seed


def test_figures_that_cannot_be_written_are_an_error_below_the_table(tmp_path, capsys):
    output = tmp_path / "found.json"
    output.symlink_to(tmp_path / "nowhere" / "found.json")
    assert small("test_certify:Doubled", output=str(output)) == 2
    shown = capsys.readouterr()
    assert "| test_certify:Doubled | 8 |" in shown.out
    assert f"certify: error: {output} could not be written" in shown.err


def test_help_says_what_is_run_and_every_default(capsys):
    with pytest.raises(SystemExit):
        Parser().read(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m fm_diffusers.certify ")
    assert "A certificate for schedulers" in shown
    for name, default in vars(Arguments()).items():
        flag = re.search(rf"^  --{name} (.|\n {{3}})*", shown, re.M)[0]
        assert f"(default: {default})" in " ".join(flag.split())
