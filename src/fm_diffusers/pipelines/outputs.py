r"""What components return: taken as the tensor that a pipeline needs, or refused in our words.

A tensor that has another shape than was asked for would be cut or broadcast on the way to the
image without a word, and one that is not finite is a black image. The shape is checked at once.
Whether numbers are finite is asked on their device, where it waits for nothing, and read once,
after the loop.
"""

import warnings
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers.utils import ModelOutput

Shape = tuple[int, ...]


def taken(output: Any, component: str, shapes: tuple[Shape, ...], way_out: str) -> Tensor:
    """Return the tensor that a component returned, alone or first in an output or a tuple.

    Args:
        output: what was returned.
        component: its name.
        shapes: of which one must be the tensor's.
        way_out: what the shapes count and how to have them.

    Raises:
        ValueError: for anything else.

    Example:
        >>> x = torch.zeros(2, 1, 8, 8)
        >>> taken((x,), "unet", ((2, 1, 8, 8),), "one prediction a sample") is x
        True
    """
    inner = output.to_tuple() if isinstance(output, BaseOutput | ModelOutput) else output
    first = inner[0] if isinstance(inner, tuple | list) and inner else inner
    floating = isinstance(first, Tensor) and first.is_floating_point()
    if not floating or tuple(first.shape) not in shapes:
        raise ValueError(
            f"the {component} must return floating-point numbers of the shape "
            f"{' or '.join(map(str, shapes))}, alone or first in a tuple, got "
            f"{described(inner)}: {way_out}"
        )
    return first


def described(output: Any) -> str:
    """Return what something is, in words.

    Example:
        >>> described((torch.zeros(2, dtype=torch.int64),))
        'a tuple that begins with a tensor of torch.int64 of the shape (2,)'
    """
    if output is None:
        return "None"
    if isinstance(output, Tensor):
        return f"a tensor of {output.dtype} of the shape {tuple(output.shape)}"
    name = type(output).__name__
    if isinstance(output, dict):
        return f"a {name} with the keys {[*output]}"
    if isinstance(output, tuple | list):
        return (
            f"a {name} that begins with {described(output[0])}" if output else f"an empty {name}"
        )
    return f"a {name}"


def shown(value: Any) -> str:
    """Return an argument as an error shows it: in words where its numbers would fill pages."""
    return described(value) if isinstance(value, Tensor | np.ndarray) else repr(value)


def is_finite(values: Tensor) -> Tensor:
    """Return whether all numbers are finite, as a tensor of one value on their device."""
    return values.isfinite().all()


def warn_unless_finite(outputs: list[Tensor], timesteps: Tensor, latents: Tensor) -> None:
    """Warn of the first step of a loop whose output is not finite, or else of the samples.

    Args:
        outputs: `is_finite` of what the network predicted at every step.
        timesteps: of the steps.
        latents: what came out.
    """
    finite = torch.stack([*outputs, is_finite(latents)]).tolist()
    if all(finite):
        return
    first = finite.index(False)
    if first == len(outputs):
        message = (
            "the samples are not finite (NaN or infinite) although every output of the network "
            "is: numbers that large are beyond the scheduler's step, check the scale of the "
            "network's outputs and of latents"
        )
    else:
        message = (
            f"the network's output is not finite (NaN or infinite) at step {first}, timestep "
            f"{timesteps[first].item():g}, the first of {finite[:-1].count(False)} such steps, "
            "and neither are the images: check the network's weights and what it is fed; half "
            "precision may overflow where torch.float32 and torch.bfloat16 do not"
        )
    warnings.warn(message, RuntimeWarning, stacklevel=5)
