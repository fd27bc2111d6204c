r"""One Brownian path for each sample, and the clock on which an SDE reads it.

A step's noise enters as a standard normal n, and which piece of a path it is decides whether two
half steps do what the whole step does. For data of variance one the exact field is linear, with
:math:`V = \alpha^2 + \beta^2` the variance of the samples, and the SDE has the exact solution

.. math:: \frac{x_b}{\sqrt{V_b}} = e^{-(L_b - L_a)} \frac{x_a}{\sqrt{V_a}}
          + \sqrt{1 - e^{-2(L_b - L_a)}}\, n, \quad
          n = \frac{W(s_b) - W(s_a)}{\sqrt{s_b - s_a}}, \quad
          s_t = e^{2L_t}, \quad dL = \frac{\sigma_t^2}{2 V_t} dt,

which a path W carries from time to time whatever the steps: the noise of a sample is
:math:`W(s_t)`, scaled. The clock s depends on nothing of a run, neither its grid nor its windows,
and is finite at the data for every coefficient. For the memoryless one it is
:math:`\alpha^2/(\alpha^2 + \beta^2)`, DDPM's :math:`\bar\alpha`; where L is finite at the noise it
is :math:`e^{2L} - 1`, L counted from there. It is found from the K of the coefficient,
:math:`dL = dK/(1 + \alpha^2/\beta^2)`. A coefficient whose K does not add up over steps has the
clock of the memoryless one, to which it tends as steps shrink, up to its scale.

s covers many orders of magnitude near the noise, so that one tree of a finite tolerance would be
too coarse. Each octave :math:`[2^j, 2^{j+1}]` has a tree of
its own, and an increment is the sum of its parts. A path is a function of its seed alone: nothing
is kept, so that neither the order of queries, nor a grid, a batch or a thread has an influence.

References: Li et al., "Scalable Gradients for Stochastic Differential Equations",
https://arxiv.org/abs/2001.01328 (the Brownian tree); Kidger et al., "Efficient and Accurate
Gradients for Neural SDEs", https://arxiv.org/abs/2105.13493, and its torchsde,
https://github.com/google-research/torchsde.
"""

import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fm_diffusers.diffusions import DIFFUSIONS, Diffusion, name_of
from fm_diffusers.paths import GaussianPath

#: To how much of an octave the ends of an increment are rounded, and how many octaves an increment
#: reaches back: those before add less than this to its variance.
TOLERANCE, OCTAVES = 1e-9, 30

#: The log signal-to-noise ratios between which L is summed, and of how many cells. Noise before is
#: that of no data at all; after them less of it is left than float32 shows.
RANGE, CELLS = 20.0, 4000

#: Octaves have either sign, entropy none.
_ZERO_OCTAVE = 2**31


class Span(NamedTuple):
    """What a step reads of a path.

    Attributes:
        start: log2 of the clock at the start of the step, -inf for none.
        stop: log2 of the clock at its end.
        scale: of the coefficient. Each scale has a path of its own, for their clocks differ: steps
            of two scales, one after the other, could otherwise read the same piece.
        times: the two times of the step.
    """

    start: float
    stop: float
    scale: float
    times: tuple[float, float]


@dataclass(frozen=True)
class BrownianClock:
    """The clock of a coefficient on a path; see the module.

    Attributes:
        path: the path on which the samples are.
        diffusion: the coefficient of dW.
    """

    path: GaussianPath
    diffusion: Diffusion

    def spans(self, steps: Sequence[tuple[float, float]]) -> tuple[Span, ...]:
        """Return what steps between pairs of times read of a path."""
        readings = self(torch.tensor(steps, dtype=torch.float64)).tolist()
        scale = float(self.diffusion.scale)
        return tuple(
            Span(start, stop, scale, times)
            for (start, stop), times in zip(readings, steps, strict=True)
        )

    def __call__(self, t: Tensor) -> Tensor:
        """Return log2 of the clock at times of any shape, float64."""
        elapsed = 2 * self._elapsed(t)
        log = elapsed if self._forgets else elapsed + torch.log(-torch.expm1(-elapsed))
        return log / math.log(2)

    @cached_property
    def process(self) -> Diffusion:
        """The coefficient whose K is counted, acting everywhere."""
        everywhere = replace(self.diffusion, windows=None)
        if everywhere.profile is not None:
            return everywhere
        a, b, c = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
        first, second, whole = (
            everywhere.integral(self.path, *ends) for ends in ((a, b), (b, c), (a, c))
        )
        if whole.isfinite() and torch.isclose(first + second, whole, rtol=1e-9):
            return everywhere
        if not everywhere.integral(self.path, b, b + 1e-6) < 1e-2:
            warnings.warn(
                f"{name_of(self.diffusion)} adds noise that does not shrink with the step and is "
                "the step of no SDE: noise='brownian' makes it independent of the batch, but more "
                "steps do not refine the same image; take 'precise' or 'flow_grpo' for that",
                stacklevel=2,
            )
        return DIFFUSIONS["memoryless"]

    @cached_property
    def _edges(self) -> Tensor:
        """The times between which L is summed."""
        ends = self.path.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
        first, last = ends.clamp(-RANGE, RANGE).tolist()
        log_snr = torch.linspace(first, last, CELLS + 1, dtype=torch.float64)
        return self.path.time(log_snr).clamp(0, 1 - 1e-9)

    @cached_property
    def _before(self) -> Tensor:
        """The K before the edges, infinite where all noise is forgotten."""
        return self.process.integral(self.path, torch.zeros_like(self._edges[0]), self._edges[0])

    @cached_property
    def _forgets(self) -> bool:
        """Whether K is infinite at the noise."""
        return not self._before.isfinite()

    @cached_property
    def _sums(self) -> Tensor:
        """L at the edges, from the noise, or from the first edge where it is infinite there."""
        cells = self._within(self._edges[:-1], self._edges[1:])
        start = torch.zeros_like(self._before) if self._forgets else self._before
        return torch.cat([start[None], start + cells.cumsum(0)])

    def _within(self, t: Tensor, s: Tensor) -> Tensor:
        """Return L from times to others in the same cell."""
        weight = sum(torch.sigmoid(-2 * self.path.log_snr(end)) for end in (t, s)) / 2
        return torch.where(t == s, 0.0, self.process.integral(self.path, t, s) * weight)

    def _elapsed(self, t: Tensor) -> Tensor:
        """Return L at times, from where `_sums` counts it."""
        edges, t = self._edges, t.clamp(max=self._edges[-1])
        cell = (torch.searchsorted(edges, t, right=True) - 1).clamp(0, CELLS - 1)
        edge = edges[cell]
        within = self._within(torch.minimum(edge, t), torch.maximum(edge, t))
        return self._sums[cell] + torch.where(t < edge, -within, within)


@dataclass(frozen=True)
class BrownianPaths:
    """A Brownian path for each sample of a batch, by its seed; see the module."""

    seeds: tuple[int, ...]

    def increments(self, span: Span, like: Tensor) -> Tensor:
        """Return the increments of the paths over a step, divided by their deviation.

        They are drawn in float32 on the CPU, whatever the samples are, and copied to their device.

        Args:
            span: what the step reads.
            like: the samples, shape `(batch, ...)`. A batch of several copies of the samples, as
                Cosmos makes two to ask, has a path for each sample, not for each copy.

        Raises:
            ValueError: for another number of samples than the loop began with.
        """
        count = len(self.seeds)
        if len(like) % count:
            raise ValueError(
                f"the loop began with {count} samples, one Brownian path for each, and now has "
                f"{len(like)}: keep the batch, or begin a loop with it (step_index=None)"
            )
        each = torch.stack([_increment(seed, span, like.shape[1:]) for seed in self.seeds])
        return each.repeat(len(like) // count, *[1] * (like.ndim - 1)).to(like)


def _increment(seed: int, span: Span, shape: torch.Size) -> Tensor:
    r"""Return the increment of a path over a step, divided by its deviation.

    A step that is too short for the trees has noise of its own.
    """
    parts = _parts(span.start, span.stop)
    path = [seed, _bits(span.scale)]
    if not parts:
        return _tree([*path, *map(_bits, span.times)], shape)(0.0, 1.0)
    top = parts[-1][0]
    sizes = [2.0 ** (octave - top) for octave, _, _ in parts]
    total, variance = torch.zeros(shape), 0.0
    for size, (octave, low, high) in zip(sizes, parts, strict=True):
        total += math.sqrt(size) * _tree([*path, octave + _ZERO_OCTAVE], shape)(low, high)
        variance += size * (high - low)
    return total / math.sqrt(variance)


def _parts(start: float, stop: float) -> list[tuple[int, float, float]]:
    """Return the octaves that a span touches, and from where to where in each, 0 to 1."""
    if not -math.inf < stop < math.inf:
        return []
    top = math.floor(stop)
    first = max(top - OCTAVES, math.floor(start) if start > -math.inf else top - OCTAVES)
    digits = -round(math.log10(TOLERANCE))
    parts = []
    for octave in range(first, top + 1):
        low, high = (
            round(min(max(math.expm1((end - octave) * math.log(2)), 0.0), 1.0), digits)
            for end in (start, min(stop, octave + 1))
        )
        if low < high:
            parts.append((octave, low, high))
    return parts


def _tree(entropy: list[int], shape: torch.Size) -> Any:
    """Return a Brownian path on [0, 1] that depends on its entropy alone."""
    from torchsde import BrownianInterval

    return BrownianInterval(
        0.0,
        1.0,
        size=tuple(shape),
        dtype=torch.float32,
        H=torch.zeros(shape),  # else drawn, and not used
        entropy=entropy,
        tol=TOLERANCE,
        halfway_tree=True,
        cache_size=None,
    )


def _bits(number: float) -> int:
    return int.from_bytes(struct.pack("<d", number), "little")
