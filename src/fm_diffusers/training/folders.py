r"""The output folder of a run: it can be written, and no other run writes to it.

Both are found out before the training. The folder is held by a lock of the operating system on a
file in it, which goes with the process that has it, however that ends. A worker that outlives it
does not hold the lock, and the same process may run again. The file itself stays only after a
process that was killed, and does no harm then.
"""

import atexit
import os
import socket
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows two runs are not told apart
    fcntl = None  # type: ignore[assignment]  # Windows has none

#: Is locked as long as a run is alive, and says which one that is.
LOCK = ".run.lock"


def make(folder: Path, flag: str = "--output_dir") -> None:
    """Make the folder of a flag, and raise a `ValueError` if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        raise ValueError(
            f"{flag} {folder} cannot be written ({error.strerror}): choose another one"
        ) from error


def of_results(model: str, output_dir: str | None) -> Path:
    """Return the folder of what is found out about a model: beside it, or another, which is made.

    Raises:
        ValueError: for a model of the Hub, which has no folder here, or a folder that cannot be
            written.
    """
    if output_dir is None and not Path(model).is_dir():
        raise ValueError(f"{model!r} is no folder: say by --output_dir where the results go")
    folder = Path(output_dir or model)
    make(folder)
    return folder


def hold(folder: Path) -> None:
    """Hold a folder until this process ends.

    Raises:
        ValueError: if another process holds it.
    """
    if fcntl is None:
        return
    file = folder.absolute() / LOCK
    # closed by the end of the process: any earlier closing would give the lock back
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
        os.close(lock)
        raise ValueError(
            f"another run, {holder or 'of another process'}, writes to --output_dir {folder}: "
            "wait for it, or choose another one"
        ) from error
    if not _is(file, lock):  # the run that held it ended, and removed it, in between
        os.close(lock)
        return hold(folder)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    atexit.register(_remove, file, lock, os.getpid())


def _is(file: Path, lock: int) -> bool:
    """Whether a file is still the one that is open."""
    try:
        return os.path.samestat(file.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _remove(file: Path, lock: int, process: int) -> None:
    """Remove the file while it is locked, so that nobody else can hold it; not in a child."""
    if os.getpid() == process and _is(file, lock):
        file.unlink()
