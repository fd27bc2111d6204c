"""What a saved pipeline must be before any of it is loaded.

A folder says itself which classes its components are, and importing a module runs it. So
components come from diffusers, from transformers and from this package, or from a module that
whoever loads them has imported himself; all else needs his word, `trust_remote_code=True`.
diffusers keeps to this from 0.42.1 on, here it is so on every version. Weights are safetensors,
which hold numbers and nothing else; a pickle needs the word `use_safetensors=False`.
"""

import importlib
import json
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import diffusers
from torch import nn

from fm_diffusers.files import CLEAR, MOST_BYTES, read_json, reading, shortened

#: The most bytes of an index: room for the names of 20 thousand classes.
MOST_OF_INDEX = 2**20
#: Whose modules may be imported because a folder names them.
LIBRARIES = ("diffusers", "transformers", "fm_diffusers")
#: Files of a component that say what it is; others are read by its library alone.
TELLING = ("config.json", "*_config.json", "*.index.json", "special_tokens_map.json")
#: Weights that are numbers, and weights that may be programs.
NUMBERS, PICKLES = "*.safetensors", ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
#: Names in configurations of how often something is repeated, each time with weights of its own.
REPEATED = re.compile("layer|depth")
#: Layers that may have no weights.
SPARE = 64
TRUST = "trust_remote_code=True is your word that its code may run"


def check_index(file: Any, index: dict[str, Any], components: Collection[str]) -> None:
    """Raise a `ValueError` for an index that says of no component, or of itself, what it is."""
    own = index.get("_class_name")
    pair = isinstance(own, list) and len(own) == 2 and all(isinstance(x, str) for x in own)
    if not pair and not isinstance(own, str):
        raise ValueError(
            f"{file} must say by _class_name which pipeline it is of, got {own!r}: name one, "
            '"FlowMatchingPipeline"'
        )
    for name in sorted({*components} & {*index}):
        value = index[name]
        pair = isinstance(value, list) and len(value) == 2
        texts = pair and all(isinstance(part, str) and part for part in value)
        if not texts and not (pair and value == [None, None]):
            raise ValueError(
                f"{file} must say of {name} its library and its class, such as "
                f'["diffusers", "UNet2DModel"], or [null, null], got {shortened(repr(value), 80)}'
            )


def check_folder(
    folder: Path,
    named: dict[str, list[str]],
    given: Collection[str] = (),
    trusted: bool = False,
    pickles: bool = False,
) -> None:
    """Raise a `ValueError` for components that cannot be loaded from a folder without harm.

    Args:
        folder: of the saved pipeline.
        named: library and class of every component.
        given: components that are not read, but whose libraries diffusers imports all the same.
        trusted: whether code of the folder may run.
        pickles: whether weights may be pickles.
    """
    for name, (library, class_name) in named.items():
        own = folder / name if Path(folder, name).is_dir() else folder
        if not trusted:
            check_class(folder / "model_index.json", name, library, class_name, own)
        if name not in given:
            check_files(own, pickles)


def check_files(own: Path, pickles: bool) -> None:
    """Raise a `ValueError` for a component's folder that cannot be read without harm."""
    told = [read_json(path) for path in files_of(own, TELLING)]
    check_weights(own, pickles)
    check_sizes(own, told)


def files_of(folder: Path, patterns: Collection[str]) -> list[Path]:
    """Return the files of a folder by patterns of their names."""
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def check_class(file: Any, name: str, library: str, class_name: str, own: Path) -> None:
    """Raise a `ValueError` for a class that is loaded only at a user's word, or that is none.

    Args:
        file: the index, for messages.
        name: of the component.
        library: where the index says that it comes from.
        class_name: likewise.
        own: the folder of the component, whose own file goes before a module.
    """
    module = None if (own / f"{library}.py").is_file() else module_of(library)
    if module is None:
        raise ValueError(
            f"{file} says that {name} is {class_name!r} of {library!r}, and importing that would "
            f"run its code: components come from {', '.join(LIBRARIES)}; {TRUST}, or import it "
            "before if it is yours"
        )
    found = getattr(module, class_name.removeprefix("FlashPack"), None)
    known = library == "transformers" and found is None  # by an older name perhaps
    if not known and not (isinstance(found, type) and hasattr(found, "from_pretrained")):
        raise ValueError(
            f"{file} says that {name} is {class_name!r} of {library!r}, which is no class that "
            f"can be loaded: check its spelling and the version of {library}"
        )


def module_of(library: str) -> ModuleType | None:
    """Return the module that a component comes from; None if it must not be imported."""
    if library in LIBRARIES:
        return importlib.import_module(library)
    if library.startswith("fm_diffusers."):
        try:
            return importlib.import_module(library)
        except ModuleNotFoundError:
            return None
    inside = getattr(diffusers.pipelines, library, None)
    return inside if isinstance(inside, ModuleType) else sys.modules.get(library)


def check_weights(own: Path, pickles: bool) -> None:
    """Raise a `ValueError` for pickles in the place of weights, or weights elsewhere."""
    found = files_of(own, PICKLES)
    if found and not pickles and not files_of(own, (NUMBERS,)):
        raise ValueError(
            f"{found[0]} is a pickle, which may be a program: save it anew with safetensors, or "
            "say use_safetensors=False if you trust whoever wrote it"
        )
    for file in files_of(own, ("*.index.json",)):
        parts = read_json(file).get("weight_map")
        if not isinstance(parts, dict) or not all(map(is_plain, parts.values())):
            raise ValueError(
                f"{file} must say by weight_map in which files beside it the weights are, got "
                f"{shortened(repr(parts), 80)}: write it anew by save_pretrained"
            )


def is_plain(name: Any) -> bool:
    """Return whether something is the name of a file or a folder in a folder, not a way out.

    Example:
        >>> [is_plain(name) for name in ("unet", "../unet", "/unet", "..", "", 3)]
        [True, False, False, False, False, False]
    """
    return (
        isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)
    )


def check_sizes(own: Path, told: list[dict[str, Any]]) -> None:
    """Raise a `ValueError` for a network of more layers than it has weights: it takes for ever."""
    if not (files := files_of(own, (NUMBERS,))):
        return
    most = SPARE + sum(tensors_in(file) for file in files)
    for config in told:
        for name, size in repeated(config):
            if size > most:
                raise ValueError(
                    f"{own} has {most - SPARE} weights, which are too few for {name} of "
                    f"{shortened(size, 40)} in its configuration: take it from where it came"
                )


def repeated(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield the names and the sizes of what a configuration repeats: counts, lists."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in ("weight_map", "id2label", "label2id", "added_tokens_decoder"):
                yield from repeated(part, key)
    elif isinstance(value, list):
        yield f"a list {name}", len(value)
        for part in value:
            yield from repeated(part, name)
    elif isinstance(value, int | float) and REPEATED.search(name):
        yield name, value


def tensors_in(file: Path) -> int:
    """Return the number of tensors in a file of safetensors.

    Raises:
        ValueError: for another file.
    """
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        try:
            if size > min(file.stat().st_size, MOST_BYTES):
                raise ValueError(f"its header would have {size} bytes")
            return len(json.loads(content.read(size)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{file} is no file of safetensors, {shortened(error, 120)}: it was cut off or "
                "changed, take it from where it came once more"
            ) from error


def check_loaded(folder: Any, components: dict[str, Any]) -> None:
    """Raise a `ValueError` for a network that lacks weights."""
    for name, component in components.items():
        if isinstance(component, nn.Module):
            lost = [key for key, weight in component.named_parameters() if weight.is_meta]
            if lost:
                raise ValueError(
                    f"{folder} lacks {len(lost)} weights of {name}, the first is {lost[0]!r}: its "
                    "weights are those of another network, or were changed"
                )


def component_of(error: BaseException) -> str | None:
    """Return the component that was being loaded when an error was raised, None if none was."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    found = (f.f_locals.get("name") for f in frames if f.f_code.co_name == "load_sub_model")
    return next(found, None)


@contextmanager
def reading_pipeline(name: str) -> Iterator[None]:
    """Say of what goes wrong while a pipeline is loaded which of its components it is."""
    with reading(name):
        try:
            yield
        except Exception as error:
            component = component_of(error)
            if component is None or isinstance(error, CLEAR):
                raise
            with reading(Path(name, component)):
                raise
