"""Trainings under a launcher, of which one process is killed or asked to end (minutes)."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from processes import LAUNCH_ONE, LAUNCH_TWO
from test_train_distributed import SCRIPT
from test_train_killed import wait

from fm_diffusers.training.checkpoints import Checkpoints
from fm_diffusers.training.manifests import damage

pytest.importorskip("sklearn")
FLAGS = (
    "--dataset_name digits --block_out_channels 8 16 --train_batch_size 32 --report_to none "
    "--lr_scheduler constant --max_train_steps 100000 --checkpointing_steps 7 "
    "--checkpoints_total_limit 2"
)
LAUNCH = {
    0: "",
    1: LAUNCH_ONE,
    2: LAUNCH_TWO,
}
pytestmark = pytest.mark.slow


def start(output, processes):
    words = [*LAUNCH[processes].split(), str(SCRIPT), *FLAGS.split(), "--output_dir", str(output)]
    log = (output.parent / "log.txt").open("w")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment)


def ranks_of(process):
    run = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return run, [one for one in run if str(SCRIPT) in one.cmdline()[1:3]]


@pytest.mark.parametrize(
    ("processes", "whom", "number", "said"),
    [
        (0, "rank", signal.SIGINT, "stopped by SIGINT"),
        (0, "rank", signal.SIGTERM, "stopped by SIGTERM"),
        (1, "launcher", signal.SIGTERM, "stopped by SIGTERM"),
        (1, "launcher", signal.SIGKILL, "stopped by SIGTERM"),
        (2, "launcher", signal.SIGTERM, "stopped by SIGTERM"),
        (2, "launcher", signal.SIGINT, "stopped by SIGINT"),
        (2, "launcher", signal.SIGKILL, "stopped by SIGTERM"),
        (2, "rank", signal.SIGTERM, "stopped by SIGTERM"),
        (2, "rank", signal.SIGKILL, "another process of the run has ended"),
    ],
)
def test_all_processes_end_and_the_last_checkpoint_is_whole(
    processes, whom, number, said, tmp_path
):
    output = tmp_path / "out"
    process = start(output, processes)
    checkpoints = Checkpoints(output)
    wait(process, lambda: len(checkpoints.all()) == 2)
    run, ranks = ranks_of(process)
    assert len(ranks) == max(1, processes)
    {"launcher": process, "rank": ranks[-1]}[whom].send_signal(number)
    code = process.wait(timeout=120)
    assert psutil.wait_procs(run[1:], timeout=60)[1] == []
    log = (tmp_path / "log.txt").read_text()
    assert code != 0 and (processes > 0 or code == 128 + number)
    assert said in log, log[-3000:]
    assert [damage(path) for path in checkpoints.all()] == [None] * len(checkpoints.all())
    last = int(checkpoints.all()[-1].name.partition("-")[2])
    if "stopped" in said:
        assert re.findall(r"after step (\d+): accelerate launch", log)[-1] == str(last)
    assert not list(output.glob("partial-[0-9]*")) or number == signal.SIGKILL
