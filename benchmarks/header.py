"""What stands above every table: its title, the command that gives it, and where it ran."""

import inspect
import os
import platform
import shlex
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fm_diffusers
from fm_diffusers.training.command_line import flags
from fm_diffusers.training.public import public
from fm_diffusers.training.publishing import commit

#: What says where results go, and nothing of what they are.
PLACES = ("output_dir", "cache", "output")


def header(title: str, args: Any) -> str:
    """Return the head of a table in Markdown.

    Args:
        title: of the table.
        args: the dataclass of the command line, of the module that is run.
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    ran = (
        f"fm_diffusers {fm_diffusers.__version__}, commit {commit()}; {packages}, Python "
        f"{platform.python_version()}; {processor()}, threads: {torch.get_num_threads()}."
    )
    return f"# {title}\n\n    {command(args)}\n\n{ran}\n\n"


def command(args: Any) -> str:
    """Return the command line that gives these arguments; it names no folder of this machine."""
    needed = [each.name for each in fields(args) if each.default is each.default_factory]
    plain = type(args)(**{name: getattr(args, name) for name in needed})
    changed = {
        name: shown(value)
        for name, value in vars(args).items()
        if name not in PLACES and (name in needed or value != getattr(plain, name))
    }
    module = inspect.getmodule(type(args)).__spec__.name
    return shlex.join(["python", "-m", module, *flags(changed)])


def shown(value: Any) -> Any:
    """Return a value without the place on this machine that a path from its root would tell."""
    if isinstance(value, list):
        return [shown(each) for each in value]
    return public(value) if isinstance(value, str) and os.path.isabs(value) else value


def processor() -> str:
    """Return what computes, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    matrices = "AMX" if "amx_bf16" in text else "no AMX"  # decides whether bf16 pays
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{(names or [platform.machine()])[0]} ({capability}, {matrices})"
