"""How a modular pipeline loads its components: what cannot be loaded raises.

diffusers writes a warning and goes on without, and the call ends where the component is missing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fm_diffusers.files import read_json
from fm_diffusers.pipelines.lora import LoraLoader
from fm_diffusers.pipelines.saved import check_files, check_loaded


class ModularLoader(LoraLoader):
    """What a modular pipeline of ours loads, to stand before `ModularPipeline`."""

    def load_components(
        self, names: list[str] | str | None = None, workflow: str | None = None, **kwargs: Any
    ) -> None:
        """Load components; for arguments see diffusers.

        Raises:
            ValueError: for components that cannot be loaded, or not without harm; see
                `pipelines.saved`.
        """
        wanted = [names] if isinstance(names, str) else names
        asked = dict(self._places(wanted)) if workflow is None else {}
        for place in asked.values():
            if place.is_dir():
                check_files(place, pickles=kwargs.get("use_safetensors") is False)
        super().load_components(names, workflow, **kwargs)
        if lost := [name for name in asked if getattr(self, name, None) is None]:
            raise ValueError(
                f"{asked[lost[0]]} cannot be read, nor be the {lost[0]} of this pipeline: the "
                "warning before this says why; update_components sets another"
            )
        check_loaded(self._pretrained_model_name_or_path, self.components)

    def _places(self, names: list[str] | None) -> Iterator[tuple[str, Path]]:
        """Yield the places of the components that are to be loaded, by name."""
        for name, spec in self._component_specs.items():
            place = spec.pretrained_model_name_or_path
            if place and spec.default_creation_method == "from_pretrained":
                if name in names if names is not None else getattr(self, name, None) is None:
                    yield name, Path(str(place), spec.subfolder or "")

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        return read_json(json_file)
