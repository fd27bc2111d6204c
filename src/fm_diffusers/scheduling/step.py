r"""From a place in a plan, any other time, or times of their own to the transition of a step.

The arithmetic is that of `rows.carry_out` in all cases; they differ in where weights come from.
"""

import torch
from torch import Tensor

from fm_diffusers.scheduling.any_time import from_time, from_times, step_from
from fm_diffusers.scheduling.brownian import BrownianPaths
from fm_diffusers.scheduling.checks import check_samples
from fm_diffusers.scheduling.noise import NOISES, Generators
from fm_diffusers.scheduling.output import Output, noise_of
from fm_diffusers.scheduling.place import Place
from fm_diffusers.scheduling.plan import Plan
from fm_diffusers.scheduling.rows import Bounds, Memory, carry_out, read
from fm_diffusers.scheduling.transition import Transition, in_dtype


def transition_from(
    plan: Plan,
    at: Place | float | Tensor,
    output: Output,
    bounds: Bounds,
    paths: BrownianPaths | None = None,
) -> Transition:
    """Return the transition from what `place_at` has found, with the paths of `begun`."""
    if isinstance(at, Place):
        traced = torch.compiler.is_compiling()
        return (from_place_traced if traced else from_place)(plan, at, output, bounds)
    if isinstance(at, Tensor):
        return from_times(plan, at, output, bounds)
    return from_time(plan, at, output, bounds, paths)


def begun(
    plan: Plan, at: Place | float | Tensor, sample: Tensor, generator: Generators | None
) -> BrownianPaths | None:
    """Return the paths of a loop's noise: those of its place, or new ones where it begins."""
    going = at.paths if isinstance(at, Place) else None
    if going is not None or plan.brownian is None or isinstance(at, Tensor):
        return going
    check_samples(sample=sample)
    if not sample.ndim:
        raise ValueError(
            "with noise='brownian' a sample must have the shape (batch, ...), for each has a path "
            "of its own, got a number: pass sample[None]"
        )
    return NOISES[plan.noise](len(sample), generator)


def from_place(plan: Plan, place: Place, output: Output, bounds: Bounds) -> Transition:
    """Return the transition of the plan's step at a place."""
    place = _of_one_kind(plan, place)
    index, past = int(place.index), int(place.past)
    row, x = read(plan.row(index, past)), _exact(output.x, place)
    memory = tuple(_copied(slope, x) for slope in place.memory[:past])
    mean, original, slopes = carry_out(row, bounds, memory, x, output.q, output.known)
    after = _following(plan, place, slopes)
    noise = noise_of(plan, place.paths, plan.spans, index)
    return Transition(mean, row.std, in_dtype(original, output.dtype), after, output.dtype, noise)


def from_place_traced(plan: Plan, place: Place, output: Output, bounds: Bounds) -> Transition:
    """Return the same with weights as tensors: one graph for the steps of a compiled loop."""
    place = _of_one_kind(plan, place)
    depth, x = plan.table.shape[1], _exact(output.x, place)
    past = torch.as_tensor(place.past).clamp(max=depth - 1)
    weights = plan.table.flatten(0, 1).index_select(0, (place.index * depth + past).reshape(1))
    row = read(weights[0].unbind())
    missing = range(plan.memory_size - len(place.memory))
    memory = (*place.memory, *(torch.zeros_like(x) for _ in missing))
    mean, original, slopes = carry_out(row, bounds, memory, x, output.q, output.known)
    after = _following(plan, place, slopes)
    std = row.std if plan.noisy else 0.0
    noise = noise_of(plan, place.paths, plan.spans, place.index)
    return Transition(mean, std, in_dtype(original, output.dtype), after, output.dtype, noise)


def _following(plan: Plan, place: Place, slopes: Memory) -> Place:
    """Return the place after a step, with its slopes, newest first."""
    memory, of_sde = slopes[: plan.memory_size], plan.solver.noisy
    return Place(place.index + 1, place.past + 1, memory, paths=place.paths, of_sde=of_sde)


def _of_one_kind(plan: Plan, place: Place) -> Place:
    """Return a place without the slopes that a step by another `noise_level` cannot look back at.

    An interval of several evaluations is finished as it was begun.
    """
    same = place.of_sde in (None, plan.solver.noisy)
    if same or plan.solver.evaluations > 1:
        return place
    return place._replace(past=0 * place.past, memory=(), of_sde=None)


def _exact(x: Tensor, place: Place) -> Tensor:
    """Return a sample with what it lost where it was handed out."""
    return x if place.rounding is None else x + _copied(place.rounding, x)


def _copied(slope: Tensor, x: Tensor) -> Tensor:
    """Return the past of the samples for each copy of them, of which Cosmos makes two to ask."""
    if slope.shape == x.shape:
        return slope
    return slope.repeat(x.shape[0] // slope.shape[0], *[1] * (x.ndim - 1))


def advance_from(plan: Plan, at: Place | float | Tensor) -> Tensor:
    r"""Return by how much the step from what `place_at` has found moves the clock.

    Of a place it is a number of the plan's, else it is computed where the timesteps are.

    Raises:
        ValueError: for a solver whose network knows one time only.
    """
    if plan.advances is None:
        raise ValueError(
            f"{type(plan.solver).__name__} asks a network of one time: only a flow map's is told "
            'where the step leads, make the scheduler with solver="flow_map"'
        )
    if isinstance(at, Place) and torch.compiler.is_compiling():
        return plan.advances.index_select(
            0, torch.as_tensor(at.index).reshape(1).to(plan.advances.device)
        )[0]
    if isinstance(at, Place):
        return plan.advances[int(at.index)]
    fed = torch.as_tensor(at, dtype=None if isinstance(at, Tensor) else torch.float64)
    return plan.solver.advance(*step_from(plan, plan.clock.to_time(fed))).float()
