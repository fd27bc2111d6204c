"""An output folder is written by one run, and can be written, or the run does not begin."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from fm_diffusers.training import folders
from fm_diffusers.training.arguments import TrainingArguments, start

LOCKS = pytest.mark.skipif(folders.fcntl is None, reason="there are no such locks here")


def begin(output):
    return start(TrainingArguments(output_dir=str(output), report_to="none"))


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_place_of_the_folder_is_found_before_the_training(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "out" if below else tmp_path / "file"
    with pytest.raises(ValueError, match=r"--output_dir .* cannot be written \(\w.*: choose an"):
        begin(output)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_read_only_is_found_before_the_training(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\)"):
        begin(tmp_path)


@LOCKS
def test_a_folder_is_held_until_its_process_ends_however_it_does(tmp_path):
    ready, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        folders.hold(tmp_path)
        os.write(go_on, b"1")
        signal.pause()
        os._exit(0)
    assert os.read(ready, 1) == b"1"
    (tmp_path / "partial-6").mkdir()
    with pytest.raises(
        ValueError, match=f"another run, process {child} on .*, writes to --output"
    ):
        begin(tmp_path)
    assert (tmp_path / "partial-6").is_dir()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    begin(tmp_path)
    begin(tmp_path)  # again in the same process


HOLD = """import sys
from pathlib import Path
from fm_diffusers.training import folders
folders.hold(Path(sys.argv[1]))
"""


def ended(output, last):
    """Return the status of a process that holds a folder, and ends by what it does last."""
    return subprocess.run([sys.executable, "-c", HOLD + last, str(output)]).returncode


@LOCKS
@pytest.mark.parametrize(
    ("last", "status", "left"),
    [
        ("pass", 0, []),
        ("sys.exit(143)", 143, []),
        ("1 / 0", 1, []),
        ("import os; os.kill(os.getpid(), 9)", -9, [folders.LOCK]),
    ],
)
def test_the_file_of_the_lock_goes_with_a_process_that_can_remove_it(last, status, left, tmp_path):
    assert ended(tmp_path, last) == status
    assert os.listdir(tmp_path) == left
    assert ended(tmp_path, "pass") == 0


@LOCKS
def test_a_child_does_not_remove_the_file_of_its_parent(tmp_path):
    last = "import os; os.fork() or sys.exit(); os.wait(); sys.exit(os.listdir(sys.argv[1]) == [])"
    assert ended(tmp_path, last) == 0


@LOCKS
def test_a_file_that_was_removed_between_opening_and_locking_is_no_lock(tmp_path, monkeypatch):
    """The run that held it ended in between: another one would find no file, and make its own."""
    lockf = folders.fcntl.lockf

    def late(*args):
        monkeypatch.setattr(folders.fcntl, "lockf", lockf)
        (tmp_path / folders.LOCK).unlink()
        lockf(*args)

    monkeypatch.setattr(folders.fcntl, "lockf", late)
    folders.hold(tmp_path)
    assert ended(tmp_path, "pass") == 1
    assert (tmp_path / folders.LOCK).exists()
