r"""The place of a sampling loop in a solver's plan, and the step from one place to the next.

The half of `GaussianFlowScheduler` that runs inside the loop. It knows a plan, its weights and the
timesteps, nothing of configurations; it computes in float32 or better, never waits for an
accelerator, and traces into one graph.
"""

import math
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.predictions import CANONICAL
from fm_diffusers.solvers import Solver, Step, combine, memory_size, update

Generators = torch.Generator | list[torch.Generator]


class Stepping:
    """Holds a plan and the place in it."""

    timesteps: Tensor

    def _take(self, plan: list[Step], solver: Solver, last: float) -> Tensor:
        """Go by a plan that ends at `last`; return the times of its evaluations and `last`."""
        self._plan, self._planned_by = plan, solver
        # what a traced step may ask of the plan: questions to the plan itself would be answered
        # anew for every other number of steps
        self._is_planned, self._noisy = bool(plan), any(step.std for step in plan)
        ends = [i + 1 for i, step in enumerate(plan) if step.ends_interval]
        self._starts = [0, *ends[:-1]]
        self._start_indices = torch.tensor(self._starts)
        self._memory_size = memory_size(plan) if plan else 0
        nodes = torch.tensor([step.t for step in plan] + [last], dtype=torch.float64)
        if plan:
            weights = (*solver.convert("sample", nodes[:-1]), solver.path.alpha(nodes[:-1]))
            self._to_sample = torch.stack(weights, 1).tolist()
            self._table = _tabulated(plan, self._to_sample, self._memory_size)
        self._nodes = nodes
        self._reset(None)
        return nodes

    # --- the place in the plan -------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Index of the next `step` in `timesteps`; None before the first. It can be set."""
        return self._step_index

    @step_index.setter
    def step_index(self, index: int | None) -> None:
        self._step_index = index

    @property
    def _step_index(self) -> int | None:
        return int(self._index) if self._begun else None

    @_step_index.setter
    def _step_index(self, index: int | None) -> None:
        place = self._step_index
        if index is None or place is None or index not in (place, place - 1):
            self._first = torch.tensor(index or 0)  # what is remembered lies elsewhere
        elif index == place - 1:  # the last step is taken back, to be taken again
            self._memory = self._memory_before
        self._index, self._begun = torch.tensor(index or 0), index is not None

    @property
    def begin_index(self) -> int | None:
        """Index at which the loop begins, as set by `set_begin_index`."""
        return self._begin_index

    @begin_index.setter
    def begin_index(self, index: int | None) -> None:
        self._reset(index)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the loop at `timesteps[begin_index]`, which must be the start of an interval."""
        self._reset(begin_index)

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Return the index of the nearest timestep at which an interval starts.

        Solvers with several evaluations ask at an interval's end and again at the start of the
        next; a loop begins at the latter. In another schedule it is the nearest of all.
        """
        if schedule_timesteps is not None or not self._is_planned:
            schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
            return (schedule - torch.as_tensor(timestep).to(schedule)).abs().argmin().item()
        return self._nearest_start(timestep).item()

    def _nearest_start(self, timestep: float | Tensor) -> Tensor:
        distance = (self.timesteps - torch.as_tensor(timestep).to(self.timesteps)).abs()
        starts = self._start_indices.to(distance.device)
        return starts.take(distance[starts].argmin())

    def _reset(self, begin_index: int | None) -> None:
        self._begin_index, self._begun = begin_index, False
        # on the CPU, so that reading them never waits for an accelerator
        self._index = self._first = torch.tensor(0)
        self._memory: tuple[Tensor, ...] = ()
        self._memory_before = self._memory
        self._kept: Kept | None = None

    def _is_done(self) -> bool:
        """Whether the loop is over; a compiled one is trusted to stop by itself."""
        return not torch.compiler.is_compiling() and int(self._index) >= len(self._plan)

    def _begin(self, timestep: float | Tensor) -> None:
        index = self._begin_index
        if index is None and not torch.compiler.is_compiling():
            # an element of `timesteps` knows its place, without asking the device
            index = _place(timestep, self.timesteps)
        if index is not None and index not in self._starts:
            raise ValueError(
                f"a loop begins at the start of an interval, one of the indices {self._starts}, "
                f"got index {index}"
            )
        if index is not None:
            self._index = torch.tensor(index)
        else:
            self._index = self._nearest_start(timestep).cpu()
        self._first, self._begun = self._index, True

    # --- from one place to the next --------------------------------------------------------------

    def _advance(
        self,
        x: Tensor,
        q: Tensor,
        generator: Generators | None,
        keep_noise: bool,
        known: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the next sample and the data prediction, by the weights of the plan.

        A `known` data prediction goes before the one that follows from the model output `q`.
        """
        index, past = int(self._index), int(self._index - self._first)
        step, noise = self._plan[index], None
        if step.std:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        *weights, alpha = self._to_sample[index]
        seen = combine(weights, (x, q))
        original = self._bounded(seen if known is None else known)
        if original is not seen:
            x = torch.add(x, original - seen, alpha=alpha) if keep_noise else x
            q = (original - weights[0] * x) / weights[1] if weights[1] else q
        self._memory_before = self._memory
        memory = tuple(_copied(slope, x) for slope in self._memory[:past])
        x, self._memory = update(step, memory, x, q, noise, self._memory_size)
        return x, original

    def _advance_traced(
        self,
        x: Tensor,
        q: Tensor,
        generator: Generators | None,
        keep_noise: bool,
        known: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Do the same with weights as tensors: one graph for the steps of a compiled loop."""
        depth = self._table.shape[1]
        past = (self._index - self._first).clamp(max=depth - 1)
        row = self._table.flatten(0, 1).index_select(0, (self._index * depth + past).reshape(1))
        a, b, z_x, z_q, alpha, std, c, *w = row[0].unbind()
        seen = z_x * x + z_q * q
        original = self._bounded(seen if known is None else known)
        if original is not seen:
            x = x + alpha * (original - seen) if keep_noise else x
            q = torch.where(z_q == 0, q, (original - z_x * x) / z_q)
        k = a * x + b * q
        missing = range(self._memory_size - len(self._memory))
        slopes = (k, *self._memory, *(torch.zeros_like(k) for _ in missing))
        moved = c * x
        for weight, slope in zip(w, slopes, strict=True):
            moved = moved + weight * slope
        if self._noisy:
            shape = {"device": x.device, "dtype": x.dtype}
            moved = moved + std * randn_tensor(x.shape, generator=generator, **shape)
        self._memory_before, self._memory = self._memory, slopes[: self._memory_size]
        return moved, original

    def _advance_each(self, x: Tensor, q: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Carry each element from its own time to the next time of the grid, to first order.

        DDIM's step without noise, :math:`x/(\alpha + \beta) + (u' - u)(\hat z - \hat\varepsilon)`,
        with times `t` that broadcast against the samples.
        """
        solver, times = self._planned_by, self._nodes.to(t.device, t.dtype)
        after = torch.searchsorted(times, t + 1e-6, right=True).clamp(max=len(times) - 1)
        now, then = solver.path(t), solver.path(torch.maximum(times[after], t))
        scale, scale_then = now.alpha + now.beta, then.alpha + then.beta
        (a, b), (z_x, z_q) = (solver.convert(kind, t) for kind in (CANONICAL, "sample"))
        change = then.alpha / scale_then - now.alpha / scale
        moved = scale_then * (x / scale + change * (a * x + b * q))
        self._memory = ()
        return moved.to(x.dtype), (z_x * x + z_q * q).to(x.dtype)

    def _bounded(self, original: Tensor) -> Tensor:
        """Return the data prediction within its bounds, itself if it has none."""
        raise NotImplementedError

    def _keep(self, given: Tensor, exact: Tensor) -> None:
        """Remember the float32 value of a sample that is handed out in a lower precision."""
        if given is not exact and not torch.compiler.is_compiling() and not given.is_inference():
            self._kept = Kept(given, exact)

    def _exact(self, sample: Tensor) -> Tensor:
        """Return the float32 value of a sample that was handed out and not changed since."""
        return sample if self._kept is None else self._kept.value(sample)


class Kept:
    """The float32 value of a sample that was handed out; copies of a loop go on from it too."""

    def __init__(self, given: Tensor, exact: Tensor) -> None:
        self.given, self.version, self.exact = given, given._version, exact

    def value(self, sample: Tensor) -> Tensor:
        """Return the exact value of the sample if it is the one handed out, unchanged."""
        same = sample is self.given and sample._version == self.version
        return self.exact if same else sample

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self.given, self.value(self.given))


def dynamic_threshold(original: Tensor, ratio: float, most: float) -> Tensor:
    """Return data predictions within their own quantile of |z|, 1 to `most`, scaled to [-1, 1].

    Reference: Saharia et al., https://arxiv.org/abs/2205.11487.
    """
    size = torch.quantile(original.abs().flatten(1).float(), ratio, dim=1).clamp(1, most)
    size = size.to(original.dtype).reshape(-1, *[1] * (original.ndim - 1))
    return original.clamp(-size, size) / size


def _copied(slope: Tensor, x: Tensor) -> Tensor:
    """Return the past of the samples for each copy of them, of which Cosmos makes two to ask."""
    copies = len(x) // len(slope)
    return slope if copies == 1 else slope.repeat(copies, *[1] * (x.ndim - 1))


def _place(timestep: float | Tensor, timesteps: Tensor) -> int | None:
    """Return the index of an element of `timesteps`; None for any other number."""
    if not isinstance(timestep, Tensor) or timestep._base is not timesteps:
        return None
    return timestep.storage_offset() if math.prod(timestep.shape) == 1 else None


def _tabulated(plan: list[Step], to_sample: list[Any], memory_size: int) -> Tensor:
    """Return the weights of a plan as one tensor `(steps, past slopes, weights)`."""
    pasts = range(max(len(step.rows) for step in plan))
    width = memory_size + 2
    return torch.tensor(
        [
            [
                [*step.slope, *z, step.std, *row, *[0.0] * (width - len(row))]
                for row in map(step.row, pasts)
            ]
            for step, z in zip(plan, to_sample, strict=True)
        ],
        dtype=torch.float64,
    )
