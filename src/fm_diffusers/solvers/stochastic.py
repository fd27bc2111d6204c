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
from typing import ClassVar

from fm_diffusers.solvers.base import Solver, Step


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    r"""Euler-Maruyama: :math:`x + h f_t + \sigma_t \sqrt{h}\, n`, weak order 1."""

    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def slope(self, t: float) -> tuple[float, float]:  # noqa: D102
        velocity = self.convert("velocity", t)
        if self.diffusion is None:
            return velocity
        weight = self.diffusion.noise_weight(self.path, t).item()
        return tuple(
            u - weight * e for u, e in zip(velocity, self.convert("epsilon", t), strict=True)
        )

    def cross(self, t: float, s: float) -> Iterator[Step]:  # noqa: D102
        yield Step(
            t, (t, s), self.slope(t), ((1.0, s - t, math.sqrt(self._variance(t) * (s - t))),)
        )

    def _variance(self, t: float) -> float:
        return 0.0 if self.diffusion is None else self.diffusion.squared(self.path, t).item()


@dataclass(frozen=True)
class StochasticHeun(EulerMaruyama):
    r"""Stochastic Heun: the mean of the drifts at both ends, one Brownian increment; weak order 2.

    The increment has the variance :math:`h (\sigma_t^2 + \sigma_s^2)/2`. An interval whose end has
    no finite drift is taken with Euler-Maruyama.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def cross(self, t: float, s: float) -> Iterator[Step]:  # noqa: D102
        if not self.exists(s):
            yield from super().cross(t, s)
            return
        h = s - t
        std = math.sqrt((self._variance(t) + self._variance(s)) / 2 * h) if h > 0 else 0.0
        rows = ((1.0, h, std), (1.0, h / 2, std))
        yield Step(t, (t, s), self.slope(t), rows, ends_interval=False)
        yield Step(s, (t, s), self.slope(s), ((1.0, 0.0, h / 2, 0.0),))
