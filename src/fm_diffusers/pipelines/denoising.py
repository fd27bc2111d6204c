r"""The loop of a call: its own place, one evaluation of the network after the other.

The network is asked at a timestep, twice where it is guided, and what it predicts is
:math:`u(x|\varnothing) + w\, (u(x|c) - u(x|\varnothing))`, for any kind of prediction.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.pipelines.caching import goes_by_name, remembered, trajectory
from fm_diffusers.pipelines.callbacks import TENSORS, replaced
from fm_diffusers.pipelines.editing import Edit
from fm_diffusers.pipelines.guidance import Guidance
from fm_diffusers.pipelines.outputs import is_finite, taken, warn_unless_finite
from fm_diffusers.pipelines.precision import compute_dtype
from fm_diffusers.pipelines.two_times import advance_of, advance_option, features_of
from fm_diffusers.scheduling.noise import Generators


def predict(
    network: nn.Module,
    scheduler: Any,
    latents: Tensor,
    t: Tensor,
    condition: Tensor | None,
    guidance: float | Guidance = 1.0,
    advance: Tensor | None = None,
) -> Tensor:
    """Return what a network predicts for samples at a timestep, guided.

    Args:
        network: called as `network(sample, timestep, condition, return_dict=False)`.
        scheduler: scales what the network is fed, if it does.
        latents: the samples, shape `(batch, channels, height, width)`.
        t: the timestep.
        condition: one for each sample; with guidance as many null ones before them.
        guidance: the scale w of classifier-free guidance, where 1 is none; or that of a guider. A
            network that has learned guidance is told it.
        advance: how far the step leads, for a flow map; None asks for the slope of the ODE.

    Raises:
        ValueError: if the network returns anything but one prediction for each sample.
    """
    model_input = latents
    if hasattr(scheduler, "scale_model_input"):  # diffusers' flow schedulers have none
        model_input = scheduler.scale_model_input(model_input, t)
    features = features_of(network, advance, guidance, latents)
    guidance = guidance if distilled_guidance(network) is None else 1.0
    ask = partial(asked, network, model_input, t, features=features)
    if isinstance(guidance, Guidance):
        if condition is None or len(condition) <= len(latents):
            return guidance(ask, network, model_input, (None, condition))
        null, told = condition.chunk(2)
        return guidance(ask, network, model_input, (null, told))
    if guidance == 1:
        return ask([condition], ["cond"])[0]
    assert condition is not None
    null, told = ask([*condition.chunk(2)], ["uncond", "cond"])
    return torch.lerp(null, told, guidance)


def asked(
    network: nn.Module,
    x: Tensor,
    t: Tensor,
    conditions: Sequence[Tensor | None],
    names: Sequence[str],
    features: Tensor | None = None,
) -> list[Tensor]:
    """Return what a network predicts for samples under conditions.

    They are one batch, unless the network has a step cache, which remembers each by its name.
    """
    count = len(conditions)
    if count > 1 and goes_by_name(network):
        pairs = zip(conditions, names, strict=True)
        return [asked(network, x, t, [one], [name], features)[0] for one, name in pairs]
    some = [condition for condition in conditions if condition is not None]
    condition = None if conditions[0] is None else torch.cat(some)
    model_input = torch.cat([x] * count) if count > 1 else x
    model_input = model_input.to(compute_dtype(network))
    timesteps = t.expand(len(model_input))  # a DiT takes no other
    told = {} if features is None else {"timestep_cond": torch.cat([features] * count)}
    with trajectory(network, names[-1]):
        output = network(model_input, timesteps, condition, **told, return_dict=False)
    (batch, channels), size = model_input.shape[:2], model_input.shape[2:]
    output = taken(
        output,
        "network",
        ((batch, channels, *size), (batch, 2 * channels, *size)),
        f"one prediction for each of the {batch} samples that it is fed, two an image with "
        "guidance; a second half of the channels is a variance, which is not used",
    )
    return [*output[:, :channels].to(x.dtype).chunk(count)]


@contextmanager
def alone(pipe: Any) -> Iterator[Any]:
    """Give a call a pipeline of its own: the same components, but a scheduler that steps alone.

    Calls of one pipeline in several threads would otherwise step on from each other's place. What
    a call changes in its scheduler is found in the pipeline's own, all at once, when it has ended:
    `pipe.scheduler.timesteps` are those of the last call, and so are `pipe.guidance_scale` and
    `pipe.num_timesteps`.

    Only references are copied: `set_timesteps` makes anew all that a scheduler changes, ours and
    those of diffusers. A call within a call, of the pipeline that a callback is given, leaves the
    scheduler that the outer one is stepping with alone.
    """
    scheduler = pipe.scheduler
    own, own_scheduler = copy.copy(pipe), copy.copy(scheduler)
    before = dict(vars(own_scheduler))
    vars(own).update(scheduler=own_scheduler, _is_a_call=True, _calls=[], _interrupted=False)
    pipe._calls.append(own)
    try:
        yield own
    finally:
        pipe._calls.remove(own)
    if "_is_a_call" in vars(pipe):
        return
    missing = object()
    after = vars(own_scheduler).items()
    changed = {name: value for name, value in after if value is not before.get(name, missing)}
    vars(scheduler).update(changed)
    vars(pipe).update({name: vars(own)[name] for name in LIFE if name in vars(own)})


def noise_option(scheduler: Any, generator: Generators | None) -> dict[str, Any]:
    """Return how a scheduler's `step` is told the generator; some of diffusers' take none."""
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generator} if takes_noise else {}


#: What a pipeline says of its last call.
LIFE = ("_guidance_scale", "_guided", "_num_timesteps")


def denoise(
    pipe: Any,
    latents: Tensor,
    condition: Tensor | None,
    guidance: float | Guidance = 1.0,
    generator: Generators | None = None,
    callback: Callable[..., dict[str, Any] | None] | None = None,
    callback_inputs: Sequence[str] = (),
    edit: Edit | None = None,
) -> Tensor:
    """Return where samples come to through the timesteps of a pipeline's scheduler.

    Args:
        pipe: the pipeline of this call alone.
        latents: the samples at the first timestep.
        condition: what `pipe.encode_condition` returned.
        guidance: the weight of the condition, or that of a guider.
        generator: of an SDE's noise.
        callback: called as `(pipe, index, timestep, tensors)` after every step.
        callback_inputs: names of its tensors.
        edit: the image that is changed, which says where to begin and what to hold.
    """
    noise = noise_option(pipe.scheduler, generator)
    learned = distilled_guidance(pipe.network) is not None
    begin, finite = 0 if edit is None else edit.begin, []
    timesteps = pipe.scheduler.timesteps[begin:]
    guider = guidance.guider if isinstance(guidance, Guidance) else None
    pipe._num_timesteps = len(timesteps)
    pipe._guidance_scale = guidance if guider is None else guider.guidance_scale
    memory = remembered(pipe.network, len(timesteps))
    with memory, pipe.progress_bar(total=len(timesteps)) as progress_bar:
        for i, t in enumerate(timesteps):
            if pipe.interrupt:
                break
            pipe._guided = condition is not None and len(condition) > len(latents)
            now = pipe._guidance_scale if pipe._guided or learned else 1.0
            if isinstance(guidance, Guidance):
                now = guidance.at(i, timesteps, pipe._guidance_scale, pipe._guided)
            advance = advance_of(pipe.scheduler, pipe.network, i + begin, t)
            output = pipe.predict(latents, t, condition, now, advance)
            finite.append(is_finite(output))
            options = noise | advance_option(pipe.scheduler, advance)
            stepped = pipe.scheduler.step(output, t, latents, return_dict=False, **options)
            latents = stepped[0] if edit is None else edit.hold(pipe.scheduler, stepped[0], i + 1)
            if callback is not None:
                found = (latents, condition, condition, output, *stepped[1:2])
                tensors = dict(zip(TENSORS, found, strict=False))
                shown = {name: tensors[name] for name in callback_inputs}
                returned = callback(pipe, i, t, dict(shown))
                latents, condition = replaced(returned, shown, latents, condition, pipe.takes)
            progress_bar.update()
    if finite:
        warn_unless_finite(finite, timesteps, latents)
    return latents
