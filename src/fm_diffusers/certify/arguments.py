"""The arguments of `python -m fm_diffusers.certify`, checked before any work is done."""

import inspect
import os
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from fm_diffusers import certify
from fm_diffusers.certify.driving import read_object
from fm_diffusers.files import read_json

#: By which a file of figures is known.
KEYS = {"arguments", "floor", "rows"}


@dataclass
class Arguments:
    """Command line.

    Raises:
        ValueError: for a value with which nothing can be measured or written.
    """

    schedulers: list[str] = field(
        default_factory=lambda: ["GaussianFlowScheduler"],
        metadata={"help": "Names or module:Class, each with a JSON configuration after it."},
    )
    network: str = field(
        default="{}",
        metadata={
            "help": "JSON: path, prediction_type and what else is not told; not for our scheduler."
        },
    )
    step_kwargs: str = field(default="{}", metadata={"help": 'JSON for step, as {"eta": 1}.'})
    steps: list[int] = field(
        default_factory=lambda: [8, 16, 32, 64, 128],
        metadata={"help": "Numbers of steps, of which the largest decides."},
    )
    num_samples: int = field(
        default=20_000,
        metadata={"help": "Of each distribution; 8 / tolerance^2 at least to pass."},
    )
    tolerance: float = field(default=0.02, metadata={"help": "Of widths and means, relative."})
    seed: int = field(default=0, metadata={"help": "Of data and noise."})
    output: str | None = field(
        default=None,
        metadata={"help": "A JSON file for all figures: a new one, or an older one of these."},
    )

    def __post_init__(self) -> None:
        self.objects()
        check_numbers(self)
        if self.output is not None:
            check_output(Path(self.output))

    def objects(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the JSON of `network` and `step_kwargs` says."""
        network = read_object("--network", self.network, '{"path": "linear"}')
        step_kwargs = read_object("--step_kwargs", self.step_kwargs, '{"eta": 1.0}')
        for name in ("generator", "return_dict"):
            if name in step_kwargs:
                raise ValueError(f"--step_kwargs has {name}, which is set here: leave it out")
        return network, step_kwargs


def check_numbers(args: Arguments) -> None:
    """Raise a `ValueError` for numbers with which nothing can be measured."""
    if min(args.steps, default=0) < 1 or len({*args.steps}) < len(args.steps):
        raise ValueError(
            f"--steps must be distinct numbers from 1 on, got {' '.join(map(str, args.steps))}: "
            "give each once, as --steps 16 64"
        )
    if args.num_samples < 2:
        raise ValueError(
            f"--num_samples must be at least 2, got {args.num_samples}: leave it out for 20,000"
        )
    if not 0 < args.tolerance < 1:
        raise ValueError(
            f"--tolerance must lie between 0 and 1, got {args.tolerance}: it is a relative error, "
            "leave it out for 0.02"
        )
    if not 0 <= args.seed < 2**63 - 1:
        raise ValueError(f"--seed must be from 0 to 2^63 - 2, got {args.seed}: leave it out for 0")


def check_output(path: Path) -> None:
    """Raise a `ValueError` for a file that cannot be written, or holds what would be lost."""
    try:
        fault = fault_of(path)
    except OSError as error:
        fault = f"cannot be looked at, {error.strerror}: name another file"
    if fault:
        raise ValueError(f"--output {path} {fault}")


def fault_of(path: Path) -> str:
    """Return why figures are not written to a file, or nothing."""
    if path.is_dir():
        return f"must be a file, and is a folder: name a file in it, {path / 'found.json'}"
    if not path.parent.is_dir():
        return f"must lie in a folder, and {path.parent} is none: make it, or name another"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "must be a file that may be written, and may not: name another"
    if path.is_file() and path.stat().st_size and not has_figures(path):
        return "holds something else than figures of certify: name a new file, or remove this one"
    return ""


def has_figures(path: Path) -> bool:
    """Return whether a file is one that certify has written."""
    try:
        return set(read_json(path)) >= KEYS
    except ValueError:
        return False


class Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and says defaults."""


class Parser(HfArgumentParser):
    """Reads the command line; what is wrong with it is said in one line."""

    def __init__(self) -> None:
        super().__init__(
            Arguments,
            prog="python -m fm_diffusers.certify",
            description=inspect.cleandoc(certify.__doc__ or ""),
            formatter_class=Formatter,
        )

    def read(self, words: Sequence[str] | None = None) -> Arguments:
        """Return the arguments, or leave with exit code 2."""
        given = vars(self.parse_args(words))
        try:
            return Arguments(**given)
        except ValueError as error:
            self.leave(str(error))

    def error(self, message: str) -> NoReturn:
        """Leave, and say where the rules are."""
        self.leave(f"{message}: see --help for what is taken")

    def leave(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and exit with 2."""
        self.exit(2, f"certify: error: {' '.join(message.split())}\n")
        raise AssertionError("exit returns nowhere")
