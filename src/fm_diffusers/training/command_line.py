r"""Command lines: flags of a dataclass, and `--config file.yaml` beside them.

A YAML file holds the names of the flags without dashes, and a flag on the command line wins over
it. `--plugins` are run before anything else, so that `--help` lists the rows that they add.

What is wrong with a command line, its files or the machine is told in one line; an error that
nobody has foreseen keeps its traceback, see `plain_errors`.
"""

import json
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import fm_diffusers
from fm_diffusers.files import MOST_LEVELS, shortened
from fm_diffusers.training.faults import NO_ROOM, Fault, line
from fm_diffusers.training.helping import Parser
from fm_diffusers.training.plugins import load_plugins

Arguments = TypeVar("Arguments")
#: The most that a file of arguments may hold.
MOST_OF_CONFIG = 2**17


def flags(values: dict[str, Any]) -> Iterator[str]:
    """Yield the words of a command line that says the same."""
    for name, value in values.items():
        if isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        elif isinstance(value, dict):
            yield f"--{name}={json.dumps(value)}"
        elif value is not None:
            yield f"--{name}" if value is True else f"--{name}={value}"


def parse(arguments: type[Arguments], command_line: list[str] | None = None) -> Arguments:
    """Return the arguments of a script from its flags and from the file of `--config`.

    Args:
        arguments: the dataclass.
        command_line: words; by default those of this process.

    Raises:
        ValueError: if a flag or a name of the file is no argument of the script, or values do
            not agree.

    Example:
        >>> from fm_diffusers.training.arguments import TrainingArguments
        >>> parse(TrainingArguments, ["--seed", "3"]).seed
        3
    """
    words = sys.argv[1:] if command_line is None else command_line
    stated: Any = arguments
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", help="YAML file with these names; flags win over it.")
    config = first.parse_known_args(words)[0].config
    if config is not None:
        words = [*flags(read_config(config, [f.name for f in fields(stated)])), *words]
    first.add_argument("--plugins", nargs="+", default=[])
    load_plugins(first.parse_known_args(words)[0].plugins)  # whose rows `--help` lists
    parser = Parser(arguments)
    parser.add_argument("--config", help="YAML file with these names; flags win over it.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of every error.")
    parsed, *_, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        known = [word for action in parser._actions for word in action.option_strings]
        raise ValueError(no_flag(unknown[0], known))
    return parsed


def no_flag(word: str, known: list[str]) -> str:
    """Return what is said of a word of a command line that is no flag."""
    close = get_close_matches(word.split("=")[0], known, n=1)
    meant = f": did you mean {close[0]}?" if close else "."
    return f"{word!r} is no flag of this script, and no value of one{meant} --help lists the flags"


def read_config(file: str, names: list[str]) -> dict[str, Any]:
    """Return the content of a YAML file that holds some of `names`."""
    import yaml

    if not Path(file).is_file():
        raise ValueError(f"--config {file!r} is not a file")
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read(MOST_OF_CONFIG + 1)
        if len(text) > MOST_OF_CONFIG:
            raise ValueError(f"it has more than {MOST_OF_CONFIG} characters")
        check_parts(yaml.parse(text, yaml.SafeLoader))
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--config {file!r} is no YAML: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"--config {file!r} must hold `name: value` lines, got {shortened(repr(values), 80)}"
        )
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(
            f"--config {file!r} holds {shortened(unknown, 200)}, the script takes {names}"
        )
    if values.get("mixed_precision") is False:
        values["mixed_precision"] = "no"  # which YAML takes for a boolean
    return values


def check_parts(events: Iterable[Any]) -> None:
    """Raise a `ValueError` for YAML that means far more than it says: by names, or in depth.

    Args:
        events: of the file, as they are read.
    """
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"*{event.anchor} stands for a part of it: write that part out")
        if depth > MOST_LEVELS:
            raise ValueError(f"it is nested deeper than {MOST_LEVELS} levels")


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with one line and status 1 for errors that say all in their message.

    These are the `ValueError`s that this package or the script raise, a `Fault`, and a full disk.
    With `--debug` in the command line they keep their traceback.
    """
    if "--debug" in sys.argv:
        yield
        return
    try:
        yield
    except Fault as error:
        told = str(error)
    except ValueError as error:
        if not is_ours(error):
            raise
        told = str(error)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        told = f"{line(error)}: what was saved before is kept"
    else:
        return
    sys.exit(f"{Path(sys.argv[0]).name}: error: {told}")


def is_ours(error: ValueError) -> bool:
    """Return whether this package, or what is beside the script that runs, raises an error.

    An error that Python itself finds there, as of a list that is too short, says nothing to users.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not (last.line or "").startswith("raise "):
        return False
    place = Path(last.filename).resolve()
    if Path(fm_diffusers.__file__).parent in place.parents:
        return True
    beside = Path(sys.argv[0]).resolve().parent in place.parents
    return beside and "site-packages" not in place.parts  # of an environment beside the script


def unused(
    args: Any, choice: str, owners: dict[str, str], usual: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[str]:
    """Yield what is to be said of flags that only another choice reads.

    Args:
        args: the arguments.
        choice: the flag that chooses, such as `objective`.
        owners: the choice that reads each flag.
        usual: what flags that are not said, None, are set to.
    """
    chosen = getattr(args, choice)
    defaults = {each.name: each.default for each in fields(args)}
    for name, owner in owners.items():
        value = getattr(args, name)
        if owner != chosen and value not in (defaults[name], usual.get(name)):
            yield (
                f"--{name} {value} is of --{choice} {owner}, and {chosen} has no use for it: drop "
                f"it, or choose that {choice}"
            )


def refuse_unused(args: Any, owners: dict[str, str]) -> None:
    """Raise a `ValueError` for a flag that only another objective reads."""
    for told in unused(args, "objective", owners):
        raise ValueError(told)
