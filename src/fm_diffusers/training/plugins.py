r"""Rows of one's own: Python files that a script runs before it looks anything up.

`--plugins my_rows.py` runs a file, or imports an installed module, that adds to the tables, such
as `PATHS["mine"] = MyPath`. `--help` lists the new names. Whoever loads a pipeline that was saved
with such a row must run the same file first, so training records its name.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

#: Of the field `plugins` of a script's arguments.
PLUGINS = {"help": "Python files or modules that add rows of your own to the tables."}


def load_plugins(names: Iterable[str]) -> list[ModuleType]:
    """Run files and import modules, each once in a process.

    Raises:
        ValueError: if there is no such file or module; the errors of its code are its own.
    """
    return [load_plugin(name) for name in names]


def load_plugin(name: str) -> ModuleType:
    """Run a file, or import a module."""
    file = Path(name)
    if file.suffix != ".py":
        if file.exists() or not re.fullmatch(r"\w+(\.\w+)*", name) or not exists(name):
            raise ValueError(
                f"--plugins {name!r} is neither a file that ends in .py nor an installed module"
            )
        return importlib.import_module(name)
    if not file.is_file():
        raise ValueError(f"--plugins {name!r}: there is no such file in {Path.cwd()}")
    known_as = "plugin_" + re.sub(r"\W", "_", str(file.resolve()))
    if known_as not in sys.modules:
        spec = importlib.util.spec_from_file_location(known_as, file)
        assert spec is not None and spec.loader is not None  # of a file that ends in .py
        module = sys.modules[known_as] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[known_as]
            raise
    return sys.modules[known_as]


def exists(module: str) -> bool:
    """Whether a module can be imported, told without running it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its package
        return False


def plugin_lines(record: dict[str, Any]) -> str:
    """Return the lines of a card's example that add the rows a pipeline was trained with."""
    plugins = record.get("plugins", "").split()
    if not plugins:
        return ""
    names = ", ".join(repr(Path(name).name) for name in plugins)
    return (
        "from fm_diffusers.training.plugins import load_plugins\n\n"
        f"load_plugins([{names}])  # rows of the tables that this pipeline was trained with\n"
    )
