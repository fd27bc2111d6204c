r"""What a callback at the end of a step sees, and what it may put in its place.

It sees the samples, the condition (labels or the states of prompts, preceded by as many null ones
where the network is guided), the prediction of the step and the data that it foretells. It may
replace the first two. The condition without its null half ends the guidance, as the official
callbacks of diffusers do it.
"""

from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from fm_diffusers.pipelines.arguments import check_callback
from fm_diffusers.pipelines.outputs import described
from fm_diffusers.scheduler import GaussianFlowScheduler

#: All names, in the order of `diffusers`' attribute `_callback_tensor_inputs`.
TENSORS = ["latents", "prompt_embeds", "class_labels", "model_output", "pred_original_sample"]
#: The condition by what a network takes.
CONDITIONS = {"text": "prompt_embeds", "labels": "class_labels"}


def visible(pipe: Any) -> list[str]:
    """Return the names of the tensors that there are in the calls of a pipeline."""
    hidden = {*CONDITIONS.values()} - {CONDITIONS.get(pipe.takes)}
    if not isinstance(pipe.scheduler, GaussianFlowScheduler):
        hidden.add("pred_original_sample")
    return [name for name in TENSORS if name not in hidden]


def inputs_of(callback: Any, names: Any, pipe: Any) -> Any:
    """Return the names of the tensors that a callback is shown; official ones say it themselves.

    Raises:
        ValueError: for a callback that cannot be called, or tensors that do not exist.
    """
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    check_callback(callback, names, visible(pipe))
    return names


def replaced(
    returned: Any, shown: dict[str, Tensor], latents: Tensor, condition: Tensor | None, takes: str
) -> tuple[Tensor, Tensor | None]:
    """Return samples and condition of the next step: those of this one, or what a callback says.

    Args:
        returned: what the callback returned, a dictionary of tensors or None.
        shown: what it was shown.
        latents: the samples.
        condition: the condition.
        takes: what the network takes.

    Raises:
        ValueError: for something else, names that cannot be replaced, or tensors that do not fit.
    """
    returned = {} if returned is None else returned
    known = ["latents", *(name for kind, name in CONDITIONS.items() if kind == takes)]
    if not isinstance(returned, dict):
        raise ValueError(
            f"callback_on_step_end must return None or a dictionary with tensors of {known}, got "
            f"{described(returned)}"
        )
    changed = {name: value for name, value in returned.items() if value is not shown.get(name)}
    if unknown := [name for name in changed if name not in known]:
        raise ValueError(
            f"callback_on_step_end must return None or a dictionary with tensors of {known}, got "
            f"{unknown}: what a step has predicted cannot be replaced any more"
        )
    for name, value in changed.items():
        if name == "latents":
            latents = fitting(name, value, latents, len(latents))
        else:
            assert condition is not None
            condition = _told(name, value, condition, len(latents))
    return latents, condition


def fitting(name: str, value: Any, old: Tensor, *counts: int) -> Tensor:
    """Return a tensor that a callback put in the place of another.

    Raises:
        ValueError: unless it is of that one's kind, shape and device; the states of a prompt may
            have another number of tokens, and `counts` says how many there may be.
    """
    tokens = (1,) if name == "prompt_embeds" else ()
    kept = [i for i in range(1, old.ndim) if i not in tokens]
    fits = isinstance(value, Tensor) and value.ndim == old.ndim and value.device == old.device
    fits = fits and value.is_floating_point() == old.is_floating_point()
    if not fits or len(value) not in counts or any(value.shape[i] != old.shape[i] for i in kept):
        numbers = "floating-point numbers" if old.is_floating_point() else "integers"
        raise ValueError(
            f"{name} that callback_on_step_end returned must be {numbers} of the shape "
            f"{tuple(old.shape)} on {old.device}, got {described(value)}"
        )
    return value


def _told(name: str, value: Any, old: Tensor, count: int) -> Tensor:
    """Return a condition for every image: with the null ones, or without to end the guidance.

    Official callbacks keep the last condition alone, whatever the number of images.
    """
    last = isinstance(value, Tensor) and len(value) == 1 < count
    if last and torch.equal(old[-count:], old[-1:].expand_as(old[-count:])):
        value = value.expand(count, *value.shape[1:])
    return fitting(name, value, old, count, 2 * count)
