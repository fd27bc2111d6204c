"""A training killed again and again ends as if nothing had happened (minutes: 30 starts)."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_train_distributed import assert_equal, state

pytest.importorskip("sklearn")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SCRIPT = Path(__file__).parents[1] / "examples" / "train_mnist.py"
STEPS, KILLS = 1200, 30
FLAGS = (
    "--dataset_name digits --block_out_channels 8 16 --dropout 0.1 --random_flip "
    "--train_batch_size 64 --gradient_accumulation_steps 2 --logging_steps 10 "
    f"--max_train_steps {STEPS} --validation_steps 1000000 --checkpointing_steps 5 "
    "--checkpoints_total_limit 2 --resume_from_checkpoint latest"
)

pytestmark = pytest.mark.slow


def start(output):
    command = [sys.executable, str(SCRIPT), *FLAGS.split(), "--output_dir", str(output)]
    log = (output.parent / "log.txt").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log)


def wait(process, happened, limit=120):
    """Wait until something has happened or the process has ended."""
    end = time.monotonic() + limit
    while process.poll() is None and not happened():
        assert time.monotonic() < end, "the training hangs"
        time.sleep(0.0005)


def names(output, pattern):
    return {path.name for path in output.glob(pattern)}


def losses(output):
    events = event_accumulator.EventAccumulator(str(output / "logs" / "train"), {"scalars": 0})
    return {event.step: event.value for event in events.Reload().Scalars("loss")}


def test_a_run_killed_thirty_times_ends_bit_equal_to_an_undisturbed_one(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait(timeout=900) == 0
    chance, in_write, half_written = random.Random(0), 0, 0
    for kill in range(KILLS):
        process, before = start(killed), names(killed, "checkpoint-*")
        if kill % 3:  # at any moment, of the start as well
            wait(process, lambda: names(killed, "checkpoint-*") - before)  # noqa: B023
            time.sleep(chance.uniform(0, 1.5))
        else:  # while a checkpoint is written
            wait(process, lambda: names(killed, "checkpoint-*") - before)  # noqa: B023
            wait(process, lambda: names(killed, "partial-[0-9]*"))
            time.sleep(chance.uniform(0, 0.02))
            in_write += 1
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
        half_written += bool(names(killed, "partial-*"))
    assert in_write == 10 and half_written > 0
    assert start(killed).wait(timeout=900) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "resumed from" in log and "Traceback" not in log

    last = f"checkpoint-{STEPS}"
    assert names(killed, "checkpoint-*") == {last, f"checkpoint-{STEPS - 5}"}
    assert_equal(state(killed / last), state(undisturbed / last))
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert_equal(load_file(killed / weights), load_file(undisturbed / weights))
    assert losses(killed) == losses(undisturbed) and len(losses(killed)) == STEPS // 5
