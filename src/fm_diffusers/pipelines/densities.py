r"""The log-density of images under a pipeline's sampling ODE, with its error.

See `fm_diffusers.likelihood`, of which this is the reading for a pipeline: it encodes the images,
asks the network under its conditions, and gives nats, their standard errors and bits.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from fm_diffusers.likelihood import dequantize, log_prob, on_grid
from fm_diffusers.likelihood.integrators import adaptive
from fm_diffusers.pipelines.caching import check_exact
from fm_diffusers.pipelines.guidance import as_scale
from fm_diffusers.pipelines.images import as_bytes, as_pixels
from fm_diffusers.scheduler import GaussianFlowScheduler

#: Values of a byte for every unit of pixels in [-1, 1].
CELLS = 127.5


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
    asked: Any,
) -> LogLikelihoodOutput:
    """Return the log-density of images; see `FlowMatchingPipeline.log_likelihood`.

    Args:
        pipe: the pipeline of this call alone.
        image: the images.
        num_probes: number of random vectors.
        num_inference_steps: of a fixed grid.
        tolerance: of an adaptive integration.
        generator: of random vectors and points.
        asked: the conditions, a function of the number of images.
    """
    canvas, repeats = pipe.canvas, 1
    integers = as_bytes("image", image, canvas.channels)
    if integers is None:
        pixels = as_pixels("image", image, canvas.channels)
    else:
        repeats = num_probes or 1  # a point for every random vector
        pixels = dequantize(integers.repeat_interleave(repeats, 0), generator) / 2 + 0.5
    with torch.no_grad():
        x = canvas.encode(pixels).to(pipe._execution_device)
    x = x.double() if x.device.type == "cpu" else x
    # the network's own path, whichever it is sampled on
    vars(pipe)["scheduler"] = model = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, sampling_path=None, sampling_path_kwargs=None, diffusion=None
    )
    given = asked(len(x) // repeats, repeats)
    pipe.check_inputs(given)
    scale = as_scale(given, "a log-likelihood")
    check_exact(pipe.network, "a log-likelihood")
    with torch.no_grad():
        condition = pipe.encode_condition(given)

    def field(x: Tensor, t: Tensor) -> Tensor:
        timestep = model.to_timestep(t).to(x.device, torch.float32)
        return pipe.predict(x, timestep, condition, scale)

    steps = num_inference_steps
    found = log_prob(
        model.path,
        field,
        x,
        prediction=model.config.prediction_type,
        num_probes=num_probes if integers is None or num_probes is None else 1,
        generator=generator,
        integrator=adaptive(tolerance, tolerance) if steps is None else on_grid(steps),
    )
    dim = x[0].numel()
    each, error = found.value, found.standard_error
    if repeats > 1 or integers is not None:
        each = each.reshape(-1, repeats)
        squares = (each - each.mean(1, keepdim=True)).square().sum(1)
        error = (squares / (repeats * (repeats - 1))).sqrt()  # 0/0 for one
        each = each.mean(1)
    if steps is None:
        error = torch.hypot(error, torch.full_like(error, dim * tolerance))
    bits = -each / (dim * math.log(2)) + math.log2(CELLS)
    return LogLikelihoodOutput(
        each, error, bits if canvas.vae is None else None, found.noise[::repeats]
    )
