r"""The log-density of images under a pipeline's sampling ODE, with its error.

See `fm_diffusers.likelihood`, of which this is the reading for a pipeline: it encodes the images,
asks the network under its conditions, and gives nats, their standard errors and bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from fm_diffusers.fields import Field
from fm_diffusers.likelihood import dequantize, log_prob, on_grid
from fm_diffusers.likelihood.density import standard_error
from fm_diffusers.likelihood.integrators import adaptive
from fm_diffusers.likelihood.quantization import in_bits
from fm_diffusers.pipelines.caching import check_exact
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.guidance import as_scale
from fm_diffusers.pipelines.images import as_bytes, as_pixels
from fm_diffusers.pipelines.networks import check_size, warn_of_size
from fm_diffusers.scheduler import GaussianFlowScheduler


@dataclass
class LogLikelihoodOutput(BaseOutput):
    r"""Log-densities of images.

    Attributes:
        log_likelihood: :math:`\log p(x)` in nats of each image's samples (pixels in [-1, 1], or
            codes), shape `(n,)`, float64 on the CPU.
        standard_error: of these, likewise: that of the mean over random vectors (and points of
            bytes), joined with the tolerance of the integration; NaN where one was drawn.
        bits_per_dimension: :math:`-\log_2 p(x)/d + \log_2 127.5`, the code length of 8-bit images,
            an upper bound in the mean; None for codes.
        latents: where the images come from: noise, what a call takes as `latents`.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    bits_per_dimension: Tensor | None
    latents: Tensor


def density(
    pipe: Any,
    image: Any,
    num_probes: int | None,
    num_inference_steps: int | None,
    tolerance: float,
    generator: torch.Generator | None,
    asked: Callable[[int, int], Asked],
) -> LogLikelihoodOutput:
    """Return the log-density of images; see `FlowMatchingPipeline.log_likelihood`.

    Args:
        pipe: the pipeline of this call alone.
        image: the images.
        num_probes: number of random vectors.
        num_inference_steps: of a fixed grid.
        tolerance: of an adaptive integration.
        generator: of random vectors and points.
        asked: the conditions, a function of the number of images and of points of each.
    """
    pixels, repeats = points(image, pipe.canvas.channels, num_probes or 1, generator)
    with torch.no_grad():
        x = pipe.canvas.encode(pixels).to(pipe._execution_device)
    check_size(pipe.network, x.shape[2:], pipe.vae_scale_factor)
    warn_of_size(pipe.network, x.shape[2:], pipe.vae_scale_factor)
    x = x.double() if x.device.type == "cpu" else x
    given = asked(len(x) // (repeats or 1), repeats or 1)
    field, model = field_of(pipe, given)
    steps = num_inference_steps
    found = log_prob(
        model.path,
        field,
        x,
        prediction=model.config.prediction_type,
        num_probes=num_probes if repeats is None or num_probes is None else 1,
        generator=generator,
        integrator=adaptive(tolerance, tolerance) if steps is None else on_grid(steps),
    )
    value, error = found.value, found.standard_error
    if repeats is not None:
        each = value.reshape(-1, repeats)
        value, error = each.mean(1), standard_error(each)
    dim = x[0].numel()
    if steps is None:
        error = torch.hypot(error, torch.full_like(error, dim * tolerance))
    bits = in_bits(value, dim) if pipe.vae is None else None
    return LogLikelihoodOutput(value, error, bits, found.noise[:: repeats or 1])


def points(
    image: Any, channels: int, number: int, generator: torch.Generator | None
) -> tuple[Tensor, int | None]:
    """Return pixels in [0, 1], and how many random points of each image they are.

    Bytes are measured at points of their cells, one for every random vector; of other numbers,
    which are points themselves, the second is None.
    """
    integers = as_bytes("image", image, channels)
    if integers is None:
        return as_pixels("image", image, channels), None
    return dequantize(integers.repeat_interleave(number, 0), generator) / 2 + 0.5, number


def field_of(pipe: Any, asked: Asked) -> tuple[Field, GaussianFlowScheduler]:
    """Return the field of a pipeline's network under conditions, and the scheduler of its path.

    It is the path of the network itself, whichever it is sampled on.
    """
    vars(pipe)["scheduler"] = model = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, sampling_path=None, sampling_path_kwargs=None, diffusion=None
    )
    pipe.check_inputs(asked)
    scale = as_scale(asked, "a log-likelihood")
    check_exact(pipe.network, "a log-likelihood")
    with torch.no_grad():
        condition = pipe.encode_condition(asked)

    def field(x: Tensor, t: Tensor) -> Tensor:
        timestep = model.to_timestep(t).to(x.device, torch.float32)
        return pipe.predict(x, timestep, condition, scale)

    return field, model
