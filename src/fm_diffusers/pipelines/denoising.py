r"""The loop of a call: its own place, one evaluation of the network after the other.

The network is asked at a timestep, twice where it is guided, and what it predicts is
:math:`u(x|\varnothing) + w\, (u(x|c) - u(x|\varnothing))`, for any kind of prediction.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fm_diffusers.pipelines.caching import goes_by_name, remembered, trajectory
from fm_diffusers.pipelines.outputs import described, is_finite, taken, warn_unless_finite
from fm_diffusers.pipelines.precision import compute_dtype
from fm_diffusers.scheduling.transition import Generators


def predict(
    network: nn.Module,
    scheduler: Any,
    latents: Tensor,
    t: Tensor,
    condition: Tensor | None,
    guidance_scale: float,
) -> Tensor:
    """Return what a network predicts for samples at a timestep, guided.

    Args:
        network: called as `network(sample, timestep, condition, return_dict=False)`.
        scheduler: scales what the network is fed, if it does.
        latents: the samples, shape `(batch, channels, height, width)`.
        t: the timestep.
        condition: one for each sample; with guidance as many null ones before them.
        guidance_scale: w; 1 is no guidance.

    Raises:
        ValueError: if the network returns anything but one prediction for each sample.
    """
    if guidance_scale != 1 and goes_by_name(network):
        both = zip(("uncond", "cond"), condition.chunk(2), strict=True)
        asked = [ask(network, scheduler, latents, t, part, name) for name, part in both]
        return torch.lerp(*asked, guidance_scale)
    guide = guidance_scale != 1
    both = torch.cat([latents] * 2) if guide else latents
    output = ask(network, scheduler, both, t, condition)
    return torch.lerp(*output.chunk(2), guidance_scale) if guide else output


def ask(
    network: nn.Module,
    scheduler: Any,
    latents: Tensor,
    t: Tensor,
    condition: Tensor | None,
    name: str = "cond",
) -> Tensor:
    """Return what a network predicts for samples at a timestep, each with its condition."""
    model_input = latents
    if hasattr(scheduler, "scale_model_input"):  # diffusers' flow schedulers have none
        model_input = scheduler.scale_model_input(model_input, t)
    model_input = model_input.to(compute_dtype(network))
    timesteps = t.expand(len(model_input))  # a DiT takes no other
    with trajectory(network, name):
        output = network(model_input, timesteps, condition, return_dict=False)
    (batch, channels), size = model_input.shape[:2], model_input.shape[2:]
    output = taken(
        output,
        "network",
        ((batch, channels, *size), (batch, 2 * channels, *size)),
        f"one prediction for each of the {batch} samples that it is fed, two an image with "
        "guidance; a second half of the channels is a variance, which is not used",
    )
    return output[:, :channels].to(latents.dtype)


@contextmanager
def alone(pipe: Any) -> Iterator[Any]:
    """Give a call a pipeline of its own: the same components, but a scheduler that steps alone.

    Calls of one pipeline in several threads would otherwise step on from each other's place. What
    a call changes in its scheduler is found in the pipeline's own, all at once, when it has ended:
    `pipe.scheduler.timesteps` are those of the last call.

    Only references are copied: `set_timesteps` makes anew all that a scheduler changes, ours and
    those of diffusers. A call within a call, of the pipeline that a callback is given, leaves the
    scheduler that the outer one is stepping with alone.
    """
    scheduler = pipe.scheduler
    own, own_scheduler = copy.copy(pipe), copy.copy(scheduler)
    before = dict(vars(own_scheduler))
    vars(own).update(scheduler=own_scheduler, _is_a_call=True)
    yield own
    if "_is_a_call" in vars(pipe):
        return
    missing = object()
    after = vars(own_scheduler).items()
    changed = {name: value for name, value in after if value is not before.get(name, missing)}
    vars(scheduler).update(changed)


def denoise(
    pipe: Any,
    latents: Tensor,
    condition: Tensor | None,
    guidance_scale: float,
    generator: Generators | None = None,
    callback: Callable[..., dict[str, Any] | None] | None = None,
    callback_inputs: Sequence[str] = (),
) -> Tensor:
    """Return where samples come to through all timesteps of a pipeline's scheduler.

    Args:
        pipe: the pipeline of this call alone.
        latents: the samples at the first timestep.
        condition: what `pipe.encode_condition` returned.
        guidance_scale: the weight of the condition.
        generator: of an SDE's noise.
        callback: called as `(pipe, index, timestep, tensors)` after every step.
        callback_inputs: names of its tensors.
    """
    takes_noise = "generator" in inspect.signature(pipe.scheduler.step).parameters
    noise = {"generator": generator} if takes_noise else {}
    timesteps, finite = pipe.scheduler.timesteps, []
    memory = remembered(pipe.network, len(timesteps))
    with memory, pipe.progress_bar(total=len(timesteps)) as progress_bar:
        for i, t in enumerate(timesteps):
            output = pipe.predict(latents, t, condition, guidance_scale)
            finite.append(is_finite(output))
            latents = pipe.scheduler.step(output, t, latents, return_dict=False, **noise)[0]
            if callback is not None:
                tensors = {"latents": latents, "prompt_embeds": condition}
                shown = {name: tensors[name] for name in callback_inputs}
                tensors = replaced(callback(pipe, i, t, shown), tensors, visible(pipe))
                latents, condition = tensors["latents"], tensors["prompt_embeds"]
            progress_bar.update()
    warn_unless_finite(finite, timesteps, latents)
    return latents


def visible(pipe: Any) -> list[str]:
    """Return the names of the tensors that a callback can see and replace."""
    return pipe._callback_tensor_inputs[: 1 + (pipe.takes == "text")]


def replaced(returned: Any, tensors: dict[str, Tensor | None], known: list[str]) -> dict[str, Any]:
    """Return the tensors of a step with those that a callback returned in their places.

    Args:
        returned: a dictionary of tensors, or None.
        tensors: what they were.
        known: names that can be replaced.

    Raises:
        ValueError: for something else, other names, or tensors that do not fit.
    """
    returned = {} if returned is None else returned
    if not isinstance(returned, dict) or not set(returned) <= set(known):
        raise ValueError(
            f"callback_on_step_end must return None or a dictionary with tensors of {known}, got "
            f"{described(returned)}"
        )
    for name, value in returned.items():
        old = tensors[name]
        # the states of a prompt may have another number of tokens
        free = (1,) if name == "prompt_embeds" else ()
        fits = isinstance(value, Tensor) and value.is_floating_point()
        fits = fits and value.ndim == old.ndim and value.device == old.device
        if not fits or any(
            value.shape[i] != old.shape[i] for i in range(old.ndim) if i not in free
        ):
            raise ValueError(
                f"{name} that callback_on_step_end returned must be floating-point numbers of "
                f"the shape {tuple(old.shape)} on {old.device}, got {described(value)}"
            )
    return tensors | returned
