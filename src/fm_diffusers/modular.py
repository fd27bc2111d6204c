r"""`FlowMatchingBlocks`: the pipeline as blocks of diffusers' modular pipelines.

The blocks are `condition` (labels or prompts), `denoise` (timesteps, noise, and the loop of
`before_denoiser`, `denoiser` and `after_denoiser`) and `decode`. Each calls what
`FlowMatchingPipeline` calls, so that the same generator gives the same images, and others can
stand before, behind or in the place of it::

    blocks = FlowMatchingBlocks()
    loop = blocks.sub_blocks["denoise"].sub_blocks["denoise"]
    loop.sub_blocks.insert("mine", MyBlock(), 2)  # sees noise_pred before the step
    pipe = blocks.init_pipeline("user/flow-mnist")
    pipe.load_components()
    images = pipe(class_labels=[3, 7], guidance_scale=2.0, output="images")

diffusers finds the classes of modular pipelines by their names among its own: importing this
module adds ours to them. So `ModularPipeline.from_pretrained("user/flow-mnist",
trust_remote_code=True)` works too, which imports this module by the saved pipeline's files.
"""

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.modular_pipelines import (
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from fm_diffusers.diffusers_internals import MODULAR_PIPELINE_MAPPING
from fm_diffusers.files import read_json, reading
from fm_diffusers.pipelines.arguments import check_output
from fm_diffusers.pipelines.blocks.base import MODEL_NAME, outputs
from fm_diffusers.pipelines.blocks.loop import DenoiseStep
from fm_diffusers.pipelines.blocks.parts import OWN
from fm_diffusers.pipelines.blocks.steps import ConditionStep, DecodeStep
from fm_diffusers.pipelines.hub import with_our_components, write_blocks
from fm_diffusers.pipelines.modular_index import (
    AUTO_MAP,
    BLOCKS,
    check_modular,
    modular_index,
    resolved,
    write_json,
)
from fm_diffusers.pipelines.modular_loading import ModularLoader


class FlowMatchingBlocks(SequentialPipelineBlocks):
    """Image generation by flow matching: by class, by text or unconditional, pixels or codes.

    `blocks.doc` says what they need, are told and write down; `init_pipeline(folder or Hub id)`
    makes a `FlowMatchingModularPipeline` of them.
    """

    model_name = MODEL_NAME
    block_classes = [ConditionStep, DenoiseStep, DecodeStep]
    block_names = ["condition", "denoise", "decode"]

    @property
    def description(self) -> str:
        """What the blocks do."""
        return "Image generation by flow matching: by class, by text or unconditional."

    @property
    def outputs(self) -> list[OutputParam]:
        """What comes out."""
        return outputs(("images",))

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the blocks."""
        check_output(state.get("output_type", "pil"), True)  # before an hour of sampling
        return super().__call__(components, state)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        return read_json(json_file)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save which blocks these are, for `ModularPipelineBlocks.from_pretrained`.

        A class of one's own is saved by its name: its file is to be copied there.

        Raises:
            ValueError: for other blocks than those of this class, which would be lost.
        """
        if type(self) is not FlowMatchingBlocks:
            file = type(self).__module__.rsplit(".", 1)[-1]
            auto_map = {name: f"{file}.{type(self).__name__}" for name in AUTO_MAP}
        elif changed := changed_blocks(self):
            raise ValueError(
                f"the blocks at {changed} are not those of {BLOCKS} and would be lost: save a "
                "class of your own, whose block_classes has them, with its file"
            )
        else:
            auto_map = AUTO_MAP
            write_blocks(Path(save_directory))
        self.register_to_config(auto_map=auto_map)
        self.save_config(str(save_directory), **kwargs)


def tree(blocks: ModularPipelineBlocks, place: str = "") -> list[tuple[str, type]]:
    """Return the places and classes of all blocks, in their order."""
    found = [(place, type(blocks))]
    for name, block in blocks.sub_blocks.items():
        found += tree(block, f"{place}.{name}".lstrip("."))
    return found


def changed_blocks(blocks: ModularPipelineBlocks) -> list[str]:
    """Return the places where blocks differ from those of `FlowMatchingBlocks`."""
    ours, theirs = tree(FlowMatchingBlocks()), tree(blocks)
    if ours == theirs:
        return []
    return sorted({place or "blocks" for place, _ in {*ours} ^ {*theirs}}) or ["their order"]


#: Arguments that say where a saved pipeline lies.
WHERE = {"revision", "token", "cache_dir", "force_download", "local_files_only", "proxies"}


class FlowMatchingModularPipeline(ModularLoader, ModularPipeline):
    """The pipeline that `FlowMatchingBlocks` belong to; see diffusers' `ModularPipeline`.

    Components are loaded by `load_components`, replaced by `update_components`, and adapters
    loaded by `load_lora_weights`. A component that lies beside the index that is read has no path
    in it, and is looked for there.
    """

    default_blocks_name = BLOCKS

    def __init__(
        self,
        blocks: ModularPipelineBlocks | None = None,
        pretrained_model_name_or_path: str | Path | None = None,
        components_manager: Any = None,
        collection: str | None = None,
        workflow: str | None = None,
        modular_config_dict: dict[str, Any] | None = None,
        config_dict: dict[str, Any] | None = None,
        **where: Any,
    ) -> None:
        if unknown := sorted(set(where) - WHERE):
            raise ValueError(
                f"a modular pipeline is made without {unknown}: where to look is said by "
                f"{', '.join(sorted(WHERE))}; dtype and variant go to load_components"
            )
        source = pretrained_model_name_or_path
        source = None if source is None else str(source)
        if source is not None and modular_config_dict is None and config_dict is None:
            with reading(source):
                modular_config_dict, config_dict = self._load_pipeline_config(source, **where)
        if modular_config_dict is None and config_dict is not None:
            modular_config_dict = modular_index(with_our_components(config_dict))
        if modular_config_dict is not None:
            check_modular(source, modular_config_dict)
            modular_config_dict = resolved(modular_config_dict, source, where.get("revision"))
        sharing = (components_manager, collection, workflow)
        with reading(source):
            super().__init__(blocks, source, *sharing, modular_config_dict)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        trust_remote_code: bool | None = None,
        components_manager: Any = None,
        collection: str | None = None,
        workflow: str | None = None,
        **where: Any,
    ) -> Any:
        """Make a pipeline of a folder or a Hub id, whose components `load_components` loads.

        Args:
            pretrained_model_name_or_path: what `FlowMatchingPipeline` or this class saved.
            trust_remote_code: whether blocks of the repository's own may be run; ours, which are
                installed, need no trust.
            components_manager: shares components between pipelines.
            collection: name of its components in the manager.
            workflow: of blocks that declare some.
            **where: to look: `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`, `proxies`.

        Raises:
            ValueError: for other arguments, or blocks of the repository's own without trust.
        """
        source = str(pretrained_model_name_or_path)
        options = (components_manager, collection, workflow)
        try:
            saved = FlowMatchingBlocks.load_config(source, **where)
        except OSError:  # saved without blocks
            saved = {"auto_map": AUTO_MAP}
        if saved.get("auto_map") == AUTO_MAP:
            return cls(FlowMatchingBlocks(), source, *options, **where)
        with reading(source):
            return super().from_pretrained(source, trust_remote_code, *options, **where)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the components that are loaded; for arguments see diffusers.

        Warns of blocks and components that a pipeline of this class comes without when it is
        loaded: blocks of one's own, and a guider or an image processor with other settings.
        """
        if lost := changed_blocks(self._blocks) + self._changed_components():
            warnings.warn(
                f"a modular pipeline is saved without its blocks and guiders: make it of {lost} "
                f"again by blocks.init_pipeline({str(save_directory)!r}) and update_components",
                UserWarning,
                stacklevel=2,
            )
        options = {"overwrite_modular_index": True} | kwargs
        super().save_pretrained(str(Path(save_directory)), **options)

    def _changed_components(self) -> list[str]:
        left_out = {*OWN} & {*self.config_component_names}
        kept = [name for name in sorted(left_out) if getattr(self, name, None) is not None]
        return [name for name in kept if not _is_usual(getattr(self, name), *OWN[name])]

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the index of the pipeline, and beside it which blocks it is made of if ours."""
        file, index = Path(json_file_path), json.loads(self.to_json_string())
        for value in index.values():
            where = value[2] if isinstance(value, list) and len(value) == 3 else {}
            if where.get("pretrained_model_name_or_path") == str(file.parent):
                where["pretrained_model_name_or_path"] = None
        write_json(file, index)
        if not changed_blocks(self._blocks):
            write_blocks(file.parent)


def _is_usual(component: Any, cls: type[Any], config: dict[str, Any]) -> bool:
    """Return whether a component is the one that blocks bring along."""
    parameters = inspect.signature(cls).parameters.values()
    usual = {p.name: p.default for p in parameters} | config
    return type(component) is cls and all(component.config[k] == v for k, v in usual.items())


for _cls in (FlowMatchingBlocks, FlowMatchingModularPipeline):
    setattr(diffusers, _cls.__name__, _cls)
MODULAR_PIPELINE_MAPPING[MODEL_NAME] = lambda config=None: FlowMatchingModularPipeline.__name__
