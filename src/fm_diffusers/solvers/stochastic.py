r"""Solvers of the SDE itself, driven by Brownian increments: the references.

.. math:: dX = f\, dt + \sigma_t\, dW, \qquad f = u_t - \frac{\sigma_t^2}{2\beta_t} \varepsilon_t.

They need the drift to be finite, and steps short against :math:`\beta_t/\sigma_t^2`; the step of
`Solver.landing`, which any ODE solver can take, needs neither. Without a diffusion they are
Euler's and Heun's method.

References: Kloeden, Platen, "Numerical Solution of Stochastic Differential Equations".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fm_diffusers.solvers.base import Solver, Step


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    r"""Euler-Maruyama: :math:`x + h f_t + \sigma_t \sqrt{h}\, \xi`, weak order 1."""

    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        velocity = self.convert("velocity", t)
        if not self.noisy:
            return velocity
        weight = self.diffusion.noise_weight(self.path, t)
        return tuple(
            u - weight * e for u, e in zip(velocity, self.convert("epsilon", t), strict=True)
        )

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return torch.ones_like(t), s - t

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        variance, a, b = self._tabulated(grid)
        for i, (t, s) in enumerate(pairwise(grid.tolist())):
            yield self._euler(t, s, (a[i], b[i]), variance[i])

    def _tabulated(self, grid: Tensor) -> list[list[float]]:
        """Return the variance rate and the two weights of the slope at the times of the grid."""
        none = torch.zeros_like(grid)
        variance = none if not self.noisy else self.diffusion.squared(self.path, grid)
        return [values.tolist() for values in (variance, *self.slope(grid))]

    def _euler(self, t: float, s: float, slope: tuple[float, float], variance: float) -> Step:
        std = math.sqrt(variance * (s - t)) if variance else 0.0
        return Step(t, (t, s), slope, ((1.0, s - t),), std)


@dataclass(frozen=True)
class StochasticHeun(EulerMaruyama):
    r"""Stochastic Heun: the mean of the drifts at both ends, one Brownian increment; weak order 2.

    The increment has the variance :math:`h (\sigma_t^2 + \sigma_s^2)/2`. An interval whose end has
    no finite drift is taken with Euler-Maruyama.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        variance, a, b = self._tabulated(grid)
        possible = self.exists(grid).tolist()
        for i, (t, s) in enumerate(pairwise(grid.tolist())):
            if not possible[i + 1]:
                yield self._euler(t, s, (a[i], b[i]), variance[i])
                continue
            mean = (variance[i] + variance[i + 1]) / 2
            yield self._euler(t, s, (a[i], b[i]), mean)._replace(ends_interval=False)
            half = (s - t) / 2
            yield Step(s, (t, s), (a[i + 1], b[i + 1]), ((1.0, half, -half),))
