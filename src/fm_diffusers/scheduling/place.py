r"""The place of a sampling loop in a plan: what changes from step to step, as a value.

A place goes into a step and the next one comes out; nothing of it is ever changed. Which place a
timestep means is decided here: the expected one (an element of `timesteps` is known by where it
lies in memory, so that an accelerator is not waited for), another one of the plan's, or none.
"""

import operator
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.scheduling.brownian import BrownianPaths

if TYPE_CHECKING:
    from fm_diffusers.scheduling.plan import Plan

Timestep = float | Tensor


class Place(NamedTuple):
    """Where a loop is, and what it remembers.

    Attributes:
        index: of the next model evaluation; in a compiled loop a 0-dim tensor on the CPU, so that
            one graph serves every index.
        past: number of the loop's slopes so far, likewise.
        memory: the last of them, newest first, shape of the samples.
        rounding: what the sample lost when it was handed out in half precision, if it is carried.
        paths: the Brownian paths of the samples, with `noise="brownian"`.
        of_sde: whether the slopes are those of an SDE's step, data predictions, where those of the
            ODE's are velocities; None where nothing is remembered.
    """

    index: int | Tensor  # type: ignore[assignment]  # tuple.index(), which nobody asks
    past: int | Tensor
    memory: tuple[Tensor, ...] = ()
    rounding: Tensor | None = None
    paths: BrownianPaths | None = None
    of_sde: bool | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Place":
        return self


def place_at(
    plan: "Plan", timestep: Timestep, place: Place | None, begin_index: int | None = None
) -> Place | float | Tensor:
    """Return what a timestep means where a loop is at `place`, or begins if that is None.

    Returns:
        `place` itself if it is what comes next, another place that begins at one of the plan's
        timesteps, a number that is none of them, or timesteps of their own for every sample.
    """
    timestep = _one_of_equals(timestep)
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        return timestep
    if torch.compiler.is_compiling():  # a graph sees no values: it trusts the place
        if place is not None:
            return place
        index = nearest_start(plan, timestep).cpu() if begin_index is None else begin_index
        return Place(torch.as_tensor(index), torch.tensor(0))
    going = place if place is not None and int(place.index) < len(plan.steps) else None
    expected = begin_index or 0 if going is None else int(going.index)
    found = locate(plan, timestep, expected)
    if found is None:
        return float(timestep)
    return going if going is not None and found == expected else begin(plan, found)


def _one_of_equals(timestep: Timestep) -> Timestep:
    """Return one timestep in place of many that share its memory, `t.expand(batch)`."""
    if isinstance(timestep, Tensor) and timestep.ndim == 1 and timestep.stride() == (0,):
        return timestep[0]
    return timestep


def begin(plan: "Plan", index: int) -> Place:
    """Return the place of a loop that begins at an index, with nothing remembered.

    Raises:
        ValueError: if no interval starts there.
    """
    try:
        at = operator.index(index)
    except (TypeError, ValueError, RuntimeError):
        at = None
    if at not in plan.starts:
        raise ValueError(
            f"a loop begins at the start of an interval, one of the indices {list(plan.starts)}, "
            f"got index {index}: take one of these, or a solver with one evaluation a step, such "
            "as predictor_corrector, unipc, ddim and euler, which can begin anywhere"
        )
    return Place(at, 0)


def locate(plan: "Plan", timestep: Timestep, expected: int) -> int | None:
    """Return the index of a timestep in a plan; None for a number that is none of its timesteps.

    An integer stands for a timestep less than 1 away, as pipelines cut them, a number in half
    precision for one that rounds to it, others for one that is equal to float32 rounding.

    Args:
        plan: the plan.
        timestep: one number, or a tensor of one.
        expected: the index that comes next, taken where several would do.

    Raises:
        ValueError: for an integer that is the expected index instead of its timestep.
    """
    found = viewed(timestep, plan.timesteps)
    if found is not None:
        return found
    value, whole, tolerance = _read(timestep, plan.largest)
    distances = [abs(value - t) for t in plan.values]
    near = [i for i, distance in enumerate(distances) if distance <= tolerance]
    if expected in near:
        return expected
    if whole and value == expected < len(plan.values):
        raise ValueError(
            f"timestep {value:g} is the index of the step: pass its timestep, "
            f"scheduler.timesteps[{value:g}] = {plan.values[expected]:g} "
            "(or the number as a float, to step from that time)"
        )
    closest = min((distances[i] for i in near), default=None)
    near = [i for i in near if distances[i] == closest]
    # solvers with several evaluations ask at an interval's end and again where the next starts
    return next((i for i in near if i in plan.starts), near[0] if near else None)


def viewed(timestep: Timestep, timesteps: Tensor) -> int | None:
    """Return the index of an element of `timesteps`, a view of its memory; None for any other."""
    if not isinstance(timestep, Tensor) or timestep.numel() != 1:
        return None
    if timestep._base is not timesteps:  # in inference mode views do not know their base
        memory, own = timestep.untyped_storage(), timesteps.untyped_storage()
        if memory._cdata != own._cdata or timestep.dtype != timesteps.dtype:
            return None
    return int(timestep.storage_offset() - timesteps.storage_offset())


def nearest_start(plan: "Plan", timestep: Timestep) -> Tensor:
    """Return the index of the nearest timestep at which an interval starts, 0-dim."""
    distance = (plan.timesteps - torch.as_tensor(timestep).to(plan.timesteps)).abs()
    starts = plan.start_indices.to(distance.device)
    return starts.take(distance[starts].argmin())


def _read(timestep: Timestep, largest: float) -> tuple[float, bool, float]:
    """Return a timestep's value, whether it is an integer, and how far its rounding may be off."""
    if isinstance(timestep, Tensor):
        whole, dtype = not timestep.is_floating_point(), timestep.dtype
    else:
        whole, dtype = isinstance(timestep, int | np.integer), torch.float32
    try:
        value = float(timestep)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"timestep must be a number or a tensor, got {reprlib.repr(timestep)}: pass one of "
            "scheduler.timesteps"
        ) from None
    return value, whole, float(rounding(dtype, abs(value), largest))


def rounding(dtype: torch.dtype, size: float | Tensor, largest: float) -> float | Tensor:
    """Return how far timesteps of some size may be off that went through a dtype, and float32."""
    if not dtype.is_floating_point:
        return 0.99
    float32 = 4 * torch.finfo(torch.float32).eps * largest
    return float32 + (torch.finfo(dtype).eps * size if dtype.itemsize < 4 else 0.0)
