"""Signals are noted and agreed on; a second one, and what is no training, end at once."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fm_diffusers.training import faults, interrupts
from fm_diffusers.training.faults import Fault, with_others
from fm_diffusers.training.interrupts import ECHO, Interrupts, launcher, leave_to_main

ALONE = SimpleNamespace(num_processes=1)


def in_a_process(work):
    """Return how a process of its own ended that does some work: its code, or minus its signal."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except BaseException:
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("number", interrupts.SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_and_the_handlers_are_given_back(number, capfd):
    former = [signal.getsignal(n) for n in interrupts.SIGNALS]
    with Interrupts() as noted:
        assert noted.agreed(ALONE, 1) is None
        os.kill(os.getpid(), number)
        assert noted.agreed(ALONE, 2) == number
    assert [signal.getsignal(n) for n in interrupts.SIGNALS] == former
    assert f"{number.name}: the run ends after its step" in capfd.readouterr().err


def test_a_second_signal_ends_at_once_but_not_the_echo_of_the_first():
    def work():
        with Interrupts() as noted:
            for pause in (0.0, ECHO + 0.1):
                os.kill(os.getpid(), signal.SIGINT)  # of the terminal
                os.kill(os.getpid(), signal.SIGTERM)  # and of the launcher
                assert noted.agreed(ALONE, 1) == signal.SIGINT
                time.sleep(pause or ECHO + 0.1)
        return 1

    assert in_a_process(work) == -signal.SIGINT


def test_processes_end_after_the_same_step_and_ask_each_other_about_once_a_second(monkeypatch):
    """Two processes of a resumed run, 100 steps a second; the second is asked at step 9150."""
    now, asked = [0.0], []
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    ranks = [Interrupts(), Interrupts()]
    own = [[[0.0, 100.0]], [[0.0, 100.0]]]  # signal and pace, as each tells it

    def gather(tensor):
        own[rank] = tensor.tolist()
        asked.append(step)
        return torch.tensor(own[0] + own[1])

    told = SimpleNamespace(num_processes=2, device="cpu", gather=gather)
    ends = []
    for step in range(9001, 9400):
        now[0] += 0.01
        if step == 9150:
            ranks[1].signal = signal.SIGTERM
        own = [[[float(r.signal or 0), 100.0]] for r in ranks]
        ends = []
        for rank in (0, 1):  # noqa: B007
            ends.append(ranks[rank].agreed(told, step))
        if any(ends):
            break
    assert ends == [signal.SIGTERM] * 2
    assert 9150 <= step <= 9255 and len(set(asked)) <= 5


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["/usr/bin/python", "/venv/bin/accelerate", "launch", "train_mnist.py"], True),
        (["python", "-m", "accelerate.commands.launch", "train_mnist.py"], True),
        (["python3", "-m", "torch.distributed.run", "train_mnist.py"], True),
        (["/venv/bin/python", "/venv/bin/torchrun", "train_mnist.py"], True),
        (["-bash"], False),
        (["bash", "accelerate_all.sh"], False),
        ([], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_launcher_is_told_by_its_name(words, found, monkeypatch):
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: words)
    assert launcher() == (os.getppid() if found else None)


def test_a_run_whose_launcher_is_gone_ends_as_by_sigterm():
    with Interrupts() as noted:
        noted.parent = os.getppid()
        assert noted.agreed(ALONE, 1) is None
        noted.parent = os.getppid() + 1
        assert noted.agreed(ALONE, 2) == signal.SIGTERM


class Deadly(Dataset):
    """Samples of which one kills the worker that reads it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_dead_worker_of_the_loader_is_one_line():
    with pytest.raises(Fault, match="a worker that loads images has died.*: go on by") as told:
        with with_others("go on by: train"):
            list(DataLoader(Deadly(), 2, num_workers=1))
    assert len(str(told.value).splitlines()) == 1


def test_a_worker_that_died_while_it_handed_over_a_batch_is_the_same_line():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.close()
    with pytest.raises(Fault, match="a worker that loads images has died"), with_others("go on"):
        receiver.recv()
    with pytest.raises(FileNotFoundError), with_others("go on"):
        open("/no/such/file")


def test_workers_leave_ctrl_c_to_their_run():
    def work():
        with Interrupts():
            leave_to_main(0)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return 1

    assert in_a_process(work) == -signal.SIGTERM


def test_what_others_say_is_not_taken_for_the_end_of_a_process():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as told:
        with with_others("go on"):
            torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not isinstance(told.value, Fault)
    with pytest.raises(Fault, match="another process of the run has ended"), with_others("go on"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:123")


def test_a_signal_that_comes_while_an_error_is_read_is_the_same_line(monkeypatch):
    """The worker's end is told twice: by the pipe that breaks, and by a signal soon after."""
    read, late = faults.meaning_of, RuntimeError("DataLoader worker (pid 7) is killed by signal")

    def interrupted(error):
        if error is late:
            return read(error)
        raise late

    monkeypatch.setattr(faults, "meaning_of", interrupted)
    with pytest.raises(Fault, match="a worker that loads images has died"):
        with with_others("go on"):
            raise EOFError
