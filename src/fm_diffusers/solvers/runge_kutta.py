r"""Runge-Kutta methods: a method is its tableau, and the clock that it runs on.

With stages :math:`k_i = f(x_i)` at the clock times :math:`\tau + c_i h`,

.. math:: \frac{x_i}{S_i} = \frac{x_0}{S_0} + h \sum_{j<i} a_{ij} k_j, \qquad
          \frac{x_s}{S_s} = \frac{x_0}{S_0} + h \sum_j b_j k_j,

so that each stage is the one before it and a combination of slopes:
:math:`x_{i+1}/S_{i+1} = x_i/S_i + h \sum_j (a_{i+1,j} - a_{ij}) k_j`.

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
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fm_diffusers.predictions import CANONICAL
from fm_diffusers.solvers.base import Solver
from fm_diffusers.solvers.steps import Step, Weights


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clock not in ("time", "snr"):
            raise ValueError(f"clock must be 'time' or 'snr', got {self.clock!r}")

    # what other solvers have of their class follows here from the tableau
    @property
    def order(self) -> int:  # type: ignore[override]  # noqa: D102
        return self.tableau.order

    @property
    def evaluations(self) -> int:  # type: ignore[override]  # noqa: D102
        return len(self.tableau.b)

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.convert("velocity" if self.clock == "time" else CANONICAL, t)

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        starts, stops = grid[:-1], grid[1:]
        landing = self.landing(starts, stops)
        start, stop = self._frame(starts)[1], self._frame(landing.t)[1]
        nodes = [
            starts if c == 0 else landing.t if c == 1 else self._time(start + c * (stop - start))
            for c in self.tableau.c
        ]
        possible = torch.stack([self.exists(node) for node in nodes]).all(0).tolist()
        frames = [self._frame(node) for node in [*nodes, landing.t]]
        slopes = [self.slope(node) for node in nodes]
        for i, interval in enumerate(pairwise(grid.tolist())):
            tableau = self.tableau if possible[i] else EULER
            used = [*range(len(tableau.b)), -1]
            scales = [frames[k][0][i].item() for k in used]
            h = (stop[i] - start[i]).item()
            known: list[float] = [0.0] * len(tableau.b)
            for k, points in enumerate([*tableau.a[1:], tableau.b]):
                last = k == len(tableau.b) - 1
                gain = landing.gain[i].item() if last else 1.0
                wanted = [*points, *known[len(points) :]]
                moved = [h * (w - v) for w, v in zip(wanted, known, strict=True)][k::-1]
                row = (gain * scales[k + 1] / scales[k],) + tuple(
                    gain * scales[k + 1] * w for w in moved
                )
                known = wanted
                yield Step(
                    nodes[k][i].item(),
                    interval,
                    (slopes[k][0][i].item(), slopes[k][1][i].item()),
                    (row,),
                    landing.std[i].item() if last else 0.0,
                    last,
                )

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        landing = self.landing(t, s)
        (size, start), (size_end, stop) = self._frame(t), self._frame(landing.t)
        return landing.gain * size_end / size, landing.gain * size_end * (stop - start)

    def _frame(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and the clock at times `t`."""
        if self.clock == "time":
            return torch.ones_like(t), t
        c = self.path(t)
        scale = c.alpha + c.beta
        return scale, c.alpha / scale

    def _time(self, clock: Tensor) -> Tensor:
        return clock if self.clock == "time" else self.path.time(torch.logit(clock))


@dataclass(frozen=True)
class FlowMap(RungeKutta):
    """The step of a network of two times: the whole step is one average slope, without an error.

    It is Euler's step on the `snr` clock, with a network that is also told where the step leads;
    see `fm_diffusers.flow_maps`. A noisy step is mapped to its landing and noised back.
    """

    tableau: Tableau = field(default=EULER, init=False)
    clock: str = field(default="snr", init=False)
    two_times: ClassVar[bool] = True

    def advance(self, t: Tensor, s: Tensor) -> Tensor:
        """Return by how much steps from `t` to `s` move the clock, up to their landing."""
        return self._frame(self.landing(t, s).t)[1] - self._frame(t)[1]
