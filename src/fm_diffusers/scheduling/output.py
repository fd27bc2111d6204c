"""What a step is given: a sample and what the model said about it, and where its noise is from."""

from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.scheduling.brownian import BrownianPaths, Span
from fm_diffusers.scheduling.checks import check_one_shape, check_samples
from fm_diffusers.scheduling.noise import Increment, Noise, independent, of_no_loop
from fm_diffusers.scheduling.plan import Plan
from fm_diffusers.scheduling.transition import in_dtype

#: The argument that goes before the data that follows from the model output.
KNOWN = "pred_original_sample"


class Output(NamedTuple):
    """A sample and what the model said about it, as a step takes them.

    Attributes:
        x: the sample, in float32 or better.
        q: the model output, likewise.
        dtype: the wider of the dtypes that were given.
        known: the data prediction, if it is not to follow from the model output.
    """

    x: Tensor
    q: Tensor
    dtype: torch.dtype
    known: Tensor | None = None


def without_variance(model_output: Tensor, sample: Tensor) -> Tensor:
    """Return the prediction of a network that returns a variance beside it, in more channels.

    Raises:
        ValueError: for what has no channels.
    """
    check_samples(sample=sample, model_output=model_output)
    if model_output.ndim < 2 or sample.ndim < 2:
        raise ValueError(
            "with a learned variance_type, sample and model_output must have the shape (batch, "
            f"channels, ...), got {tuple(sample.shape)} and {tuple(model_output.shape)}"
        )
    return model_output[:, : sample.shape[1]]


def prepare(model_output: Tensor, sample: Tensor, known: Tensor | None = None) -> Output:
    """Return the sample and the model output in the precision in which steps are computed.

    Raises:
        ValueError: for what is no tensor of floating-point numbers, or unequal shapes.
    """
    given = {"sample": sample, "model_output": model_output}
    given |= {} if known is None else {KNOWN: known}
    check_samples(**given)
    for name, value in given.items():
        check_one_shape(**{name: value, "sample": sample})
    kind = torch.promote_types(model_output.dtype, sample.dtype)
    dtype = torch.promote_types(kind, torch.float32)
    known = None if known is None else in_dtype(known, dtype)
    return Output(in_dtype(sample, dtype), in_dtype(model_output, dtype), kind, known)


def noise_of(
    plan: Plan, paths: BrownianPaths | None, spans: tuple[Span, ...], index: int | Tensor = 0
) -> Noise:
    """Return where the noise of a step comes from."""
    if plan.brownian is None:
        return independent
    return of_no_loop if paths is None else Increment(paths, spans, index)
