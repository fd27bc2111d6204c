r"""Steps that begin at another time than the plan's: one for all samples, or one for each.

They go to the next start of an interval of the plan, by first order where the plan has no step.
"""

import torch
from torch import Tensor

from fm_diffusers.predictions import CANONICAL
from fm_diffusers.scheduling.brownian import BrownianPaths
from fm_diffusers.scheduling.output import Output, noise_of
from fm_diffusers.scheduling.place import Place, rounding
from fm_diffusers.scheduling.plan import Plan
from fm_diffusers.scheduling.rows import Bounds, carry_out, read, rows_of
from fm_diffusers.scheduling.transition import Transition, in_dtype


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
    noise = noise_of(plan, paths, spans)
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
    std, noise = row.std if plan.noisy else 0.0, noise_of(plan, None, ())
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
    landing = solver.landing(*step_from(plan, t))
    now, end = solver.path(t), solver.path(landing.t)
    scale, scale_end = now.alpha + now.beta, end.alpha + end.beta
    change = end.alpha / scale_end - now.alpha / scale
    factor = landing.gain * scale_end
    slope, data = (solver.convert(kind, t) for kind in (CANONICAL, "sample"))
    row = (*slope, *data, now.alpha, landing.std, factor / scale, factor * change)
    return torch.stack([w.to(t.dtype).expand(t.shape) for w in row], -1)


def step_from(plan: Plan, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return times and the next starts of intervals after them, or the end."""
    times = plan.node_times.to(t.device, t.dtype)
    after = torch.searchsorted(times, t + 1e-6, right=True).clamp(max=len(times) - 1)
    return t, torch.maximum(times[after], t)
