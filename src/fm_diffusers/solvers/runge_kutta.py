r"""Runge-Kutta methods: a method is its tableau, and the clock that it runs on.

With stages :math:`k_i = f(x_i)` at the clock times :math:`\tau + c_i h`,

.. math:: \frac{x_i}{S_i} = \frac{x_0}{S_0} + h \sum_{j<i} a_{ij} k_j, \qquad
          \frac{x_s}{S_s} = \frac{x_0}{S_0} + h \sum_j b_j k_j.

- On the `time` clock, :math:`\tau = t`, the scale is :math:`S = 1` and the slope is the path's own
  velocity :math:`u_t`.
- On the `snr` clock, :math:`\tau = \alpha/(\alpha + \beta)`, :math:`S = \alpha + \beta` and the
  slope is the velocity :math:`z - \varepsilon` of the linear path, to which every Gaussian path
  becomes equal: the samples depend on the signal-to-noise ratios of the grid, not on the path.
  Euler's method there keeps :math:`\hat z` and :math:`\hat\varepsilon` fixed over a step, which is
  DDIM.

An interval is taken with one evaluation (Euler) where the model's prediction gives no slope at a
later stage of it, as diffusers' Heun does at the end.

References: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I";
Song et al., "Denoising Diffusion Implicit Models", https://arxiv.org/abs/2010.02502.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fm_diffusers.predictions import CANONICAL
from fm_diffusers.solvers.base import Solver, Step, Weights


@dataclass(frozen=True)
class Tableau:
    """The Butcher tableau of an explicit method; its nodes are the sums of the rows of `a`."""

    order: int
    a: tuple[Weights, ...]
    b: Weights

    @property
    def c(self) -> Weights:
        """The nodes, as fractions of the interval."""
        return tuple(sum(row) for row in self.a)


EULER = Tableau(1, ((),), (1.0,))
MIDPOINT = Tableau(2, ((), (1 / 2,)), (0.0, 1.0))
HEUN = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method; see the module."""

    tableau: Tableau = EULER
    clock: str = "time"

    @property
    def order(self) -> int:  # noqa: D102
        return self.tableau.order

    @property
    def evaluations(self) -> int:  # noqa: D102
        return len(self.tableau.b)

    def slope(self, t: float) -> tuple[float, float]:  # noqa: D102
        return self.convert("velocity" if self.clock == "time" else CANONICAL, t)

    def cross(self, t: float, s: float) -> Iterator[Step]:  # noqa: D102
        end, gain, std = self.landing(t, s)
        (scale, start), (scale_end, stop) = self._frame(t), self._frame(end)
        h, tableau = stop - start, self.tableau
        nodes = [t, *(end if c == 1 else self._time(start + c * h) for c in tableau.c[1:])]
        if not all(map(self.exists, nodes)):
            nodes, tableau = [t], EULER
        points, noise = (*tableau.a[1:], tableau.b), (*[0.0] * len(nodes[1:]), std)
        scales = [*(self._frame(node)[0] for node in nodes[1:]), gain * scale_end]
        for i, node in enumerate(nodes):
            # all that is known: x_0 and the slopes k_0 .. k_i, but not the stage x_i itself
            size = 3 if i == 0 else i + 4
            known = [0, 1] if i == 0 else [*range(i + 1), i + 2]
            weights = [scales[i] / scale * w for w in (1.0, *(scale * h * w for w in points[i]))]
            rows = [_place(size, known, weights, noise[i])]
            last = i == len(nodes) - 1
            if not last:
                rows += [_place(size, [j], [1.0]) for j in known]
            yield Step(node, (t, s), self.slope(node), tuple(rows), ends_interval=last)

    def _frame(self, t: float) -> tuple[float, float]:
        """Return the scale and the clock at time `t`."""
        if self.clock == "time":
            return 1.0, t
        c = self.path(t)
        scale = c.alpha + c.beta
        return scale.item(), (c.alpha / scale).item()

    def _time(self, clock: float) -> float:
        if self.clock == "time":
            return clock
        return self.path.time(torch.logit(torch.tensor(clock, dtype=torch.float64))).item()


def _place(size: int, at: list[int], weights: list[float], noise: float = 0.0) -> Weights:
    row = [0.0] * (size - 1) + [noise]
    for j, w in zip(at, weights, strict=True):
        row[j] = w
    return tuple(row)
