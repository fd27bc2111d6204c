r"""Step caches of diffusers on our networks: layers that are not computed anew at every step.

What a layer adds to its input changes little from one step to the next,

.. math:: f_l(h_n) - h_n \approx f_l(h_{n-1}) - h_{n-1},

so that a network may keep it, or extrapolate it, and leave the layer out. diffusers does this by
hooks on the layers, each with a memory, and gives `enable_cache` to networks with `CacheMixin`.
`DiTTransformer2DModel`, `UNet2DModel` and `UNet2DConditionModel` lack it (in 0.42): importing this
module adds it to the bases of these classes, with the checks that they need::

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    images = pipe([3, 7], guidance_scale=2.0).images
    pipe.transformer.disable_cache()

A memory is that of one trajectory. With guidance there are two, with and without the condition: a
network with memories that go by a name is asked for each apart, within `trajectory`. And it is
that of one call: `remembered` empties it before and after.

References: Liu et al., "From Reusable to Forecastable: Accelerating Diffusion Models with
TaylorSeers", https://arxiv.org/abs/2503.06923; Ma et al., "MagCache: Fast Video Generation with
Magnitude-Aware Cache", https://arxiv.org/abs/2506.09045; Zhao et al., "Real-Time Video Generation
with Pyramid Attention Broadcast", https://arxiv.org/abs/2408.12588.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from diffusers import CacheMixin, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    ModelHook,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import nn

from fm_diffusers.diffusers_internals import (
    StateManager,
    child_hooks,
    give_base,
    is_stateful,
)

ASKED_HOOK = "asked_with_cache"
#: Names of classes of layers of U-Nets that return more than a tensor.
RETURN_TUPLES = re.compile(r"\w*(Down\w*Block|Skip\w*Block|Transformer)2D\w*")


class AskedHook(ModelHook):
    """What knows at which timestep a network is asked, and for how many samples.

    Memories of attention go by the place in the batch: another batch, after guidance was cut off
    for example, begins them anew.
    """

    timestep: float
    batch: int | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Look at the samples and the timestep, the first two arguments."""
        if self.batch not in (None, len(args[0])) and not goes_by_name(module):
            HookRegistry.check_if_exists_or_initialize(module).reset_stateful_hooks()
        self.batch, self.timestep = len(args[0]), args[1].flatten()[0].item()
        return args, kwargs


def needs_blocks(least: int) -> Callable[[nn.Module, Any], str | None]:
    """Return the check of a cache of what the blocks after the first add, one after the other."""

    def check(network: nn.Module, config: Any) -> str | None:
        blocks = len(getattr(network, "transformer_blocks", ()))
        if blocks >= least:
            return None
        return (
            f"it leaves out what follows in a row of at least {least} transformer blocks, and "
            f"here are {blocks}: a U-Net takes TaylorSeerCacheConfig, any network fewer steps"
        )

    return check


def needs_layers(network: nn.Module, config: TaylorSeerCacheConfig) -> str | None:
    """Return why there is nothing to extrapolate."""
    layers = dict(network.named_modules())

    def matched(patterns: list[str] | None) -> set[str]:
        return {n for n in layers if any(re.fullmatch(p, n) for p in patterns or ())}

    kept, skipped = matched(config.cache_identifiers), matched(config.skip_predict_identifiers)
    hooked = sorted(kept | skipped)
    tuples = [n for n in hooked if RETURN_TUPLES.fullmatch(type(layers[n]).__name__)]
    if tuples:
        return (
            f"it takes layers that return a tensor, and {tuples} return tuples: name their parts"
        )
    if kept - skipped and not config.use_lite_mode:
        return None
    blocks = r"transformer_blocks\.\d+\.(attn1|ff)" if is_dit(network) else r".*resnets\.\d+"
    return (
        "no layer has a name that it extrapolates (those by default, and of use_lite_mode, are of "
        f"other networks): pass cache_identifiers, for example [{blocks!r}]"
    )


def needs_one_batch(network: nn.Module, config: FasterCacheConfig) -> str | None:
    """Return why a network cannot be asked without its null half."""
    if config.is_guidance_distilled:
        return None
    return (
        "it would leave out the null half of a guided batch, and does not know which arguments "
        "of the network have one: pass is_guidance_distilled=True, which keeps attention only"
    )


def is_dit(network: nn.Module) -> bool:
    """Return whether a network is a row of transformer blocks."""
    return hasattr(network, "transformer_blocks")


#: What caches need, as functions that return why not; all of them need a layer to hook.
CACHES: dict[type, Callable[[nn.Module, Any], str | None]] = {
    FirstBlockCacheConfig: needs_blocks(2),
    MagCacheConfig: needs_blocks(1),
    TaylorSeerCacheConfig: needs_layers,
    PyramidAttentionBroadcastConfig: lambda network, config: None,
    FasterCacheConfig: needs_one_batch,
}


class StepCached(CacheMixin):
    """What enables diffusers' caches on a network, and refuses those that would do nothing."""

    def enable_cache(self, config: Any) -> None:
        """Enable a cache, as diffusers does; by default it learns the timestep by itself.

        Args:
            config: of the cache, of a class in `CACHES`.

        Raises:
            ValueError: for a cache that this network cannot have, saying why.
        """
        name, network = type(config).__name__, type(self).__name__
        if type(config) not in CACHES:
            known = [kind.__name__ for kind in CACHES]
            raise ValueError(f"the cache of a {network} must be one of {known}, got {name}")
        reason = CACHES[type(config)](self, config)
        if reason is not None:
            raise ValueError(f"{name} cannot work on {network}: {reason}")
        asked, hooks = AskedHook(), len(layer_hooks(self))
        if getattr(config, "current_timestep_callback", asked) is None:
            config = replace(config, current_timestep_callback=lambda: asked.timestep)
        super().enable_cache(config)
        registry = HookRegistry.check_if_exists_or_initialize(self)
        registry.register_hook(asked, ASKED_HOOK)  # the last is the first to be called
        if len(layer_hooks(self)) == hooks:
            self.disable_cache()
            raise ValueError(
                f"{name} found no layer of {network} that it could keep: name some that are "
                "there, in its *_identifiers"
            )

    def disable_cache(self) -> None:
        """Remove the cache."""
        super().disable_cache()
        registry = HookRegistry.check_if_exists_or_initialize(self)
        registry.remove_hook(ASKED_HOOK, recurse=False)


for network in (DiTTransformer2DModel, UNet2DModel, UNet2DConditionModel):
    give_base(network, StepCached, unless=CacheMixin)


def layer_hooks(network: nn.Module) -> list[ModelHook]:
    """Return the hooks of diffusers on the layers of a network, not on itself."""
    HookRegistry.check_if_exists_or_initialize(network).invalidate_child_registries_cache()
    return known_hooks(network)


def known_hooks(network: nn.Module) -> list[ModelHook]:
    """Return the hooks that `layer_hooks` has found, without going through all layers again."""
    return child_hooks(network)


def goes_by_name(network: nn.Module) -> bool:
    """Return whether a network has memories by the name of a trajectory: one is asked at a time.

    Others (of attention) go by the place in the batch, which is then that of guidance, as without
    a cache. It is asked at every step, of the hooks that were there when the call began.
    """
    return any(
        isinstance(value, StateManager)
        for hook in known_hooks(network)
        for value in vars(hook).values()
    )


def trajectory(network: nn.Module, name: str) -> AbstractContextManager[None]:
    """Return what names the trajectory that a network is asked for meanwhile.

    Args:
        network: with or without a cache.
        name: `cond` or `uncond`.
    """
    return CacheMixin.cache_context(network, name)


def check_exact(network: nn.Module, what: str) -> None:
    """Raise a `ValueError` for a network with a cache where `what` needs the network itself."""
    if any(map(is_stateful, layer_hooks(network))):
        raise ValueError(
            f"{what} needs the network itself, at any time, but a cache keeps what it computed at "
            "another: call disable_cache of the network first"
        )


@contextmanager
def remembered(network: nn.Module, evaluations: int) -> Iterator[None]:
    """Let the memories of a network begin and end with a call.

    Args:
        network: with or without a cache.
        evaluations: how often the network is asked for each trajectory.

    Raises:
        ValueError: for a cache that was made for another number of evaluations.
    """
    hooks = layer_hooks(network)
    for config in {id(c): c for h in hooks if (c := vars(h).get("config"))}.values():
        if isinstance(config, MagCacheConfig) and config.num_inference_steps != evaluations:
            raise ValueError(
                f"num_inference_steps of the MagCacheConfig must be {evaluations}, the "
                f"evaluations of this call, got {config.num_inference_steps}: its mag_ratios are "
                "one for each evaluation; disable_cache and enable it again"
            )
    if not hooks:
        yield
        return
    registry = HookRegistry.check_if_exists_or_initialize(network)
    registry.reset_stateful_hooks()
    try:
        yield
    finally:
        registry.reset_stateful_hooks()
