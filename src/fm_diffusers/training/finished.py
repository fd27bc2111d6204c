r"""What a finished run has left in its folder, so that no other run writes over it unasked.

A folder holds an outcome if it has the file that is written last with the weights: the index of a
pipeline, the weights of an adapter, the configuration of a model. `training.json`, which comes
after it, has the number of steps; a run that was killed between them is not finished.

What is trained is written aside and moved when all of it is there, see `saved_whole`: a disk that
is full leaves what was there before, and never a part.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from fm_diffusers.files import WAY_OUT, read_json
from fm_diffusers.pipelines.saved import is_plain
from fm_diffusers.training.faults import written

#: What a folder holds, by the file that says so.
OUTCOMES = {
    "model_index.json": "a trained pipeline",
    "pytorch_lora_weights.safetensors": "a trained adapter",
    "config.json": "a trained model",
}
RECORD = "training.json"
#: What is written beside the weights, and the part of a pipeline that is no component.
BESIDE = re.compile(
    r"README\.md|training\.json|evaluation\.(json|png)|samples(-\d+)?\.png|reconstructions\.png|"
    r"(pipeline|modular)_flow_matching\.py|modular_(config|model_index)\.json|"
    r"diffusion_pytorch_model.*"
)

#: What is written beside that, and may be somebody's own where nothing was trained.
WRITTEN = ("README.md", "samples.png", "reconstructions.png")


def find_outcome(folder: Path) -> str | None:
    """Return in words what a run has trained, None if nothing is there."""
    return next((f"{held} ({f})" for f, held in OUTCOMES.items() if (folder / f).is_file()), None)


def steps_of(folder: Path) -> int | None:
    """Return the steps after which the weights in a folder were saved, None if it is not told."""
    file = folder / RECORD
    if find_outcome(folder) is None or not file.is_file():
        return None
    steps = read_json(file).get("steps")
    if steps is not None and type(steps) is not int:
        raise ValueError(f"{file} must hold a number of steps, got {steps!r}: {WAY_OUT}")
    return steps


def clear(folder: Path) -> None:
    """Delete what a run has trained and what was written beside it."""
    index = folder / "model_index.json"
    parts = read_json(index) if index.is_file() else {}
    for name, part in parts.items():
        # a name may lead out of the folder
        if isinstance(part, list) and is_plain(name) and (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and (path.name in OUTCOMES or BESIDE.fullmatch(path.name)):
            path.unlink()
    shutil.rmtree(folder / "logs" / "train", ignore_errors=True)


@contextmanager
def saved_whole(folder: Path, parts: Iterable[object]) -> Iterator[Path]:
    """Yield a folder to write what a run has trained, which then takes the place of what was.

    Args:
        folder: of the run.
        parts: what is saved; the weights among them tell how much room is needed.

    Raises:
        Fault: if it could not be written; `folder` is as it was.
    """
    partial = folder / "partial-outcome"
    shutil.rmtree(partial, ignore_errors=True)
    networks = [part for part in parts if isinstance(part, nn.Module)]
    needed = sum(w.numel() * w.element_size() for part in networks for w in part.parameters())
    kept = "make room, and say --resume_from_checkpoint latest: the last step is kept"
    with written(partial, needed, kept):
        partial.mkdir()
        yield partial
    for name in (RECORD, *OUTCOMES, "evaluation.json", "evaluation.png"):  # of other weights
        (folder / name).unlink(missing_ok=True)
    order = [*OUTCOMES, RECORD]  # last, since they say that the rest is there
    there = {path.name for path in partial.iterdir()}
    for name in [*sorted(there - {*order}), *(name for name in order if name in there)]:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (partial / name).replace(folder / name)
    partial.rmdir()
