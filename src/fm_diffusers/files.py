"""Files that somebody else may have written: read within bounds, or refused by name.

A folder from the Hub holds what its author put there. Whatever it says, reading it ends soon, in
little memory, and runs none of its code; what cannot be meant raises one line that names the file.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The most that a file of JSON may hold: room for a million betas, in bytes, and how deep.
MOST_BYTES, MOST_LEVELS = 32 * 2**20, 32
#: How much of another library's message is shown.
SHOWN = 400
#: What is no fault of what was read, or says of itself what is wrong.
CLEAR = (OSError, ImportError)
WAY_OUT = "take the file from where it came once more, or write it anew"


def read_json(file: str | Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return what a file of JSON holds, a dictionary.

    Args:
        file: the file.
        most: how many bytes it may have.

    Raises:
        ValueError: for what is no JSON or no dictionary, or is too large or nested too deeply.
        OSError: for what is no file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.json").write_text('{"steps": 3}')
        ...     read_json(Path(folder, "a.json"))
        {'steps': 3}
    """
    size = Path(file).stat().st_size
    if size > most:
        raise ValueError(f"{file} must have at most {most} bytes, got {size}: {WAY_OUT}")
    try:
        found = json.loads(Path(file).read_bytes().decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no valid JSON, {shortened(error)}: {WAY_OUT}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} must hold a dictionary, got {shortened(repr(found), 60)}: {WAY_OUT}"
        )
    if levels(found) > MOST_LEVELS:
        raise ValueError(f"{file} is nested deeper than {MOST_LEVELS} levels: {WAY_OUT}")
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dictionary of pairs, none of which may be lost.

    Raises:
        ValueError: for a key that is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def levels(value: Any) -> int:
    """Return how deep dictionaries and lists are nested.

    Example:
        >>> levels(3), levels({"a": []}), levels([[1], {"b": [2]}])
        (0, 2, 3)
    """
    depth, layer = 0, [value]
    while layer := [part for part in layer if isinstance(part, dict | list)]:
        depth += 1
        layer = [x for part in layer for x in (part.values() if type(part) is dict else part)]
    return depth


def shortened(message: Any, length: int = SHOWN) -> str:
    """Return a message on one line, cut where it is long."""
    text = textwrap.shorten(str(message)[: 4 * length], length, placeholder=" ...")
    return text if text != " ..." else str(message)[:length]


@contextmanager
def reading(place: Any, way_out: str = WAY_OUT) -> Iterator[None]:
    """Say of what goes wrong while something is read that it is what was read.

    Args:
        place: what is read.
        way_out: what to do about it.

    Raises:
        ValueError: for every error but those that say so themselves; a `ValueError` that names the
            place stays as it is.
    """
    try:
        yield
    except CLEAR:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        if isinstance(error, ValueError):
            raise ValueError(f"{place} cannot be read: {shortened(error)}") from error
        raise ValueError(
            f"{place} cannot be read, {type(error).__name__}: {shortened(error)}; {way_out}"
        ) from error
