"""Scripts end with one line where the message says all, and with a traceback where it does not."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from fm_diffusers.tables import look_up
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.faults import Fault, written


def a_fault():
    raise Fault("the disk is full")


def a_full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: look_up("path", {"linear": 1}, "linaer"), "unknown path 'linaer'"),
        (a_fault, "the disk is full"),
        (a_full_disk, "No space left on device: what was saved before is kept"),
    ],
    ids=["ours", "fault", "disk"],
)
def test_what_is_foreseen_is_one_line(wrong, told):
    with pytest.raises(SystemExit) as ended, plain_errors():
        wrong()
    assert told in ended.value.code and "error: " in ended.value.code
    assert len(ended.value.code.splitlines()) == 1


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda: torch.zeros(2).view("x"), Exception),
        (lambda: torch.optim.SGD([], lr=0.1), ValueError),
        (lambda: open("/no/such/file"), FileNotFoundError),
        (lambda: sum(1 for first, second in [(1,)]), ValueError),
    ],
    ids=["torch", "theirs", "file", "found by Python here"],
)
def test_what_is_not_keeps_its_traceback(wrong, kind):
    with pytest.raises(kind), plain_errors():
        wrong()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("[enforce fail at inline_container.cc:783] . unexpected pos 64 vs 0"),
    ],
    ids=["python", "safetensors", "torch, full", "torch, beyond a limit"],
)
def test_a_full_disk_is_one_fault_in_whatever_words(error, tmp_path):
    message = "part could not be written .* about 1,000 bytes are needed and .* free .*: mine"
    with pytest.raises(Fault, match=message), written(tmp_path / "part", 1000, "mine is kept"):
        (tmp_path / "part").mkdir()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes") as told, written(tmp_path / "p", 1, "mine"):
        raise RuntimeError("shapes do not match")
    assert not isinstance(told.value, Fault)


def test_debug_keeps_the_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_mnist.py", "--debug"])
    with pytest.raises(Fault), plain_errors():
        a_fault()
