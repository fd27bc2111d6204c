r"""A certificate for schedulers: do they keep the distribution, with what order, at what cost?

    python -m fm_diffusers.certify --schedulers GaussianFlowScheduler my_module:MyScheduler

drives schedulers as pipelines do, with a network that predicts the exact field of data whose
distribution is known. What a trained network adds in errors is not there: what is wrong is the
scheduler's. A scheduler is a class of this package or of diffusers, or `module:Class`; its
configuration is JSON, `'DDIMScheduler{"clip_sample": false}'`, and `--step_kwargs` go to `step`.

What the network predicts, on which path, and what it is fed as the time is read from the
configuration, as `GaussianFlowScheduler.from_config` reads it; `--network` says it where that
cannot be told, of other schedulers than ours.

**Distribution.** `width` is the worst relative error of the standard deviation of samples of five
Gaussians, of the widths in `WIDTHS`, and `mean` the worst error of their means over the width.
Of eight modes in the plane, `weights` is the total variation distance of how many samples lie
nearest to each, and `distance` the sliced Wasserstein distance to the data. Fresh data in the
place of the samples have the `floor`, the largest of 16 sets.

**Order.** Of a scheduler without noise: how fast the ends of runs come to the converged ones of
the same noise, as the exponent of the error in the number of steps, between a number and the one
before. Without torchdiffeq it stays empty.

**Cost.** Evaluations of the network.

A scheduler passes if at the largest number of steps its widths and means are right to
`--tolerance` and four standard errors of the estimate, and `weights` and `distance` are at most
1.25 times the floor.
It is undecided where it passes, but four standard errors of a width are more than the tolerance:
20,000 samples decide 2 %, and 8 / tolerance^2 any other.
The exit code is 0 if all pass; else 2 if one cannot be driven, or an argument is wrong; else 1 if
one does not pass; else 3, where one is undecided.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.certify.driving import Driven
from fm_diffusers.certify.truth import (
    NEARNESS,
    WIDTHS,
    Judge,
    biases,
    converged,
    gaussian_field,
)

__all__ = ["Driven", "Judge", "Row", "certify", "least_samples", "table"]

#: How many samples the order is measured on.
FEW = 256


@dataclass(frozen=True)
class Row:
    """What is measured of one scheduler at one number of steps; `passed` is None if undecided."""

    scheduler: str
    steps: int
    evaluations: int
    noisy: bool
    width: float
    mean: float
    weights: float
    distance: float
    order: float | None
    passed: bool | None

    @property
    def verdict(self) -> str:
        """Yes, no or undecided."""
        return "undecided" if self.passed is None else "yes" if self.passed else "no"


def certify(
    driven: Driven, judge: Judge, steps: list[int], tolerance: float = 0.02, seed: int = 0
) -> list[Row]:
    """Return a row for every number of steps.

    Args:
        driven: the scheduler.
        judge: of as many samples as it is to be judged on.
        steps: numbers of steps.
        tolerance: relative error of widths and means that passes.
        seed: of noise.

    Raises:
        ValueError: where a run does not end in finite numbers.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    plane, line = (
        torch.randn(judge.count, n, generator=generator, dtype=torch.float64)
        for n in (2, len(WIDTHS))
    )
    rows: list[Row] = []
    errors: dict[int, float | None] = {}
    for n in sorted(steps):
        ends, (start, t) = driven.run(judge.data.field, plane, n, seed)
        other, _ = driven.run(judge.data.field, plane[:FEW], n, seed + 1)
        gaussians, _ = driven.run(gaussian_field, line, n, seed)
        if not (ends.isfinite().all() and gaussians.isfinite().all()):
            raise ValueError(f"{driven.name} does not end in finite numbers at {n} steps")
        noisy, order = not torch.allclose(other, ends[:FEW]), None
        if not noisy and len(steps) > 1:
            errors[n] = error_of(ends[:FEW], driven, judge, start[:FEW], t)
            order = order_of(errors)
        figures: dict[str, Any] = biases(gaussians) | dict(zip(NEARNESS, judge(ends), strict=True))
        passed = passes(figures, tolerance, judge)
        cost = driven.evaluations, noisy
        rows.append(Row(driven.name, n, *cost, **figures, order=order, passed=passed))
    return rows


def least_samples(tolerance: float) -> int:
    """Return the least number of samples of whose widths four standard errors are the tolerance.

    Example:
        >>> least_samples(0.02), least_samples(0.01)
        (20000, 80000)
    """
    return math.ceil(8 / tolerance**2 * (1 - 1e-9))


def passes(figures: dict[str, float], tolerance: float, judge: Judge) -> bool | None:
    """Whether figures are those of the right distribution, None where too few samples say so."""
    error = 1 / math.sqrt(judge.count)
    close = abs(figures["width"]) <= tolerance + 4 * error / math.sqrt(2)
    close &= abs(figures["mean"]) <= tolerance + 4 * error
    close &= all(
        figures[name] <= 1.25 * floor for name, floor in zip(NEARNESS, judge.floor, strict=True)
    )
    return None if close and judge.count < least_samples(tolerance) else close


def error_of(ends: Tensor, driven: Driven, judge: Judge, start: Tensor, t: Tensor) -> float | None:
    """Return how far ends are from the converged ones, None without torchdiffeq."""
    try:
        truth = converged(judge.data, driven.reads.path, start, t)
    except ImportError as error:
        warn_once(f"the order of schedulers stays empty: {error}")
        return None
    return (ends - truth).norm().item()


@cache
def warn_once(message: str) -> None:
    """Warn, but not again of the same."""
    warnings.warn(message, stacklevel=4)


def order_of(errors: dict[int, float | None]) -> float | None:
    """Return the order between the two largest numbers of steps, if they have errors."""
    if len(errors) < 2:
        return None
    (fewer, before), (more, after) = list(errors.items())[-2:]
    return math.log(before / after) / math.log(more / fewer) if before and after else None


def table(rows: list[Row], judge: Judge) -> str:
    """Return the figures as a table of Markdown."""
    head = "scheduler | steps | evaluations | | width | mean | weights | distance | order | passes"
    lines = [f"| {head} |", "|---" * 10 + "|"]
    for row in rows:
        order = "" if row.order is None else f"{row.order:.1f}"
        cells = [row.scheduler, row.steps, row.evaluations, "SDE" if row.noisy else "ODE"]
        cells += [f"{100 * row.width:+.1f} %", f"{100 * row.mean:+.1f} %"]
        cells += [
            f"{row.weights:.4f}",
            f"{row.distance:.4f}",
            order,
            row.verdict,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    weights, distance = judge.floor
    lines.append(f"| fresh data | | | | | | {weights:.4f} | {distance:.4f} | | |")
    return "\n".join(lines)
