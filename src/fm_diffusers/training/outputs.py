r"""What a script finds out before its work: that its numbers and its file will do.

Each error names the flag and its value.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

#: Endings of files of a picture, and of a picture that moves, that Pillow writes.
STILL = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf")
MOVING = (".gif", ".webp", ".png")


def check_least(args: Any, least: int, *names: str) -> None:
    """Raise a `ValueError` for a number below `least`, alone or in a list; None is no number.

    Args:
        args: the arguments of a script.
        least: what they are to be at least.
        names: of the arguments.
    """
    for name in names:
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")


def check_file(file: str | Path, endings: Collection[str] = STILL) -> Path:
    """Return the file of `--output`, which can be written.

    Args:
        file: which may exist, and is then replaced.
        endings: those that can be written.

    Raises:
        ValueError: for a folder, another ending, or a place that cannot be written.

    Example:
        >>> check_file("picture.txt", [".png", ".gif"])
        Traceback (most recent call last):
        ...
        ValueError: --output picture.txt has the ending '.txt': choose one of .png, .gif
    """
    path = Path(file)
    if path.is_dir():
        raise ValueError(f"--output {file} is a folder: name a file, such as {path / 'a.png'}")
    if path.suffix.lower() not in endings:
        raise ValueError(
            f"--output {file} has the ending {path.suffix!r}: choose one of {', '.join(endings)}"
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"--output {file}: there is no folder {path.parent}, make it or choose another one"
        )
    try:
        if path.exists():
            path.open("r+b").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"--output {file} cannot be written ({error.strerror}): choose another one"
        ) from error
    return path
