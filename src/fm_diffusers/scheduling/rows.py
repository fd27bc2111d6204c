r"""The arithmetic of a step: one row of weights, one function that carries it out.

With the sample x, the model output q, the slopes :math:`k_1, k_2, \dots` of the steps before and a
row :math:`(a, b, z_x, z_q, \alpha, s, c, w_0, w_1, \dots)`,

.. math:: \hat z = z_x x + z_q q, \qquad k_0 = a x + b q, \qquad
          \mathrm{mean} = c\, x + \sum_j w_j k_j, \qquad \mathrm{std} = s.

The weights are numbers in an eager step, 0-dim tensors in a compiled one (so that one graph serves
every row), and tensors of one value for each sample where samples are at different times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fm_diffusers.solvers import Solver, Step, combine

Weight = float | Tensor
Memory = tuple[Tensor, ...]


class Row(NamedTuple):
    """The weights of one step, see the module; `rest` are those of the sample and the slopes."""

    slope: tuple[Weight, Weight]
    data: tuple[Weight, Weight]
    alpha: Weight
    std: Weight
    rest: tuple[Weight, ...]


def read(weights: Sequence[Weight]) -> Row:
    """Return the row whose weights stand in a line, in the order of the module."""
    a, b, z_x, z_q, alpha, std, *rest = weights
    return Row((a, b), (z_x, z_q), alpha, std, tuple(rest))


def rows_of(
    solver: Solver, steps: Sequence[Step], memory_size: int
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Return the weights of steps for every number of past slopes, padded to one length."""
    times = torch.tensor([step.t for step in steps], dtype=torch.float64)
    data = torch.stack([*solver.convert("sample", times), solver.path.alpha(times)], 1).tolist()
    pasts = range(max(len(step.rows) for step in steps))
    return tuple(
        tuple(
            (*step.slope, *z, step.std, *row, *[0.0] * (memory_size + 2 - len(row)))
            for row in map(step.row, pasts)
        )
        for step, z in zip(steps, data, strict=True)
    )


def check_data(solver: Solver, steps: Sequence[Step]) -> None:
    """Raise unless the network says where the data is wherever it is asked.

    Raises:
        ValueError: naming the first time at which it does not, and the way out.
    """
    times = torch.tensor([step.t for step in steps], dtype=torch.float64)
    known = torch.stack(solver.convert("sample", times)).isfinite().all(0)
    for t in times[~known].tolist():
        raise ValueError(
            f"at t = {t} a model that predicts {solver.prediction!r} does not determine the data "
            "(t = 0 is noise, 1 is data), which every step predicts: begin inside, as the default "
            "grid does, with sigmas, timesteps or t_min"
        )


@dataclass(frozen=True)
class Bounds:
    """Bounds of data predictions.

    Attributes:
        clip: their largest magnitude, or None.
        quantile: their largest magnitude as a quantile of their own, or None.
        most: the largest value of that quantile.
        keep_noise: whether the noise prediction stays as it is when the data is bounded (DDIM).
    """

    clip: float | None = None
    quantile: float | None = None
    most: float = 1.0
    keep_noise: bool = False

    def __call__(self, original: Tensor) -> Tensor:
        """Return the data prediction within the bounds, itself if there are none."""
        if self.quantile is not None:
            return dynamic_threshold(original, self.quantile, self.most)
        return original if self.clip is None else original.clamp(-self.clip, self.clip)


def dynamic_threshold(original: Tensor, ratio: float, most: float) -> Tensor:
    """Return data predictions within their own quantile of |z|, 1 to `most`, scaled to [-1, 1].

    Reference: Saharia et al., https://arxiv.org/abs/2205.11487.
    """
    size = torch.quantile(original.abs().flatten(1).float(), ratio, dim=1).clamp(1, most)
    size = size.to(original.dtype).reshape(-1, *[1] * (original.ndim - 1))
    return original.clamp(-size, size) / size


def carry_out(
    row: Row,
    bounds: Bounds,
    memory: Memory,
    x: Tensor,
    q: Tensor,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor, Memory]:
    """Return the mean of the next sample, the data prediction and all slopes, newest first.

    A `known` data prediction goes before the one that follows from the model output.
    """
    seen = _combined(row.data, (x, q))
    original = bounds(seen if known is None else known)
    if original is not seen:
        if bounds.keep_noise and known is None:
            x = x + row.alpha * (original - seen)
        q = _output(row.data, original, x, q)
    slopes = (_combined(row.slope, (x, q)), *memory)
    return _combined(row.rest[: 1 + len(slopes)], (x, *slopes)), original, slopes


def _output(data: tuple[Weight, Weight], original: Tensor, x: Tensor, q: Tensor) -> Tensor:
    """Return the model output that predicts the data `original`; `q` where any would."""
    z_x, z_q = data
    if isinstance(z_q, Tensor):
        return torch.where(z_q == 0, q, (original - z_x * x) / z_q)
    return (original - z_x * x) / z_q if z_q else q


def _combined(weights: tuple[Weight, ...], tensors: tuple[Tensor, ...]) -> Tensor:
    """Return the linear combination; one of numbers leaves out what has no weight."""
    if not isinstance(weights[0], Tensor):
        return combine(cast("tuple[float, ...]", weights), tensors)
    first, *others = (w * v for w, v in zip(weights, tensors, strict=True))
    return reduce(torch.add, others, first)
