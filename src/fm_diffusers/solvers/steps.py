"""The steps of a plan: rows of weights, and the one `update` that carries them out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weights = tuple[float, ...]
Memory = tuple[Tensor, ...]
Noise = Callable[[float, float], Tensor]


class Step(NamedTuple):
    """One model evaluation: where, and the weights of what follows from it.

    Attributes:
        t: the time at which the model is asked.
        interval: the two times of the grid that it helps to connect.
        slope: weights `a` and `b` of the sample and of the model output in the slope.
        rows: weights of the sample, of this slope and of past ones, newest first, in the next
            sample; a row for each number of past slopes from 0, the last one for all greater.
        std: standard deviation of the noise that is added.
        ends_interval: whether the next sample lies on the grid, not at a stage inside an interval.
    """

    t: float
    interval: tuple[float, float]
    slope: tuple[float, float]
    rows: tuple[Weights, ...]
    std: float = 0.0
    ends_interval: bool = True

    def row(self, past: int) -> Weights:
        """Return the weights where `past` slopes are remembered."""
        return self.rows[min(past, len(self.rows) - 1)]


def combine(weights: Weights, tensors: tuple[Tensor, ...]) -> Tensor:
    """Return the linear combination; a tensor of weight one on its own is passed on uncopied."""
    terms = [(w, v) for w, v in zip(weights, tensors, strict=True) if w != 0]
    (w, total), *rest = terms or [(0.0, tensors[0])]
    owned = w != 1
    if owned:
        total = w * total
    for w, v in rest:
        total = total.add_(v, alpha=w) if owned else torch.add(total, v, alpha=w)
        owned = True
    return total


def update(
    step: Step,
    memory: Memory,
    x: Tensor,
    q: Tensor,
    noise: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Memory]:
    """Carry out one step of a plan; consumes one model output.

    Args:
        step: a step of `Solver.plan`.
        memory: what the step before returned; `()` at the start.
        x: the sample at which the model was asked.
        q: the model's output there, of the same shape and dtype.
        noise: standard normal noise of that shape, where `step.std` is not 0.
        size: number of slopes to remember, `memory_size(plan)` or more; None is all.

    Returns:
        The next sample and the memory for the next step.
    """
    slopes = (combine(step.slope, (x, q)), *memory)
    row = step.row(len(memory))
    weights, tensors = row, (x, *slopes[: len(row) - 1])
    if step.std:
        assert noise is not None
        weights, tensors = (*row, step.std), (*tensors, noise)
    return combine(weights, tensors), slopes[:size]


def memory_size(plan: Sequence[Step]) -> int:
    """Return how many past slopes the steps of a plan look back at."""
    return max(len(row) for step in plan for row in step.rows) - 2


def normalised(plan: list[Step]) -> list[Step]:
    """Scale every slope so that the model output has weight one in it, where it has any.

    A slope that is a multiple of the model output is then the output itself: nothing to compute.
    """
    scales = [step.slope[1] or 1.0 for step in plan]
    normalised = []
    for i, step in enumerate(plan):
        rows = tuple(
            (row[0], *(w * scales[i - j] for j, w in enumerate(row[1:]) if i >= j))
            for row in step.rows
        )
        a, b = step.slope
        normalised.append(step._replace(slope=(a / scales[i], b / scales[i]), rows=rows))
    return normalised
