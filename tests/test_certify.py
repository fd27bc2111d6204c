"""Certificates of schedulers: right ones pass, wrong ones do not, and others are told of."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fm_diffusers.certify import Driven, Judge, certify, passes
from fm_diffusers.certify.__main__ import Arguments, main

COUNT, STEPS = 4000, [16, 32]
DPM = 'DPMSolverMultistepScheduler{"use_flow_sigmas": true, "prediction_type": "flow_prediction"}'


class Doubled(FlowMatchEulerDiscreteScheduler):
    """Goes twice as far as it should."""

    def step(self, model_output, timestep, sample, **kwargs):
        return super().step(2 * model_output, timestep, sample, **kwargs)


@pytest.fixture(scope="module")
def judge():
    return Judge(COUNT, seed=0)


def rows_of(spec, judge, steps=STEPS, step_kwargs=None, **network):
    return certify(Driven(spec, network, step_kwargs or {}), judge, steps)


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
    rows = rows_of(spec, judge)
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
    assert not rows_of(spec, judge)[-1].passed


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
    args = Arguments(schedulers, steps=[16], num_samples=COUNT, output=str(output))
    assert main(args) == code
    shown = capsys.readouterr()
    rows = json.loads(output.read_text())["rows"]
    assert [f"| {row['scheduler']} | 16 |" in shown.out for row in rows] == [True] * len(rows)
    assert (code == 2) == ("cannot be driven" in shown.err)
