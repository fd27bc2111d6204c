"""The benchmarks run, and their tables hold what was measured."""

import csv

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.paths import Linear

for package in ("flow_matching", "torchdiffeq", "matplotlib"):
    pytest.importorskip(package, reason=f"the benchmarks need {package}: pip install .[bench]")


def test_samplers_on_exact_fields(tmp_path):
    from benchmarks.samplers import ode

    arguments = {"problems": ["modes"], "paths": ["linear", "cosine"], "budgets": [4, 10]}
    rows = ode.main(
        ode.Arguments(
            output_dir=str(tmp_path),
            num_samples=8,
            calibration_samples=8,
            peers=["UniPC-2"],
            cache=str(tmp_path),
            **arguments,
        )
    )
    with open(tmp_path / "ode.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert "## eight modes in the plane, cosine path: median" in (tmp_path / "ode.md").read_text()
    assert (tmp_path / "ode.png").stat().st_size > 10_000
    # the path does not matter
    found = {(r.path, r.method, r.grid, r.nfe): r.median for r in rows}
    for (path, method, grid, nfe), median in found.items():
        if path == "cosine":
            assert median == pytest.approx(found["linear", method, grid, nfe], rel=1e-3)


def test_half_precision_outputs_leave_a_thousandth_on_images():
    """The state stays in float32; a peer keeps it in bfloat16."""
    from benchmarks.samplers.ode import errors
    from benchmarks.samplers.problems import PROBLEMS

    digits = PROBLEMS["images"](None, 0)
    velocity, noise = digits.field(Linear()), digits.start(16, seed=3)
    truth = digits.reference(noise)
    peer = FlowMatchEulerDiscreteScheduler()
    medians = []
    for scheduler, sign, x in (
        (GaussianFlowScheduler(), 1, noise.float()),
        (peer, -1, noise.bfloat16()),
    ):
        scheduler.set_timesteps(50)
        for t in scheduler.timesteps:
            output = sign * velocity(x.double(), 1 - t.double() / 1000)
            x = scheduler.step(output.bfloat16(), t, x, return_dict=False)[0]
        medians.append(errors(x.double(), truth)[1])
    assert medians[0] < 1e-3 and medians[1] > 20 * medians[0]


def test_the_time_of_a_step(tmp_path, monkeypatch):
    from benchmarks.step import cost

    monkeypatch.setattr(cost, "PEERS", {name: cost.PEERS[name] for name in ("DPM++ 2M", "DDIM")})
    rows = cost.main(
        cost.StepArguments(shapes=["2x4x8x8"], steps=3, repeats=2, output_dir=str(tmp_path))
    )
    graphs = {row["scheduler"]: row["graphs"] for row in rows}
    assert graphs["ours"] == "2 + 0"  # the first step and all others; none for a second run
    assert "fails" in graphs["DDIM"]
