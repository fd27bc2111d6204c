"""What we rely on in diffusers, accelerate and torch beyond what they promise, a test for each.

A release that changes one of these fails here, by its name. Where they can be gathered, they are
in `fm_diffusers.diffusers_internals`; the others are in the two tables below, which are complete:
a test reads the source.
"""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import diffusers
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DiffusionPipeline, ModularPipeline
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.utils.hub_utils import PushToHubMixin
from safetensors.torch import save_file
from torch import nn

import fm_diffusers
from fm_diffusers import GaussianFlowScheduler, diffusers_internals
from fm_diffusers.pipelines.guidance import GUIDERS

ROOT = Path(fm_diffusers.__file__).parent
#: What classes of ours override of their base classes in other packages, beside what is public.
OVERRIDDEN = {
    "FlowMatchingBlocks": {"_dict_from_json_file"},
    "FlowMatchingPipeline": {"_optional_components"},
    "GaussianFlowScheduler": {"_compatibles"},
    "LoraLoader": {"_lora_loadable_modules"},
    "SavedPipeline": {"_dict_from_json_file", "_upload_folder"},
}
#: Private names of other packages' objects that are used where they are, and whose they are. (And
#: `torch.Tensor._base`; one of our own classes has a `_base` too.)
READ = {
    "_actions": "argparse.ArgumentParser",
    "_blocks": "ModularPipeline",
    "_component_specs": "ModularPipeline",
    "_format_args": "argparse.HelpFormatter",
    "_get_formatter": "argparse.ArgumentParser",
    "_get_signature_keys": "DiffusionPipeline",
    "_pretrained_model_name_or_path": "ModularPipeline",
    "_cdata": "torch.UntypedStorage",
    "_execution_device": "DiffusionPipeline, ModularPipeline",
    "_load_pipeline_config": "ModularPipeline",
    "_save_lora_weights": "LoraBaseMixin",
    "_standard_gamma": "torch",
    "_asdict": "NamedTuple",
    "_replace": "NamedTuple",
}


def sources():
    files = [file for file in sorted(ROOT.rglob("*.py")) if file.stem != "diffusers_internals"]
    return {file: ast.parse(file.read_text()) for file in files}


def own_names(tree):
    """Yield the private names that a module gives to what is its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if getattr(node.value, "id", "") == "self" else []


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_others_are_listed():
    trees = sources()
    own = {name for tree in trees.values() for name in own_names(tree)}
    read = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                read.setdefault(node.attr, f"{file.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and not node.module.startswith("fm_diffusers"):
                taken = [alias.name for alias in node.names if is_private(alias.name)]
                assert not taken, f"{file}: {taken} belong into diffusers_internals"
    assert set(read) == set(READ), {k: v for k, v in read.items() if k not in READ}


def foreign(cls):
    return [
        base for base in cls.__mro__ if base.__module__.split(".")[0] in ("diffusers", "torch")
    ]


def test_private_overrides_are_listed():
    found = {}
    for module in pkgutil.walk_packages([str(ROOT)], "fm_diffusers."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and value.__module__ == module.name:
                theirs = {n for base in foreign(value) for n in vars(base) if is_private(n)}
                if names := {n for n in vars(value) if is_private(n)} & theirs - {"_abc_impl"}:
                    found[name] = names
    assert found == OVERRIDDEN


# --- gathered in diffusers_internals -------------------------------------------------------------


#: What guiders that make a network worse must be told.
LAYERS = {
    "AutoGuidance": {"auto_guidance_layers": [0], "dropout": 1.0},
    "PerturbedAttentionGuidance": {"perturbed_guidance_layers": [0]},
    "SkipLayerGuidance": {"skip_layer_guidance_layers": [0]},
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [0]},
}


@pytest.mark.parametrize("name", sorted(GUIDERS))
def test_guiders_say_whether_and_when_they_act(name):
    guider = getattr(diffusers, name)(**LAYERS.get(name, {}))
    assert diffusers_internals.is_enabled(guider) and diffusers_internals.acts_always(guider)
    guider.set_state(step=3, num_inference_steps=9, timestep=torch.tensor(1.0))
    assert diffusers_internals.step_of(guider) == 3
    assert diffusers_internals.prepared(guider) == 0
    diffusers_internals.tell_prepared(guider, 2)
    assert diffusers_internals.prepared(guider) == 2
    guider.disable()
    assert not diffusers_internals.is_enabled(guider)


def test_guiders_say_which_prediction_they_want():
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=2.0)
    guider.set_state(step=0, num_inference_steps=9, timestep=torch.tensor(1.0))
    batches = guider.prepare_inputs({"condition": (torch.ones(1), torch.zeros(1))})
    told = {diffusers_internals.identifier(batch): batch.condition.item() for batch in batches}
    assert told == {"pred_cond": 1.0, "pred_uncond": 0.0}


class Hook(diffusers.hooks.ModelHook):
    pass


def test_hooks_on_layers_are_found_and_say_whether_they_remember():
    network = nn.Sequential(nn.Linear(1, 1))
    registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize
    assert diffusers_internals.child_hooks(network) == []
    hook = Hook()
    registry(network[0]).register_hook(hook, "mine")
    assert diffusers_internals.child_hooks(network) == []  # it remembers what it has found
    registry(network).invalidate_child_registries_cache()
    assert diffusers_internals.child_hooks(network) == [hook]
    assert not diffusers_internals.is_stateful(hook)


def test_first_block_cache_remembers_in_a_state_manager():
    network = tiny_dit()
    network.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    hooks = diffusers_internals.child_hooks(network)
    held = [v for hook in hooks for v in vars(hook).values()]
    assert any(isinstance(value, diffusers_internals.StateManager) for value in held)
    assert any(map(diffusers_internals.is_stateful, hooks))


def tiny_unet(**kwargs):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return diffusers.UNet2DModel(
        8, 1, 1, block_out_channels=(8,), norm_num_groups=4, **blocks, **kwargs
    )


def tiny_dit():
    sizes = {"num_attention_heads": 1, "attention_head_dim": 4, "norm_num_groups": 1}
    return diffusers.DiTTransformer2DModel(
        **sizes, in_channels=1, num_layers=2, sample_size=4, num_embeds_ada_norm=10
    )


def test_a_lora_is_fetched_by_keywords_with_its_metadata(tmp_path):
    weight = {"unet.a.lora_A.weight": torch.ones(1, 1)}
    save_file(weight, tmp_path / "mine.safetensors", {"format": "pt"})
    names = ("local_files_only", "cache_dir", "force_download", "proxies", "token", "revision")
    layers, metadata = diffusers_internals.fetch_state_dict(
        str(tmp_path),
        "mine.safetensors",
        True,
        **dict.fromkeys((*names, "subfolder", "user_agent")) | {"force_download": False},
        allow_pickle=False,
    )
    assert layers == weight and metadata is None


def test_layers_of_the_original_unet_are_renamed():
    name = "lora_unet_down_blocks_0_attentions_1_proj_in.lora_down.weight"
    assert diffusers_internals.convert_unet_lora_key(name) == (
        "down_blocks.0.attentions.1.proj_in.lora.down.weight"
    )


def test_blocks_of_the_original_unet_are_counted_as_those_of_diffusers():
    name = "lora_unet_input_blocks_4_1_proj_in.lora_down.weight"
    config = FrozenDict({"layers_per_block": 2})
    mapped = diffusers_internals.map_sgm_blocks_to_diffusers({name: torch.ones(1)}, config)
    assert [*mapped] == ["lora_unet_input_blocks_1_attentions_0_proj_in.lora_down.weight"]


def test_modular_pipelines_are_found_by_functions_of_their_config():
    table = diffusers_internals.MODULAR_PIPELINE_MAPPING
    assert table["stable-diffusion-xl"]() == "StableDiffusionXLModularPipeline"
    assert table["stable-diffusion-xl"]({}) == "StableDiffusionXLModularPipeline"


def test_networks_without_caches_and_adapters_have_them_from_us():
    for cls in (diffusers.UNet2DModel, diffusers.DiTTransformer2DModel):
        assert issubclass(cls, CacheMixin)
        assert issubclass(cls, diffusers.loaders.PeftAdapterMixin)


# --- overridden ----------------------------------------------------------------------------------


def test_components_may_be_missing_where_a_pipeline_says_so():
    assert DiffusionPipeline._optional_components == []
    assert "_optional_components" in inspect.getsource(DiffusionPipeline.save_pretrained)


def test_schedulers_name_what_they_replace():
    names = {cls.__name__ for cls in GaussianFlowScheduler().compatibles}
    assert {"DDIMScheduler", "FlowMatchEulerDiscreteScheduler"} <= names


def test_loras_ask_a_pipeline_for_its_modules():
    assert "_lora_loadable_modules" in inspect.getsource(LoraBaseMixin.get_list_adapters)
    names = list(inspect.signature(LoraBaseMixin._save_lora_weights).parameters)
    assert names[:3] == ["save_directory", "lora_layers", "lora_metadata"]


def test_an_index_is_read_by_the_class(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": ["file", "FlowMatchingPipeline"]}')
    config = fm_diffusers.FlowMatchingPipeline.load_config(str(tmp_path))
    assert config["_class_name"] == "FlowMatchingPipeline"
    assert len(DDIMScheduler.extract_init_dict({"_class_name": "DDIMScheduler"})) == 3


def test_push_to_hub_uploads_by_one_method():
    names = list(inspect.signature(PushToHubMixin._upload_folder).parameters)
    assert names[:4] == ["self", "working_dir", "repo_id", "token"] and "subfolder" in names
    assert "self._upload_folder(" in inspect.getsource(PushToHubMixin.push_to_hub)
    assert "self._upload_folder(" in inspect.getsource(DiffusionPipeline.save_pretrained)


# --- read where they are -------------------------------------------------------------------------


class Configured(ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, size=3, other=4):
        pass


def test_a_configuration_is_kept_in_one_attribute_with_the_names_of_its_defaults():
    made = Configured(size=5)
    assert made._internal_dict is made.config and isinstance(made.config, FrozenDict)
    assert made.config["_use_default_values"] == ["other"]


def test_pipelines_say_where_they_run():
    assert DiffusionPipeline._execution_device.fget and ModularPipeline._execution_device.fget
    pipe = fm_diffusers.FlowMatchingPipeline(unet=tiny_unet(), scheduler=GaussianFlowScheduler())
    assert pipe._execution_device == torch.device("cpu")


def test_modular_pipelines_read_one_index_or_the_other(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FlowMatchingPipeline"}')
    modular, plain = ModularPipeline._load_pipeline_config(str(tmp_path))
    assert modular is None and plain["_class_name"] == "FlowMatchingPipeline"
    assert "self._blocks" in inspect.getsource(ModularPipeline.__init__)


def test_views_know_their_base_and_storages_their_address():
    tensor = torch.arange(3.0)
    view = tensor[1]
    assert view._base is tensor
    assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata
    assert view.untyped_storage()._cdata != torch.arange(3.0).untyped_storage()._cdata


def test_gamma_variates_take_a_generator():
    shape = torch.full((4,), 2.0)
    first, second = (
        torch._standard_gamma(shape, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(first, second) and (first > 0).all()


# --- layers that are replaced, and what a prepared loader has ------------------------------------


def test_networks_have_the_layers_that_are_replaced():
    unet = tiny_unet(num_class_embeds=3)
    assert isinstance(unet.class_embedding, nn.Embedding)
    label = tiny_dit().transformer_blocks[0].norm1.emb.class_embedder
    assert type(label).__name__ == "LabelEmbedding"
    assert {"dropout_prob", "num_classes"} <= set(vars(label))
    assert isinstance(label.embedding_table, nn.Embedding)


def test_a_prepared_loader_can_be_told_its_epoch():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(4)), 2)
    assert callable(Accelerator(cpu=True).prepare(loader).set_epoch)
