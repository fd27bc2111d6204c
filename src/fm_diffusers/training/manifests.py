r"""What a checkpoint holds: `manifest.json`, written last, has the size and hash of every file.

So a disk's damage is seen before anything is read. Whoever can write a checkpoint can write a
manifest too, so against programs in one from elsewhere there is `check_harmless`: what is read is
safetensors, JSON, and two files of `torch.save` that hold nothing but numbers.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from fm_diffusers.files import read_json
from fm_diffusers.training.faults import line

MANIFEST = "manifest.json"
#: Of the layout of a checkpoint: 1 kept states as pickles.
FORMAT = 2
#: Files that are pickles, or may be: of these only the optimizer and the scaler are written.
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
OWN_PICKLES = re.compile(r"optimizer\.bin|scaler\.pt")


def describe(folder: Path) -> dict[str, list[Any]]:
    """Return size and SHA-256 of every file but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): [path.stat().st_size, sha256(path)] for path in files}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def write_manifest(folder: Path, run: dict[str, Any]) -> None:
    """Write what the folder holds, for `damage` to compare."""
    content = {"format": FORMAT, "files": describe(folder), "run": run}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        ValueError: if it is missing, unreadable, or holds something else.
    """
    try:
        content = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise ValueError(f"its {MANIFEST} is missing or unreadable") from error
    if not isinstance(content, dict):
        raise ValueError(f"its {MANIFEST} is missing or unreadable")
    for name in ("files", "run"):
        if not isinstance(content.get(name), dict):
            raise ValueError(f"its {MANIFEST} has no {name!r}")
    if not content["files"]:
        raise ValueError(f"its {MANIFEST} names no file")
    return content


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if nothing is."""
    try:
        expected = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    present = describe(folder)
    missing = [name for name in expected if name not in present]
    changed = [name for name in expected if present.get(name, expected[name]) != expected[name]]
    faults = ["missing: " + ", ".join(missing)] * bool(missing)
    faults += ["changed: " + ", ".join(changed)] * bool(changed)
    return "; ".join(faults) or None


def check_harmless(folder: Path) -> None:
    """Raise a `ValueError` if a checkpoint may hold a program, before anything of it is read."""
    if read_manifest(folder).get("format") != FORMAT:
        raise ValueError(
            f"{folder} was written by an earlier version of fm_diffusers, as pickles, which are "
            "programs that reading would run: end that run with the version that began it, or "
            "train what it has saved further, with --init_from and another --output_dir"
        )
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICKLES):
        try:
            if not OWN_PICKLES.fullmatch(str(file.relative_to(folder))):
                raise ValueError("no checkpoint of ours has a file of that name")
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever comes of a file that is no state
            raise ValueError(
                f"{file} may hold a program, and is not read ({line(error)}): go on from a "
                "checkpoint of your own"
            ) from error
