"""A saved pipeline as diffusers' modular pipelines see it: three files beside its index.

`ModularPipeline.from_pretrained(..., trust_remote_code=True)` reads which blocks to take from
`modular_config.json`, runs the file of two lines that it names, which imports the installed
package, and finds the components in `modular_model_index.json`. A component that lies beside
these files has no path there: so a folder can be moved, copied and pushed as it is.
"""

import json
from pathlib import Path
from typing import Any

from fm_diffusers.files import shortened
from fm_diffusers.pipelines.saved import check_class

#: Written into saved pipelines: their blocks, and the pipeline that these belong to.
MODULAR_MODULE, BLOCKS = "fm_diffusers.modular", "FlowMatchingBlocks"
PIPELINE = "FlowMatchingModularPipeline"
BLOCKS_FILE = "modular_flow_matching"
INDEX_FILE, CONFIG_FILE = "modular_model_index.json", "modular_config.json"
AUTO_MAP = {"ModularPipelineBlocks": f"{BLOCKS_FILE}.{BLOCKS}"}


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write a dictionary as diffusers does."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def modular_index(index: dict[str, Any]) -> dict[str, Any]:
    """Return what `modular_model_index.json` says of the pipeline of a `model_index.json`.

    Args:
        index: with `[library, class]` of every component; libraries are modules to import.

    Example:
        >>> index = modular_index({"vae": ["diffusers", "AutoencoderKL"], "null_label": 3})
        >>> index["null_label"], index["vae"][2]["subfolder"]
        (3, 'vae')
    """
    found: dict[str, Any] = {"_class_name": PIPELINE, "_blocks_class_name": BLOCKS}
    for name, value in index.items():
        if name == "_diffusers_version" or not name.startswith("_") and not _is_class(value):
            found[name] = value
        elif _is_class(value) and None not in value:
            where = {"pretrained_model_name_or_path": None, "subfolder": name}
            where |= {"variant": None, "revision": None}
            found[name] = [*value, {"type_hint": value} | where]
    return found


def _is_class(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(part is None or isinstance(part, str) for part in value)


def resolved(index: dict[str, Any], source: str | None, revision: str | None) -> dict[str, Any]:
    """Return a modular index with a place for the components that lie beside it.

    Args:
        index: as it is written.
        source: the folder or repository that it was read from.
        revision: of the repository.
    """
    beside = {"pretrained_model_name_or_path": source, "revision": revision}

    def place(value: Any) -> Any:
        here = isinstance(value, list | tuple) and len(value) == 3 and value[0] is not None
        if not here or value[2]["pretrained_model_name_or_path"] is not None:
            return value
        return [*value[:2], value[2] | beside]

    return {name: place(value) for name, value in index.items()}


def check_modular(source: Any, index: dict[str, Any]) -> None:
    """Raise a `ValueError` for a modular index whose components cannot be loaded without harm.

    Args:
        source: the folder or repository that it was read from.
        index: as it is written.
    """
    file = f"{source}/{INDEX_FILE}"
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list | tuple) or len(value) != 3:
            continue
        where = value[2] if isinstance(value[2], dict) else {}
        pairs = [value[:2], where.get("type_hint")]
        place = "pretrained_model_name_or_path" in where
        if not place or not all(map(_is_whole, pairs)):
            raise ValueError(
                f"{file} must say of {name} its library, its class and where it lies, got "
                f"{shortened(repr(value), 120)}: write it anew by save_pretrained"
            )
        named = pairs if value[0] is not None else []
        for library, class_name in filter(None, named):
            check_class(file, name, library, class_name, Path(str(source), name))


def _is_whole(pair: Any) -> bool:
    """Return whether a library and a class are both named, or neither is."""
    return _is_class(pair) and (pair[0] is None) == (pair[1] is None)
