"""A training killed again and again ends as if nothing had happened (minutes: 42 starts)."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import LAUNCH_TWO
from safetensors.torch import load_file
from test_train_distributed import SCRIPT, assert_equal, state

pytest.importorskip("sklearn")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

FLAGS = (
    "--dataset_name digits --block_out_channels 8 16 --dropout 0.1 --random_flip "
    "--train_batch_size 64 --gradient_accumulation_steps 2 --logging_steps 10 "
    "--validation_steps 1000000 --checkpointing_steps 5 --checkpoints_total_limit 2 "
    "--resume_from_checkpoint latest"
)

pytestmark = pytest.mark.slow


def start(output, steps, processes):
    launcher = LAUNCH_TWO.split() if processes > 1 else []
    words = [*FLAGS.split(), "--max_train_steps", str(steps), "--output_dir", str(output)]
    log = (output.parent / "log.txt").open("a")
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPT), *words],
        stdout=log,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )


def wait(process, happened, limit=120):
    """Wait until something has happened or the process has ended."""
    end = time.monotonic() + limit
    while process.poll() is None and not happened():
        assert time.monotonic() < end, "the training hangs"
        time.sleep(0.0005)


def kill(process, one_rank):
    """Kill all processes of a run at once, or its second rank alone, which must end the others."""
    run = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    ranks = [one for one in run if one.cmdline()[1:3] == ["-u", str(SCRIPT)]]
    for one in ranks[1:] if one_rank and len(ranks) > 1 else run:
        one.kill()
    assert process.wait(timeout=120) != 0, "the run ended before it was killed"
    psutil.wait_procs(run, timeout=60)


def names(output, pattern):
    return {path.name for path in output.glob(pattern)}


def losses(output):
    events = event_accumulator.EventAccumulator(str(output / "logs" / "train"), {"scalars": 0})
    return {event.step: event.value for event in events.Reload().Scalars("loss")}


@pytest.mark.parametrize(("processes", "kills", "steps"), [(1, 30, 1200), (2, 12, 480)])
def test_a_run_killed_many_times_ends_bit_equal_to_an_undisturbed_one(
    processes, kills, steps, tmp_path
):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, steps, processes).wait(timeout=900) == 0
    chance, in_write, half_written = random.Random(0), 0, 0
    for number in range(kills):
        process, before = start(killed, steps, processes), names(killed, "checkpoint-*")
        if number % 3 == 0:  # at any moment, of the start as well
            time.sleep(chance.uniform(0, 10))
        else:
            wait(process, lambda: names(killed, "checkpoint-*") - before)  # noqa: B023
        if number % 3 == 1:
            time.sleep(chance.uniform(0, 1.5))
        elif number % 3 == 2:  # while a checkpoint is written
            wait(process, lambda: names(killed, "partial-[0-9]*"))
            time.sleep(chance.uniform(0, 0.02))
            in_write += 1
        kill(process, one_rank=number % 2)
        half_written += bool(names(killed, "partial-*"))
    assert in_write == kills // 3 and half_written > 0
    assert start(killed, steps, processes).wait(timeout=900) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "resumed from" in log
    assert processes > 1 or "Traceback" not in log  # the launcher tells of a lost rank by one

    last = f"checkpoint-{steps}"
    assert names(killed, "checkpoint-*") == {last, f"checkpoint-{steps - 5}"}
    assert_equal(state(killed / last), state(undisturbed / last))
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert_equal(load_file(killed / weights), load_file(undisturbed / weights))
    assert losses(killed) == losses(undisturbed) and len(losses(killed)) == steps // 5
