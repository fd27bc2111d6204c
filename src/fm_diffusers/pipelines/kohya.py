r"""LoRA files with kohya's names, which most trainers of Stable Diffusion write.

A layer is named by its path with underscores for dots, after the component's prefix, and has

.. math:: W' = W + \frac{\alpha}{r} B A

as `lora_down.weight` (A), `lora_up.weight` (B) and `alpha`, which is the rank r where it is left
out; every layer may have its own. Underscores do not say where dots were, so a name is looked up
among the layers of the network that is there. Names of the original Stable Diffusion
(`input_blocks_1_1_...`) go through diffusers' own converters first.

Reference: https://github.com/kohya-ss/sd-scripts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fm_diffusers.diffusers_internals import (
    convert_unet_lora_key,
    map_sgm_blocks_to_diffusers,
)

#: The components that a prefix can mean.
PREFIXES = {
    "lora_unet_": ("unet", "transformer"),
    "lora_transformer_": ("transformer",),
    "lora_te1_": ("text_encoder",),
    "lora_te_": ("text_encoder",),
}

#: What makes a layer, and what else may be said of it.
WEIGHTS, OPTIONAL = {"lora_down.weight", "lora_up.weight"}, {"alpha"}

#: Names of the original Stable Diffusion, and diffusers' for the same blocks.
ORIGINAL = ("input_blocks", "middle_block", "output_blocks")
CONVERTED = ("down_blocks", "mid_block", "up_blocks")


def is_kohya(layers: dict[str, Tensor]) -> bool:
    """Whether a state dict has kohya's names, for one of its layers at least."""
    return any(key.startswith(("lora_te2_", *PREFIXES)) for key in layers)


def from_kohya(
    layers: dict[str, Tensor], networks: dict[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `save_lora_weights` would have written: layers by its names, and its metadata.

    Args:
        layers: by kohya's names.
        networks: those that can have adapters, by the name of the component.

    Raises:
        ValueError: for layers that are not here, or whose weights are others than those of a LoRA;
            it names them.
    """
    known = {name: _flattened(network) for name, network in networks.items()}
    named: dict[str, dict[str, Tensor]] = {}
    for key, weight in _renamed(layers, networks).items():
        layer, _, what = key.partition(".")
        named.setdefault(layer, {})[what] = weight
    found: dict[str, Tensor] = {}
    config: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    for name, parts in named.items():
        component, there = _find(name, known)
        finite = parts.get("alpha", torch.zeros(())).isfinite().all()
        if there is None or not finite or not WEIGHTS <= parts.keys() <= WEIGHTS | OPTIONAL:
            wrong += [f"{name}.{what}" for what in sorted(parts)]
            continue
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        place, rank = f"{component}.{there}", len(down)
        found |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
        own = config.setdefault(component, {"rank_pattern": {}, "alpha_pattern": {}})
        # the sign says that the name is whole, not the end of one
        own["rank_pattern"][f"^{there}"] = rank
        own["alpha_pattern"][f"^{there}"] = float(parts.get("alpha", rank))
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights by kohya's names belong to no layer of {sorted(networks)}, or "
            f"are not lora_down, lora_up and a finite alpha of one: {', '.join(wrong[:8])}"
            f"{', ...' if len(wrong) > 8 else ''}; load a LoRA of this network, or take them out"
        )
    metadata: dict[str, Any] = {}
    for component, own in config.items():
        layers_of = [layer.removeprefix("^") for layer in own["rank_pattern"]]
        own |= {"r": next(iter(own["rank_pattern"].values())), "target_modules": layers_of}
        metadata |= {f"{component}.{key}": value for key, value in own.items()}
    return found, metadata


def _flattened(network: nn.Module) -> dict[str, str]:
    """Return the names of a network's layers by kohya's."""
    return {name.replace(".", "_"): name for name, _ in network.named_modules() if name}


def _find(name: str, known: dict[str, dict[str, str]]) -> tuple[str, str | None]:
    """Return the component and layer that a name of kohya's means; None if it is not here."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    layer = name.removeprefix(prefix)
    for component in PREFIXES.get(prefix, ()):
        layers = known.get(component, {})
        # transformers has taken a level out of CLIP's names
        for candidate in (layer, layer.removeprefix("text_model_"), _original(name)):
            if candidate in layers:
                return component, layers[candidate]
    return "", None


def _original(name: str) -> str:
    """Return what diffusers calls a layer of the original Stable Diffusion, without dots."""
    converted = convert_unet_lora_key(f"{name}.lora_down.weight").replace(".processor", "")
    return converted.replace("_lora.", ".lora.").split(".lora.")[0].replace(".", "_")


def _renamed(layers: dict[str, Tensor], networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return the layers with the blocks of the original Stable Diffusion counted as diffusers'."""
    config = getattr(networks.get("unet"), "config", None)
    original = any(block in key for key in layers for block in ORIGINAL)
    # diffusers would drop the ones where both are
    both = original and any(block in key for key in layers for block in CONVERTED)
    if not original or both or config is None:
        return dict(layers)
    return map_sgm_blocks_to_diffusers(dict(layers), config)
