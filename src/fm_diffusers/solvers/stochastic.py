r"""Solvers of the SDE itself, driven by Brownian increments: the references.

.. math:: dX = f\, dt + \sigma_t\, dW, \qquad f = u_t - \frac{\sigma_t^2}{2\beta_t} \varepsilon_t.

They need a rate :math:`\sigma_t` and a finite drift, and steps short against
:math:`\beta_t/\sigma_t^2`; the step of `Solver.landing`, which any ODE solver can take, needs none
of these. Without a diffusion they are Euler's and Heun's method.

References: Kloeden, Platen, "Numerical Solution of Stochastic Differential Equations".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fm_diffusers.solvers.base import Solver
from fm_diffusers.solvers.steps import Step


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    r"""Euler-Maruyama: :math:`x + h f_t + \sigma_t \sqrt{h}\, \xi`, weak order 1.

    A step that starts at :math:`\alpha_t = 0`, where coefficients may be infinite, takes the alpha
    they are divided by at its end; see `fm_diffusers.diffusions.base`. The last step is noisy too.
    """

    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diffusion is not None:
            self.diffusion.check_rate()

    def slope(self, t: Tensor, step: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the weights in the drift at `t` of a step, by default of one to the data."""
        velocity = self.convert("velocity", t)
        if not self.noisy:
            return velocity
        step = (t, torch.ones_like(t)) if step is None else step
        assert self.diffusion is not None
        weight = self.diffusion.noise_weight(self.path, t, step)
        (a, b), (c, d) = velocity, self.convert("epsilon", t)
        return a - weight * c, b - weight * d

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return torch.ones_like(t), s - t

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        step = grid[:-1], grid[1:]
        variance, a, b = (values.tolist() for values in self._rates(step[0], step))
        for i, interval in enumerate(pairwise(grid.tolist())):
            yield self._euler(interval, (a[i], b[i]), variance[i])

    def _rates(self, t: Tensor, step: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the variance rate and the two weights of the slope at times `t` of steps."""
        variance = torch.zeros_like(t)
        if self.noisy:
            assert self.diffusion is not None
            variance = self.diffusion.squared(self.path, t, step)
        return variance, *self.slope(t, step)

    def _euler(
        self, interval: tuple[float, float], slope: tuple[float, float], variance: float
    ) -> Step:
        t, s = interval
        std = math.sqrt(variance * (s - t)) if variance else 0.0
        return Step(t, interval, slope, ((1.0, s - t),), std)


@dataclass(frozen=True)
class StochasticHeun(EulerMaruyama):
    r"""Stochastic Heun: the mean of the drifts at both ends, one Brownian increment; weak order 2.

    The increment has the variance :math:`h (\sigma_t^2 + \sigma_s^2)/2`. An interval whose end has
    no finite drift is taken with Euler-Maruyama.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        step = grid[:-1], grid[1:]
        starts, ends = (torch.stack(self._rates(t, step), 1) for t in step)
        possible = self.exists(step[1]) & ends.isfinite().all(1)
        for i, interval in enumerate(pairwise(grid.tolist())):
            (variance, *slope), (variance_end, *slope_end) = starts[i].tolist(), ends[i].tolist()
            if not possible[i]:
                yield self._euler(interval, tuple(slope), variance)
                continue
            mean = (variance + variance_end) / 2
            yield self._euler(interval, tuple(slope), mean)._replace(ends_interval=False)
            half = (interval[1] - interval[0]) / 2
            yield Step(interval[1], interval, tuple(slope_end), ((1.0, half, -half),))
