"""An output folder is written by one run, and can be written, or the run does not begin."""

import errno
import os
import signal

import pytest

from fm_diffusers.training import folders
from fm_diffusers.training.arguments import TrainingArguments, start


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


@pytest.mark.skipif(folders.fcntl is None, reason="there are no such locks here")
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
