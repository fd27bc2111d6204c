"""Guiders that make a network worse by hooks on its layers, for one prediction at a time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.guiders import BaseGuidance
from torch import nn

from fm_diffusers.diffusers_internals import prepared, tell_prepared

#: Predictions that guiders ask for, in the order in which they count them.
NUMBERS = {"pred_cond": 1, "pred_uncond": 2, "pred_cond_skip": 3, "pred_cond_seg": 3}


def own_copy(guider: BaseGuidance) -> BaseGuidance:
    """Return a guider in the state of before a loop, whose steps leave the other alone."""
    own = copy.copy(guider)
    own.set_state(None, None, None)
    for name, value in vars(own).items():
        if name.endswith("_config") and isinstance(value, list):
            setattr(own, name, [_listed(config) for config in value])
    return own


def _listed(config: Any) -> Any:
    """Return the configuration of skipped layers with a list of them, as hooks want it.

    Guiders that are told `layers=[7]` hand on the number.
    """
    own = copy.copy(config)
    own.indices = [own.indices] if isinstance(own.indices, int) else own.indices
    return own


@contextmanager
def hooked(guider: BaseGuidance, network: nn.Module, prediction: str) -> Iterator[None]:
    """Let a guider make the network worse for one prediction, and restore it afterwards.

    A guider counts which prediction it prepares, but some count wrongly where one is left out, or
    not at all: so they are told.
    """
    number = NUMBERS[prediction]
    tell_prepared(guider, number - 1)
    try:
        guider.prepare_models(network)
        if prepared(guider) < number:
            tell_prepared(guider, number)
            guider.prepare_models(network)
        yield
    finally:
        tell_prepared(guider, number)
        guider.cleanup_models(network)
