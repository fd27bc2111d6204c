"""Many steps: time and memory of plans and of runs grow no faster than their number."""

import gc
import tracemalloc

import pytest
import torch
from test_train_mnist import TINY, script, train  # noqa: F401

from fm_diffusers import SOLVERS, GaussianFlowScheduler

pytestmark = pytest.mark.slow
NOISY = {"ODE": None, "SDE": "memoryless"}


def plan(steps, **config):
    scheduler = GaussianFlowScheduler(**config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("diffusion", NOISY.values(), ids=NOISY)
@pytest.mark.parametrize("solver", SOLVERS)
def test_ten_thousand_steps_are_planned_in_memory_that_grows_with_their_number(solver, diffusion):
    peaks = []
    for steps in (1000, 10_000):
        gc.collect()
        tracemalloc.start()
        timesteps = plan(steps, solver=solver, diffusion=diffusion).timesteps
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(timesteps) >= steps
    assert peaks[1] < 15 * peaks[0] + 2**20
    assert peaks[1] < 2**28


@pytest.mark.parametrize(
    ("steps", "config"),
    [
        (10_000, {}),
        (10_000, {"diffusion": "memoryless"}),
        (2000, {"diffusion": "memoryless", "noise": "brownian"}),
    ],
    ids=["ODE", "SDE", "Brownian"],
)
def test_memory_is_flat_over_thousands_of_steps_of_sampling(steps, config):
    if config.get("noise"):
        pytest.importorskip("torchsde")
    scheduler = plan(steps, **config)
    x, generator, held = torch.zeros(2, 1, 2, 2), torch.Generator().manual_seed(0), {}
    tracemalloc.start()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(-x, t, x, generator=generator, return_dict=False)[0]
        if i in (steps // 10, steps - 100):
            gc.collect()
            held[i] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert x.isfinite().all()
    early, late = held.values()
    assert late - early < 2**18


def test_memory_is_flat_over_ten_thousand_steps_of_training(train):  # noqa: F811
    held = []

    def look(stage):
        gc.collect()
        held.append((stage, tracemalloc.get_traced_memory()[0]))

    tracemalloc.start()
    for steps in (1000, 10_000):
        resumed = {"resume_from_checkpoint": "latest"} if held else {}
        small = {"train_batch_size": 8, "block_out_channels": [8, 8], "logging_steps": 100}
        small["lr_scheduler"] = "constant_with_warmup"
        train(**TINY | small, max_train_steps=steps, **resumed)
        look(steps)
    tracemalloc.stop()
    assert held[1][1] - held[0][1] < 2**22
