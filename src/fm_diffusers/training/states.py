r"""The states that a run goes on from, as numbers and words: nothing that is read is a program.

A state is dictionaries and lists of numbers, words and tensors. Its tensors make a safetensors
file, in whose metadata stands the rest as JSON, with `{"tensor": name}` in the place of each.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write what `state_dict` of an object returned.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_state(Path(folder, "x"), {"step": 3, "mean": [torch.tensor([1.0, 2.0])]})
        ...     read_state(Path(folder, "x"))
        {'step': 3, 'mean': [tensor([1., 2.])]}
    """
    tensors: dict[str, Tensor] = {}

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            return {key: told(part) for key, part in value.items()}
        return [told(part) for part in value] if isinstance(value, list | tuple) else value

    save_file(tensors, file, metadata={"state": json.dumps(told(state))})


def read_state(file: Path) -> dict[str, Any]:
    """Return the state that `write_state` wrote, with lists in place of tuples."""
    with safe_open(file, "pt") as stored:

        def value(told: Any) -> Any:
            if isinstance(told, list):
                return [value(part) for part in told]
            if not isinstance(told, dict):
                return told
            if [*told] == ["tensor"] and isinstance(told["tensor"], str):
                return stored.get_tensor(told["tensor"])
            return {key: value(part) for key, part in told.items()}

        return value(json.loads((stored.metadata() or {})["state"]))
