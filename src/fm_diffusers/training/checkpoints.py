r"""Checkpoints that a run killed at any moment goes on from, bit for bit.

A checkpoint is a folder `checkpoint-N`, what `Accelerator.save_state` writes on every process. It
is written as `partial-N` and renamed when all processes are done, so that a folder of that name is
complete; `manifest.json`, written last, holds the size and the SHA-256 of every file, so that a
disk's damage is seen before the state is read.

The last step of a run is a checkpoint, so that more steps can be asked for afterwards. What a run
has trained is not written over by another one, see `finished`.

That a resumed run is *equal* to an uninterrupted one needs besides that its data follow from the
place in the run, which is a part of the state (`Progress`), and so does all its randomness.
"""

import hashlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from fm_diffusers.files import read_json
from fm_diffusers.training.finished import clear, find_outcome, steps_of
from fm_diffusers.training.states import check_states

MANIFEST = "manifest.json"
#: What to do about an argument that has changed, so that the run would have been the same.
WAYS_OUT = {
    "lr_warmup_steps": "; give one that is shorter than the first part of the run",
    "lr_scheduler_steps": "; where more steps may be wanted later, say --lr_scheduler_steps at "
    "the start, or --lr_scheduler constant_with_warmup, which does not depend on the end",
}


class Progress:
    """Where a run is: steps done, batches done, epoch, batches done of it, and seconds."""

    def __init__(self) -> None:
        self.step = self.batches = self.epoch = self.batch_of_epoch = 0
        self.earlier, self.start = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its continuations."""
        return self.earlier + time.perf_counter() - self.start

    def state_dict(self) -> dict[str, float]:
        """Return the state, for `Accelerator.register_for_checkpointing`."""
        names = ("step", "batches", "epoch", "batch_of_epoch", "seconds")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state."""
        names = ("step", "batches", "epoch", "batch_of_epoch")
        self.__dict__.update({name: state[name] for name in names})
        self.earlier, self.start = state["seconds"], time.perf_counter()

    def rest(
        self, accelerator: Accelerator, loader: Any, seed: int, max_steps: int
    ) -> Iterator[Any]:
        """Yield what is left of the batches, epoch after epoch, until `step` is `max_steps`.

        Before each batch all generators of the process are seeded from its place in the run: no
        two batches on any process share their noise, and a resumed run draws what it would have.
        """
        while self.step < max_steps:
            loader.set_epoch(self.epoch)
            done = self.batch_of_epoch
            for batch in accelerator.skip_first_batches(loader, done) if done else loader:
                place = self.batches * accelerator.num_processes + accelerator.process_index
                set_seed((seed * 1_000_003 + place) % 2**32)
                self.batches, self.batch_of_epoch = self.batches + 1, self.batch_of_epoch + 1
                yield batch
                if self.step == max_steps:
                    return
            if self.batch_of_epoch == 0:
                raise ValueError("the data set is smaller than one batch of every process")
            self.epoch, self.batch_of_epoch = self.epoch + 1, 0


@dataclass
class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they are, `--output_dir`.
        total_limit: how many of them are kept; None keeps all.
        run: what an exact continuation depends on, names with values; kept in every checkpoint,
            and a warning names what has changed.
        steps: of the run; None if they are not known yet.
    """

    folder: Path
    total_limit: int | None = None
    run: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None

    def all(self) -> list[Path]:
        """Return the checkpoints from the oldest to the newest."""
        found = [path for path in self.folder.glob("checkpoint-*") if number(path) is not None]
        return sorted(found, key=lambda path: number(path) or 0)

    @property
    def finished(self) -> bool:
        """Whether the folder holds what the whole run has trained."""
        return find_outcome(self.folder) is not None and steps_of(self.folder) == self.steps

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Save the state of every process; to be called on all of them."""
        final = self.folder / f"checkpoint-{step}"
        partial = self.folder / f"partial-{step}"
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_manifest(partial, self.run)
            discard(final)
            partial.rename(final)
            for old in self.all()[: -self.total_limit] if self.total_limit else []:
                discard(old)
        accelerator.wait_for_everyone()

    def check(self, name: str | None, overwrite: bool = False) -> None:
        """Raise a `ValueError` if a run would mix with an earlier one, or replace what it trained.

        Args:
            name: as in `load`.
            overwrite: as in `load`.
        """
        outcome, own = find_outcome(self.folder), name is not None and self.is_own(name)
        if overwrite or own and (name != "latest" or self.all() or outcome is None):
            return  # of a name that is wrong `find` tells
        if own:
            raise ValueError(
                f"{self.folder} holds {outcome}, but no checkpoint to go on from: say --init_from "
                f"{self.folder} and another --output_dir to train it further (--model for "
                "adapters), or --overwrite_output_dir to delete it and begin anew"
            )
        held = f"{self.all()[-1].name} of an earlier run" if self.all() else outcome
        if held is not None:
            raise ValueError(
                f"{self.folder} holds {held}: say --resume_from_checkpoint latest to go on with "
                "it, --overwrite_output_dir to delete its checkpoints and what it has trained, or "
                "choose another --output_dir"
            )

    def is_own(self, name: str) -> bool:
        """Whether a checkpoint of that name is one of this folder."""
        path = Path(name)
        own = path.resolve().parent == self.folder.resolve()
        return name == "latest" or own or not path.is_dir()

    def load(self, accelerator: Accelerator, name: str | None, overwrite: bool = False) -> bool:
        """Load a checkpoint into what the Accelerator prepared and what was registered with it.

        Args:
            accelerator: of the run.
            name: `latest` for the newest that is intact, none if there is none at all; a name or
                a folder; or None to begin anew.
            overwrite: delete an earlier run when beginning anew: its checkpoints, and what it has
                trained.

        Returns:
            Whether there was one.

        Raises:
            ValueError: if there is no such checkpoint, it is damaged, beginning anew or going on
                would mix two runs, or the run ends before what has been done.
        """
        self.check(name, overwrite)
        found = self.find(name) if name is not None else None
        accelerator.wait_for_everyone()  # all have looked before anything goes
        if accelerator.is_main_process:
            for path in [*self.folder.glob("partial-*"), *(self.all() if overwrite else [])]:
                discard(path)
            if overwrite:
                clear(self.folder)
        accelerator.wait_for_everyone()
        if found is None:
            if name is not None:
                accelerator.print(f"nothing to resume in {self.folder}: a new run begins")
            return False
        self.compare(found)
        check_states(found)
        accelerator.load_state(str(found))
        accelerator.print(f"resumed from {found}")
        return True

    def compare(self, found: Path) -> None:
        """Warn of what has changed since a checkpoint, or raise if that would undo later work."""
        saved = read_json(found / MANIFEST)["run"]
        changed = [key for key in self.run if saved.get(key) != self.run[key]]
        own = number(found) or 0
        done = max([*(number(path) or 0 for path in self.all()), steps_of(self.folder) or 0, own])
        if self.steps is not None and self.steps < done:
            raise ValueError(
                f"the run of {found} has come to step {done}, and is asked to end at "
                f"{self.steps}: say --max_train_steps {done} or more, or go on from an earlier "
                "checkpoint in another --output_dir"
            )
        if changed and own < done:
            raise ValueError(
                f"{found} would go on with another {', '.join(changed)}, but {self.folder} has "
                f"come to step {done} without: choose another --output_dir, with "
                f"--resume_from_checkpoint {found}"
            )
        for key in changed:
            warnings.warn(
                f"{found} was written with {key}={saved.get(key)!r}, this run has "
                f"{self.run[key]!r}: it goes on, but not as it would have{WAYS_OUT.get(key, '')}",
                stacklevel=3,
            )

    def find(self, name: str) -> Path | None:
        """Return an intact checkpoint by its name, or the newest, warning of damaged ones."""
        if name == "latest":
            for path in reversed(self.all()):
                if not (fault := damage(path)):
                    return path
                warnings.warn(f"{path} is damaged, {fault}: it is passed over", stacklevel=3)
            if self.all():
                raise ValueError(
                    f"every checkpoint of {self.folder} is damaged: begin anew with "
                    "--overwrite_output_dir"
                )
            return None
        folder = next((path for path in (Path(name), self.folder / name) if path.is_dir()), None)
        if folder is None or number(folder) is None:
            raise ValueError(
                f"--resume_from_checkpoint {name!r} is not a folder `checkpoint-N`; there are "
                f"{[path.name for path in self.all()]} in {self.folder}, or say `latest`"
            )
        if fault := damage(folder):
            raise ValueError(f"{folder} is damaged, {fault}: choose another, or say `latest`")
        return folder


def number(folder: Path) -> int | None:
    """Return N of a folder `checkpoint-N`, None for other names."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None


def discard(folder: Path) -> None:
    """Delete a folder if it is there; cut short, no part of it keeps the name of a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(f"partial-discarded-{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


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
    content = {"files": describe(folder), "run": run}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if nothing is."""
    try:
        content = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        content = {}
    expected = content.get("files")
    if not isinstance(expected, dict) or not isinstance(content.get("run"), dict):
        return f"its {MANIFEST} is missing or unreadable"
    present = describe(folder)
    missing = [name for name in expected if name not in present]
    changed = [name for name in expected if present.get(name, expected[name]) != expected[name]]
    faults = ["missing: " + ", ".join(missing)] * bool(missing)
    faults += ["changed: " + ", ".join(changed)] * bool(changed)
    return "; ".join(faults) or None
