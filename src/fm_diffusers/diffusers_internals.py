"""What we use of diffusers that diffusers does not promise: functions, attributes and places.

They are used through this module alone, and each has a small test in tests/test_hooks.py: a
release that changes one fails there, by its name. What classes of ours override in private of
their base classes, and read of themselves, cannot be gathered here; it is listed in that file.
"""

from typing import Any

from diffusers.guiders import BaseGuidance
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager
from diffusers.loaders.lora_base import _fetch_state_dict as fetch_state_dict
from diffusers.loaders.lora_conversion_utils import (
    _convert_unet_lora_key as convert_unet_lora_key,
)
from diffusers.loaders.lora_conversion_utils import (
    _maybe_map_sgm_blocks_to_diffusers as map_sgm_blocks_to_diffusers,
)
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING
from torch import nn

__all__ = [
    "MODULAR_PIPELINE_MAPPING",
    "StateManager",
    "convert_unet_lora_key",
    "fetch_state_dict",
    "map_sgm_blocks_to_diffusers",
]


def is_enabled(guider: BaseGuidance) -> bool:
    """Return whether a guider acts at all."""
    return guider._enabled


def acts_always(guider: BaseGuidance) -> bool:
    """Return whether a guider acts in all steps of a loop, not in a part of them."""
    return (guider._start, guider._stop) == (0.0, 1.0)


def step_of(guider: BaseGuidance) -> int:
    """Return the step that `set_state` has told a guider."""
    return guider._step


def prepared(guider: BaseGuidance) -> int:
    """Return how many predictions of this step a guider has prepared the network for."""
    return guider._count_prepared


def tell_prepared(guider: BaseGuidance, number: int) -> None:
    """Let a guider believe that it has prepared so many."""
    guider._count_prepared = number


def identifier(batch: Any) -> str:
    """Return which prediction a guider wants of a batch: `pred_cond`, `pred_uncond` and so on."""
    return batch.__guidance_identifier__


def child_hooks(network: nn.Module) -> list[ModelHook]:
    """Return the hooks on the layers of a network, as its registry remembers them."""
    registries = HookRegistry.check_if_exists_or_initialize(network)._get_child_registries()
    return [hook for registry in registries for hook in registry.hooks.values()]


def is_stateful(hook: ModelHook) -> bool:
    """Return whether a hook remembers something from one call of the network to the next."""
    return hook._is_stateful


def give_base(network: type[Any], base: type[Any], unless: type[Any]) -> None:
    """Let a class of diffusers inherit from one more, unless a release has given it that."""
    if not issubclass(network, unless):
        network.__bases__ += (base,)
