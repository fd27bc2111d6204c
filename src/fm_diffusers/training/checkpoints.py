r"""Checkpoints that a run killed at any moment goes on from, bit for bit.

A checkpoint is a folder `checkpoint-N`, what `Accelerator.save_state` writes on every process. It
is written as `partial-N` and renamed when all processes are done, so that a folder of that name is
complete; `manifest.json`, written last, holds the size and the SHA-256 of every file, so that a
disk's damage is seen before the state is read.

The last step of a run is a checkpoint, so that more steps can be asked for afterwards. What a run
has trained is not written over by another one, see `finished`. Where a run is, from which its data
and its randomness follow, is a part of the state, see `progress`. What is read is numbers and
words, and no program, see `manifests`.
"""

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError

from fm_diffusers.training.continuing import RAISES
from fm_diffusers.training.faults import line, written
from fm_diffusers.training.finished import WRITTEN, clear, find_outcome, steps_of
from fm_diffusers.training.manifests import (
    check_harmless,
    damage,
    read_manifest,
    write_manifest,
)
from fm_diffusers.training.states import read_state, write_state

#: What to do about an argument that has changed, so that the run would have been the same.
WAYS_OUT = {
    "lr_warmup_steps": "; give one that is shorter than the first part of the run",
    "lr_scheduler_steps": "; where more steps may be wanted later, say --lr_scheduler_steps at "
    "the start, or --lr_scheduler constant_with_warmup, which does not depend on the end",
}

#: Where Accelerate keeps states of processes that have a part of the network each.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Stateful(Protocol):
    """What has a state that can be kept."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""


@dataclass
class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they are, `--output_dir`.
        total_limit: how many of them are kept; None keeps all.
        run: what an exact continuation depends on, names with values; kept in every checkpoint,
            and what has changed is named, by a warning or by an error, see `continuing`.
        steps: of the run; None if they are not known yet.
        states: what is kept beside what the Accelerator has prepared, by name.
        size: bytes that a checkpoint takes, about.
    """

    folder: Path
    total_limit: int | None = None
    run: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    states: Mapping[str, Stateful] = field(default_factory=dict)
    size: int = 0

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
        last = f"{self.all()[-1].name} is kept" if self.all() else "there is no checkpoint yet"
        guard = partial, self.size, f"make room, and go on: {last}", accelerator
        with written(*guard):
            accelerator.save_state(str(partial))
            states = {name: held.state_dict() for name, held in self.states.items()}  # on all
            if accelerator.is_main_process:
                for name, state in states.items():
                    write_state(partial / f"{name}.safetensors", state)
        with written(*guard):  # when all processes are done
            if accelerator.is_main_process:
                for unneeded in partial.glob("random_states_*.pkl"):  # see `progress`
                    unneeded.unlink()
                write_manifest(partial, self.run)
        if accelerator.is_main_process:
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
        others = [file for file in WRITTEN if Path(self.folder, file).exists()]
        if others and not (overwrite or outcome or self.all()):
            raise ValueError(
                f"{self.folder} holds {others[0]}, which is of no run of ours and would be "
                "replaced at the end: choose another --output_dir, or say --overwrite_output_dir"
            )
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
            ValueError: if there is no such checkpoint, it is damaged, it may hold a program,
                beginning anew or going on would mix two runs, or the run ends before what has
                been done.
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
        if accelerator.distributed_type in SHARDED:
            warnings.warn(
                f"checkpoints of {accelerator.distributed_type.value} may hold programs that are "
                "run: go on from those of your own alone",
                stacklevel=3,
            )
        else:
            check_harmless(found)
        self.compare(found)
        self.read(accelerator, found)
        accelerator.print(f"resumed from {found}")
        return True

    def read(self, accelerator: Accelerator, found: Path) -> None:
        """Take over what a checkpoint holds.

        Raises:
            ValueError: if it does not fit what is trained.
        """
        try:
            accelerator.load_state(str(found))
            for name, held in self.states.items():
                held.load_state_dict(read_state(found / f"{name}.safetensors"))
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
            parts = str(error).strip().splitlines()
            misfits = f", and {len(parts) - 2} more" if len(parts) > 2 else ""
            told = f"{parts[1].strip()}{misfits}" if len(parts) > 1 else line(error)
            raise ValueError(
                f"{found} does not fit what this run trains ({told}): go on with the arguments "
                "and the data that it was written with"
            ) from error

    def compare(self, found: Path) -> None:
        """Warn of what has changed since a checkpoint.

        Raises:
            ValueError: if going on would learn something else, or undo later work.
        """
        saved = read_manifest(found)["run"]
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
        told = [f"{key}={saved.get(key)!r} and not {self.run[key]!r}" for key in changed]
        if others := [said for key, said in zip(changed, told, strict=True) if key in RAISES]:
            raise ValueError(
                f"{found} was written with {', '.join(others)}: the network would learn something "
                "else from here on; say it as before, or begin anew in another --output_dir"
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
