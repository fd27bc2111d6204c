"""A pipeline as the field of its network, which a calibration fits few steps to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.pipelines.arguments import finite_tensor
from fm_diffusers.pipelines.caching import check_exact
from fm_diffusers.pipelines.guidance import as_scale
from fm_diffusers.scheduling.noise import Generators


def field_and_noise(
    pipe: Any,
    num_samples: int,
    generator: Generators | None,
    noise: Tensor | None,
    conditions: dict[str, Any],
) -> tuple[Callable[[Tensor, Tensor, slice], Tensor], Tensor]:
    """Return a pipeline's network as a field of parts of a batch, and standard normal noise.

    Args:
        pipe: the pipeline.
        num_samples: how much noise is drawn if none is given.
        generator: of the noise.
        noise: shape `(n, ...)`.
        conditions: arguments of a call, taken in turn; by default all labels.

    Raises:
        ValueError: for a network with a cache.
    """
    check_exact(pipe.network, "a calibration")
    if noise is None:
        noise = pipe.prepare_latents(num_samples, generator, None) / pipe.init_noise_sigma
    else:
        noise = finite_tensor("noise", noise, "it is what trajectories begin with")
        noise = pipe.prepare_latents(len(noise), None, noise)
    if conditions.get("class_labels") is None:
        conditions = conditions | {"class_labels": list(range(pipe.num_classes)) or None}
    asked = pipe.asking(**conditions).cycled(len(noise))
    pipe.check_inputs(asked)
    scale = as_scale(asked, "a calibration")
    with torch.no_grad():
        condition = pipe.encode_condition(asked)
    each = None if condition is None else condition.unflatten(0, (-1, len(noise)))

    def field(x: Tensor, t: Tensor, part: slice) -> Tensor:
        timestep = pipe.scheduler.to_timestep(t).to(x.device, torch.float32)
        of_part = None if each is None else each[:, part].flatten(0, 1)
        return pipe.predict(x, timestep, of_part, scale)

    return field, noise
