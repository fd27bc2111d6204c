"""Arguments of a call, checked before anything is computed."""

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.pipelines.outputs import described, shown
from fm_diffusers.scheduler import GaussianFlowScheduler

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
#: Number of steps of a call that does not say.
NUM_INFERENCE_STEPS = 50


def is_whole(value: Any) -> bool:
    """Return whether something is an integer; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def count(name: str, value: Any) -> int:
    """Return an integer of at least 1.

    Example:
        >>> count("batch_size", 1.5)
        Traceback (most recent call last):
        ValueError: batch_size must be an integer of at least 1, got 1.5
    """
    if not is_whole(value):
        raise ValueError(f"{name} must be an integer of at least 1, got {shown(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def number(name: str, value: Any, way_out: str, above: float = -math.inf) -> float:
    """Return a number that is finite as a float32, and lies above another."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name} must be a finite number, got {shown(value)}: {way_out}")
    if not value > above:
        raise ValueError(f"{name} must be greater than {above}, got {value}: {way_out}")
    return float(value)


def finite_tensor(name: str, value: Any, way_out: str) -> Tensor:
    """Return a tensor of finite floating-point numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a tensor of floating-point numbers, got {described(value)}: {way_out}"
        )
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite numbers: {way_out}")
    return value


def states(name: str, value: Any) -> Tensor:
    """Return the states of texts."""
    return finite_tensor(name, value, "they are what encode_prompt returns")


def texts(name: str, value: Any) -> list[str]:
    """Return one or more texts as a list."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{name} must be a text or a list of texts, got {shown(value)}")
    return [*value]


def labels(name: str, value: Any) -> list[Any]:
    """Return one or more labels, numbers or names, as a list; which they may be is for a network.

    Example:
        >>> labels("class_labels", ["circle", np.int64(3)])
        ['circle', 3]
    """
    plain = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(plain, list | tuple):  # where numpy would make texts of numbers
        plain = np.asarray(plain).tolist()
    row = [*plain] if isinstance(plain, list | tuple) else [plain]
    row = [x.item() if getattr(x, "ndim", None) == 0 else x for x in row]
    if any(isinstance(x, bool) for x in row):
        raise ValueError(
            f"{name} must be integers or names, got {shown(value)}: pass the numbers of classes"
        )
    if any(isinstance(x, list | tuple | Tensor | np.ndarray) for x in row):
        raise ValueError(
            f"{name} must be a label or a flat list of labels, got {shown(value)}: one for each "
            "image"
        )
    return row


def check_generator(generator: Any, batch_size: int) -> None:
    """Raise a `ValueError` for what is no generator, or not one for each image."""
    each = generator if isinstance(generator, list) else [generator] * (generator is not None)
    if not all(isinstance(g, torch.Generator) for g in each):
        raise ValueError(
            "generator must be a torch.Generator or a list of them, one for each image, got "
            f"{shown(generator)}: torch.Generator().manual_seed(seed) is one"
        )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"a list of generators must have one for each of the {batch_size} images, "
            f"got {len(generator)}"
        )


def steps_of(
    scheduler: Any, num_inference_steps: Any, timesteps: Any, sigmas: Any = None
) -> dict[str, Any]:
    """Return what a scheduler's `set_timesteps` is told: a number of steps or where they start.

    Raises:
        ValueError: for neither a count nor a list of numbers, for two that contradict each other,
            or timesteps or sigmas for a scheduler that takes none.
    """
    if timesteps is None and sigmas is None:
        asked = NUM_INFERENCE_STEPS if num_inference_steps is None else num_inference_steps
        if not is_whole(asked) or asked < 1:
            raise ValueError(
                f"num_inference_steps must be an integer of at least 1, got {shown(asked)}"
            )
        return {"num_inference_steps": int(asked)}
    if timesteps is not None and sigmas is not None:
        raise ValueError(
            "timesteps and sigmas both say where the steps start: pass one of the two, got "
            f"{shown(timesteps)} and {shown(sigmas)}"
        )
    name, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    numbers = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not len(numbers):
        raise ValueError(
            f"{name} must be a list of at least one number, got {shown(given)}: leave "
            "them out for the scheduler's own"
        )
    numbers = [number(f"each of {name}", x, "they are where the steps start") for x in numbers]
    agrees = is_whole(num_inference_steps) and num_inference_steps == len(numbers)
    if num_inference_steps is not None and not agrees:
        raise ValueError(
            f"num_inference_steps={shown(num_inference_steps)} contradicts {len(numbers)} "
            f"{name}: leave it out"
        )
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"{name} cannot be chosen for {type(scheduler).__name__}: pass "
            "num_inference_steps, or take a GaussianFlowScheduler"
        )
    if name == "sigmas" and isinstance(scheduler, GaussianFlowScheduler):
        numbers = [*numbers, 0.0]  # with their end they are taken as they are
    return {name: numbers}


def check_output(output_type: Any, return_dict: Any) -> None:
    """Raise a `ValueError` for an unknown form of output."""
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {shown(output_type)}")
    if not isinstance(return_dict, bool):
        raise ValueError(f"return_dict must be True or False, got {shown(return_dict)}")


def check_callback(
    callback: Callable[..., Any] | None, tensor_inputs: Any, known: Sequence[str]
) -> None:
    """Raise a `ValueError` for a callback that cannot be called, or tensors that do not exist."""
    if callback is not None and not callable(callback):
        raise ValueError(
            "callback_on_step_end must be a function of (pipe, index, timestep, tensors), got "
            f"{shown(callback)}"
        )
    names = tensor_inputs if isinstance(tensor_inputs, list | tuple) else [tensor_inputs]
    unknown = [name for name in names if name not in known]
    if unknown or names is not tensor_inputs:
        raise ValueError(
            "callback_on_step_end_tensor_inputs must be among "
            f"{known}, got {unknown or tensor_inputs!r}: pass a list of names"
        )
