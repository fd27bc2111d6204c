r"""What ends a run from outside: a full disk, a lost process, a Hub that does not answer.

A fault says in one line what has happened, what is kept and how to go on. `command_line.run`
prints it so; errors that nobody has foreseen keep their traceback.
"""

import errno
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

#: Errors of a disk that takes no more: full, beyond the quota, beyond the limit, read-only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
#: What an error of torch says of the end of another process, and what that means.
LOST = (
    (
        re.compile(
            r"DataLoader worker .*(exited|killed)|"
            r"(ConnectionReset|ConnectionRefused|BrokenPipe|FileNotFound|EOF)Error.* in multiproc"
        ),
        "a worker that loads images has died, perhaps for want of memory: choose fewer "
        "--dataloader_num_workers or a smaller --train_batch_size",
    ),
    (
        re.compile(r"gloo/|NCCL|Dist(Backend|Network|Store)?Error|closed by peer"),
        "another process of the run has ended",
    ),
)


class Fault(RuntimeError):
    """The end of a run that is no mistake of its arguments; the message is one line."""


def line(error: BaseException) -> str:
    """Return the kind and the first line of an error."""
    told = str(error).strip().splitlines()
    return f"{type(error).__name__}: {told[0] if told else ''}".rstrip(": ")


def is_of_writing(error: BaseException, folder: Path, needed: int) -> bool:
    """Return whether a file could not be written: torch and safetensors say so in their ways."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, OSError | SafetensorError)
    own = re.search("inline_container|PytorchStream|iostream|cannot be opened", str(error))
    return own is not None or shutil.disk_usage(folder).free < needed


def room(folder: Path, needed: int) -> str:
    """Say how many bytes are free where a folder is, and how many are needed."""
    free = shutil.disk_usage(folder).free
    return f"about {needed:,} bytes are needed and {free:,} are free"


@contextmanager
def written(
    folder: Path, needed: int, kept: str, accelerator: Accelerator | None = None
) -> Iterator[None]:
    """Write a folder whole, or remove it: with an Accelerator on all processes together.

    Args:
        folder: what is written in the `with` block.
        needed: bytes.
        kept: what the message says of what is there besides.
        accelerator: whose processes all write.

    Raises:
        Fault: if it could not be written by any of the processes.
    """
    fault = None
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, Fault) or not is_of_writing(error, folder.parent, needed):
            raise
        fault = error
    failed = fault is not None
    if accelerator is not None:  # all go on together, or end together
        told = accelerator.gather(torch.tensor([float(failed)], device=accelerator.device))
        failed = bool(told.any())
    if not failed:
        return
    said = "another process" if fault is None else line(fault)
    message = f"{folder.name} could not be written ({said}), {room(folder.parent, needed)} in "
    message += f"{folder.parent}: {kept}"
    if accelerator is None or accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    raise Fault(message) from fault


@contextmanager
def with_others(kept: str) -> Iterator[None]:
    """Turn what is raised in the `with` block where another process has died into a `Fault`.

    Args:
        kept: what the message says of what is there.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        try:
            what = meaning_of(error)
        except RuntimeError as signal:  # of the dead worker, which may come late
            error, what = signal, meaning_of(signal)
        if what is None or isinstance(error, Fault):
            raise
        raise Fault(f"{what} ({line(error)}): {kept}") from error


def meaning_of(error: BaseException) -> str | None:
    """Return what an error says of the end of another process, None for other errors."""
    place = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent.name
    told = f"{type(error).__name__}: {error} in {place}"
    return next((meaning for words, meaning in LOST if words.search(told)), None)
