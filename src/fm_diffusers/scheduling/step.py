r"""From a place in a plan, any other time, or times of their own to the transition of a step.

The arithmetic is that of `rows.carry_out` in all cases; they differ in where weights come from.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.predictions import CANONICAL
from fm_diffusers.scheduling.brownian import BrownianPaths, Span
from fm_diffusers.scheduling.checks import check_one_shape, check_samples
from fm_diffusers.scheduling.noise import (
    NOISES,
    Generators,
    Increment,
    Noise,
    independent,
    of_no_loop,
)
from fm_diffusers.scheduling.place import Place, rounding
from fm_diffusers.scheduling.plan import Plan
from fm_diffusers.scheduling.rows import Bounds, Memory, carry_out, read, rows_of
from fm_diffusers.scheduling.transition import Transition, in_dtype

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


def _noise(
    plan: Plan, paths: BrownianPaths | None, spans: tuple[Span, ...], index: int | Tensor = 0
) -> Noise:
    """Return where the noise of a step comes from."""
    if plan.brownian is None:
        return independent
    return of_no_loop if paths is None else Increment(paths, spans, index)


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


def from_place(plan: Plan, place: Place, output: Output, bounds: Bounds) -> Transition:
    """Return the transition of the plan's step at a place."""
    place = _of_one_kind(plan, place)
    index, past = int(place.index), int(place.past)
    row, x = read(plan.row(index, past)), _exact(output.x, place)
    memory = tuple(_copied(slope, x) for slope in place.memory[:past])
    mean, original, slopes = carry_out(row, bounds, memory, x, output.q, output.known)
    after = _following(plan, place, slopes)
    noise = _noise(plan, place.paths, plan.spans, index)
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
    noise = _noise(plan, place.paths, plan.spans, place.index)
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


def from_time(
    plan: Plan,
    timestep: float,
    output: Output,
    bounds: Bounds,
    paths: BrownianPaths | None = None,
) -> Transition:
    """Return the first-order transition from any timestep to the next start of an interval.

    Raises:
        ValueError: for a timestep from which no time of the plan lies ahead.
    """
    t = plan.clock.to_time(torch.tensor(timestep, dtype=torch.float64)).item()
    last = plan.times[-1].item()
    if not 0 <= t < last:
        first, end = plan.clock.to_timestep(
            torch.tensor([0.0, last], dtype=torch.float64)
        ).tolist()
        raise ValueError(
            f"timestep {timestep:g} is not between those of pure noise, {first:g}, and of the end "
            f"of the grid, {end:g}: pass elements of scheduler.timesteps, or a time in between"
        )
    after = int(torch.searchsorted(plan.times, t, right=True))
    ends = torch.tensor([t, plan.times[after]], dtype=torch.float64)
    steps = plan.one_step.plan(ends)
    row = read(rows_of(plan.one_step, steps, 0)[0][0])
    mean, original, _ = carry_out(row, bounds, (), output.x, output.q, output.known)
    index = (*plan.starts, len(plan.steps))[after]
    place = Place(index, 0, paths=paths)
    spans = plan.brownian.spans([(ends[0].item(), ends[1].item())]) if plan.brownian else ()
    noise = _noise(plan, paths, spans)
    return Transition(mean, row.std, in_dtype(original, output.dtype), place, output.dtype, noise)


def from_times(plan: Plan, timesteps: Tensor, output: Output, bounds: Bounds) -> Transition:
    """Return the transition of samples, or their tokens, from timesteps of their own.

    Each goes to the next start of an interval after its own time: by the plan's step with nothing
    remembered where it is at one of the plan's timesteps and the solver has one evaluation, else
    by first order. All of it is computed where the sample is, without waiting for it.

    Args:
        plan: the plan.
        timesteps: shape `(batch,)` or `(batch, tokens)`.
        output: samples of shape `(batch, ...)` or `(batch, tokens, ...)`.
        bounds: of data predictions.
    """
    x = output.x
    _check_times(plan, timesteps, x)
    fed = timesteps.to(x.device, x.dtype)
    weights = first_order_rows(plan, plan.clock.to_time(fed))
    if plan.solver.evaluations == 1:
        distance = (fed[..., None] - plan.timesteps.to(x.device, x.dtype)).abs()
        closest, index = distance.min(-1)
        rows = plan.node_rows.to(x.device, x.dtype)[index]
        known = closest <= rounding(timesteps.dtype, fed.abs(), plan.largest)
        weights = torch.where(known[..., None], rows, weights)
    shape = (*fed.shape, *[1] * (x.ndim - fed.ndim))
    row = read([w.reshape(shape) for w in weights.unbind(-1)])
    mean, original, _ = carry_out(row, bounds, (), x, output.q, output.known)
    std, noise = row.std if plan.noisy else 0.0, _noise(plan, None, ())
    return Transition(mean, std, in_dtype(original, output.dtype), None, output.dtype, noise)


def _check_times(plan: Plan, timesteps: Tensor, x: Tensor) -> None:
    """Raise unless there is a timestep of the path for each sample, or token.

    The values are looked at on the CPU alone: elsewhere that would wait for the device.
    """
    if timesteps.ndim > x.ndim or timesteps.shape != x.shape[: timesteps.ndim]:
        raise ValueError(
            f"timestep must be one, or one for each sample (and token) of shape {tuple(x.shape)}, "
            f"got shape {tuple(timesteps.shape)}"
        )
    plan.clock.check_timesteps(timesteps)


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
    return plan.solver.advance(*_step_from(plan, plan.clock.to_time(fed))).float()


def _step_from(plan: Plan, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return times and the next starts of intervals after them, or the end."""
    times = plan.node_times.to(t.device, t.dtype)
    after = torch.searchsorted(times, t + 1e-6, right=True).clamp(max=len(times) - 1)
    return t, torch.maximum(times[after], t)


def first_order_rows(plan: Plan, t: Tensor) -> Tensor:
    r"""Return the weights of first-order steps from times to the next starts of intervals.

    DDIM's step with its eta, :math:`g S' (x/S + (u' - u)(\hat z - \hat\varepsilon))` with
    :math:`S = \alpha + \beta`, the clock :math:`u = \alpha/S`, and the gain g and the end of
    `Solver.landing`.

    Args:
        plan: the plan.
        t: of any shape; behind the end of the grid nothing moves.

    Returns:
        The weights of a `Row` with one slope, shape `(*t.shape, 8)`.
    """
    solver = plan.one_step
    landing = solver.landing(*_step_from(plan, t))
    now, end = solver.path(t), solver.path(landing.t)
    scale, scale_end = now.alpha + now.beta, end.alpha + end.beta
    change = end.alpha / scale_end - now.alpha / scale
    factor = landing.gain * scale_end
    slope, data = (solver.convert(kind, t) for kind in (CANONICAL, "sample"))
    row = (*slope, *data, now.alpha, landing.std, factor / scale, factor * change)
    return torch.stack([w.to(t.dtype).expand(t.shape) for w in row], -1)


def _exact(x: Tensor, place: Place) -> Tensor:
    """Return a sample with what it lost where it was handed out."""
    return x if place.rounding is None else x + _copied(place.rounding, x)


def _copied(slope: Tensor, x: Tensor) -> Tensor:
    """Return the past of the samples for each copy of them, of which Cosmos makes two to ask."""
    if slope.shape == x.shape:
        return slope
    return slope.repeat(x.shape[0] // slope.shape[0], *[1] * (x.ndim - 1))
