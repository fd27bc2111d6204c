"""A pipeline that is saved: in folders and on the Hub, `push_to_hub` and `from_pretrained`.

diffusers takes a component of a foreign package only from a file of the repository, and runs that
file only with `trust_remote_code=True`. So a saved pipeline names short files, which
import the installed package: `DiffusionPipeline` runs them, our own class reads past them. Their
names are part of the saved format.
"""

import json
import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import file_exists

from fm_diffusers.files import read_json
from fm_diffusers.pipelines.cards import INSTALL, card
from fm_diffusers.pipelines.lora import LoraLoader
from fm_diffusers.pipelines.modular_index import (
    AUTO_MAP,
    BLOCKS,
    BLOCKS_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MODULAR_MODULE,
    modular_index,
    write_json,
)
from fm_diffusers.pipelines.other_folders import why_not_saved
from fm_diffusers.pipelines.saved import (
    MOST_OF_INDEX,
    check_folder,
    check_index,
    check_loaded,
    reading_pipeline,
)

PIPELINE_FILE = "pipeline_flow_matching"
#: Files that stand for our components, by the modules of these.
FILES = {
    "fm_diffusers.scheduler": "scheduling_gaussian_flow",
    "fm_diffusers.flow_map_networks": "flow_map_networks",
}
SHIM = '''"""Stands for a class of the package {package}, which must be installed."""

from importlib import import_module

try:
    {name} = import_module("{module}").{name}
except ModuleNotFoundError as error:
    if error.name != "{package}":
        raise
    raise ImportError(
        "This model needs the package {package}, which is not installed: install it by\\n"
        {how!r}
    ) from None
'''
#: How a package is installed, where it is not by its name.
HOW = {"fm_diffusers": INSTALL}
#: Of a path on this machine, in the configurations of what was loaded from there.
ORIGINS = ("_name_or_path", "name_or_path")


def write_shim(file: Path, module: str, name: str) -> None:
    """Write a file that stands for a class of an installed package."""
    file.parent.mkdir(parents=True, exist_ok=True)
    package = module.split(".")[0]
    how = HOW.get(package, f"pip install {package}")
    file.write_text(SHIM.format(package=package, module=module, name=name, how=how))


def forget_origins(folder: Path) -> None:
    """Drop from the configurations in a folder the places on this machine that they came from."""
    for file in folder.glob("*.json"):
        known = json.loads(file.read_text())
        known = known if isinstance(known, dict) else {}
        gone = [name for name in ORIGINS if is_place(known.get(name))]
        if gone:
            kept = {name: value for name, value in known.items() if name not in gone}
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def is_place(value: Any) -> bool:
    """Return whether a text is a path on this machine, rather than an id on the Hub or a name.

    Example:
        >>> is_place("/home/me/model"), is_place("~/model"), is_place("user/model")
        (True, True, False)
    """
    return (
        isinstance(value, str)
        and bool(value)
        and (value.startswith((".", "/", "~", "\\")) or os.path.exists(value))
    )


def write_blocks(folder: Path) -> None:
    """Write which blocks a modular pipeline of a folder is made of: ours."""
    write_shim(folder / f"{BLOCKS_FILE}.py", MODULAR_MODULE, BLOCKS)
    write_json(folder / CONFIG_FILE, {"_class_name": BLOCKS, "auto_map": AUTO_MAP})


def components_by(names: dict[str, str], index: dict[str, Any]) -> dict[str, list[str]]:
    """Return the components of a `model_index.json` whose library is in a table, with its word."""
    pairs = {k: v for k, v in index.items() if isinstance(v, list | tuple) and len(v) == 2}
    return {k: [names[first], name] for k, (first, name) in pairs.items() if first in names}


def with_our_components(index: dict[str, Any]) -> dict[str, Any]:
    """Return a `model_index.json` with our components from the installed modules."""
    return index | components_by({file: module for module, file in FILES.items()}, index)


class SavedPipeline(LoraLoader, DiffusionPipeline):
    """A pipeline of diffusers that is saved, loaded and given adapters as ours are."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a component, which is saved although there was none before."""
        was_missing = vars(self).get(name, value) is None and name in self._optional_components
        super().__setattr__(name, value)
        if was_missing and value is not None and self.config[name][0] is None:
            self.register_modules(**{name: value})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a pipeline from a folder or from the Hub; arguments are those of diffusers.

        Code of the folder runs only with `trust_remote_code=True`, and weights that are pickles
        are read only with `use_safetensors=False`; see `pipelines.saved`.

        Raises:
            ValueError: for a folder that does not exist or is not a saved pipeline, of which it
                says what the folder is instead; or whose files cannot be read, by their names.
        """
        if not isinstance(pretrained_model_name_or_path, str | Path):
            raise ValueError(
                "pretrained_model_name_or_path must be a folder or a Hub id `user/name`, got "
                f"{pretrained_model_name_or_path!r}"
            )
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        if folder.is_file():
            raise ValueError(
                f"{name!r} is a file: pass the folder that save_pretrained wrote, it holds a "
                "model_index.json"
            )
        if folder.is_dir() and not Path(folder, "model_index.json").is_file():
            raise ValueError(f"{name!r} is not a saved pipeline, {why_not_saved(folder)}")
        if not folder.exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
            raise ValueError(
                f"there is no folder {name!r}: pass the folder that save_pretrained wrote, or a "
                "Hub id `user/name`"
            )
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        with reading_pipeline(name):
            if folder.is_dir():
                cls.check_saved(folder, **kwargs)
            pipe = super().from_pretrained(name, **kwargs)
            if kwargs.get("device_map") is None:
                check_loaded(name, pipe.components)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str | Path, **kwargs: Any) -> str | Path:
        """Download a pipeline and return its folder, unless it names code that is not trusted."""
        folder = super().download(pretrained_model_name, **kwargs)
        cls.check_saved(Path(folder), **kwargs)
        return folder

    @classmethod
    def check_saved(cls, folder: Path, **kwargs: Any) -> None:
        """Raise a `ValueError` for a folder that cannot be loaded without harm, by its files.

        Args:
            folder: of a saved pipeline.
            **kwargs: as of `from_pretrained`.
        """
        index = with_our_components(cls._dict_from_json_file(folder / "model_index.json"))
        named = {name: index[name] for name in cls.component_names() & {*index}}
        named = {name: pair for name, pair in sorted(named.items()) if pair[0] is not None}
        trusted, safe = kwargs.get("trust_remote_code"), kwargs.get("use_safetensors")
        check_folder(folder, named, {*kwargs}, bool(trusted), pickles=safe is False)

    @classmethod
    def component_names(cls) -> set[str]:
        """Return the names of all components that a pipeline of this class may have."""
        return {*cls._get_signature_keys(cls)[0]}

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the index of the pipeline, and beside it the files that the index names."""
        file, index = Path(json_file_path), json.loads(self.to_json_string())
        name = type(self).__name__
        write_json(file.with_name(INDEX_FILE), modular_index(index))
        write_blocks(file.parent)
        index["_class_name"] = [PIPELINE_FILE, name]
        write_shim(file.with_name(f"{PIPELINE_FILE}.py"), type(self).__module__, name)
        for part, (stands, component) in components_by(FILES, index).items():
            write_shim(file.parent / part / f"{stands}.py", index[part][0], component)
            index[part] = [stands, component]
        file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        for folder in (file.parent, *(file.parent / name for name in self.components)):
            forget_origins(folder)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        """Read an index: the pipeline is the class that was asked for, not the repository's."""
        index = read_json(json_file, MOST_OF_INDEX)
        check_index(json_file, index, cls.component_names())
        if isinstance(index["_class_name"], list):
            index["_class_name"] = index["_class_name"][1]
        return index

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], ...]:
        """Take our components from the installed modules, not from the repository's files."""
        return super().extract_init_dict(with_our_components(config_dict), **kwargs)

    def _upload_folder(
        self, working_dir: str | Path, repo_id: str, token: str | None = None, **kwargs: Any
    ) -> Any:
        """Upload, with our card at the top of a repository that has none."""
        if not kwargs.get("subfolder") and not file_exists(repo_id, "README.md", token=token):
            Path(working_dir, "README.md").write_text(card(self, repo_id))
        return super()._upload_folder(working_dir, repo_id, token=token, **kwargs)
