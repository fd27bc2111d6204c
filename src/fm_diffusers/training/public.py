"""What is published names nothing by its place on this machine.

A path is told by its last part; a model that this machine has pushed, by its id on the Hub.
"""

import os
import re
from pathlib import Path
from typing import Any

from fm_diffusers.files import read_json
from fm_diffusers.pipelines.hub import is_place


def public(value: Any) -> Any:
    """Return a value as it may be published, and all that is in it.

    Example:
        >>> public({"model": "/home/me/flow", "dataset_name": "user/pictures", "seed": 3})
        {'model': 'flow', 'dataset_name': 'user/pictures', 'seed': 3}
    """
    if isinstance(value, dict):
        return {name: public(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [public(part) for part in value]
    if isinstance(value, Path):
        value = str(value)
    if not is_place(value):
        return value
    record = Path(value, "training.json")
    pushed = read_json(record).get("repo_id") if record.is_file() else None
    return pushed or os.path.basename(os.path.abspath(os.path.expanduser(value)))


def on_hub(name: str) -> bool:
    """Return whether a name is an id on the Hub, `user/name`.

    Example:
        >>> on_hub("ylecun/mnist"), on_hub("digits"), on_hub("samples of user/flow")
        (True, False, False)
    """
    return not is_place(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
