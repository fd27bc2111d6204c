r"""Exponential multistep methods: the data prediction, interpolated through past evaluations.

With :math:`\rho = \alpha/\beta` and :math:`D = E[z|x]` the sampling ODE of every Gaussian path is
:math:`d(x/\beta) = D\, d\rho`, so that exactly

.. math:: x_s = \frac{\beta_s}{\beta_t} x_t + \beta_s \int_{\rho_t}^{\rho_s} D\, d\rho.

A method of order 2 replaces D by the line through its last two values. A line in which variable of
the clock :math:`u = \alpha/(\alpha + \beta)`? In :math:`(1 - u)^2` it is the D of a linear
:math:`z - \varepsilon`, so that the method is the Adams-Bashforth method for the velocity of the
linear path; unlike the logarithm of :math:`\rho` that variable is finite and smooth at the noise
and at the data, and neither the first nor the last step needs special treatment. The weights come
from Gauss-Legendre quadrature in float64.

As an SDE the step overshoots and is noised back (see `fm_diffusers.solvers.base`), and the history
moves along: on the sample's new trajectory a past prediction belongs to the signal-to-noise ratio
:math:`e^{-K} \rho`, which makes the marginals second-order accurate. There, where no line in z -
eps connects past and present, :math:`\arctan \rho` was measured to have the smaller error.

References: Lu et al., "DPM-Solver++", https://arxiv.org/abs/2211.01095 (data prediction,
exponential integrators); Zhang, Chen, "Fast Sampling of Diffusion Models with Exponential
Integrator", https://arxiv.org/abs/2204.13902 (multistep polynomials).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from fm_diffusers.paths import Coefficients
from fm_diffusers.solvers.base import Solver, Step

_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(32)


@dataclass(frozen=True)
class ExponentialMultistep(Solver):
    """Multistep method of order 2, or 1 (DDIM), with one evaluation a step; see the module."""

    steps_back: int = 2
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_back not in (1, 2):
            raise ValueError(f"steps_back must be 1 or 2, got {self.steps_back}")

    @property
    def order(self) -> int:  # noqa: D102
        return self.steps_back

    def slope(self, t: float) -> tuple[float, float]:  # noqa: D102
        return self.convert("sample", t)

    def steps(self, grid: list[float]) -> Iterator[Step]:  # noqa: D102
        past: list[float] = []  # the signal-to-noise ratios of the predictions, newest first
        for t, s in pairwise(grid):
            end, gain, std = self.landing(t, s)
            rho, rho_end, rho_s = map(self._snr, (t, end, s))
            past = [rho, *past][: self.steps_back]
            c = self.path(end)
            variable = _velocity_variable if std == 0 else np.arctan
            newest, *older = (gain * w for w in _weights(variable, past, rho_end, c))
            decay = gain * (c.beta / self.path.beta(t)).item()
            rows = [(*older, decay, newest, std)]
            if self.steps_back == 2:  # remember the newest prediction
                rows.append((*(0.0 for _ in older), 0.0, 1.0, 0.0))
            yield Step(t, (t, s), self.slope(t), tuple(rows))
            past = [value * rho_s / rho_end if rho_s < rho_end else value for value in past]

    def _snr(self, t: float) -> float:
        return self.path.log_snr(t).exp().item()


def _velocity_variable(rho: np.ndarray) -> np.ndarray:
    return 1 - 1 / (1 + rho) ** 2  # 1 - (1 - u)^2


def _weights(
    variable: Callable[[np.ndarray], np.ndarray],
    past: list[float],
    rho_end: float,
    end: Coefficients,
) -> np.ndarray:
    r"""Return :math:`\beta_{end} \int l_j\, d\rho` over the step, for each past prediction."""
    nodes = variable(np.array(past))
    if math.isinf(rho_end):
        return end.alpha.item() * _lagrange(nodes, variable(np.array(rho_end)))
    # in log(1 + rho) short steps at the noise and long ones at the data are equally smooth
    start, stop = math.log1p(past[0]), math.log1p(rho_end)
    v = start + (stop - start) * (_NODES + 1) / 2
    values = _lagrange(nodes, variable(np.expm1(v))) * np.exp(v)
    return end.beta.item() * (stop - start) / 2 * values @ _GAUSS_WEIGHTS


def _lagrange(nodes: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the Lagrange polynomials of the nodes at `q`, one row for each node."""
    return np.stack(
        [
            np.prod([(q - other) / (node - other) for other in np.delete(nodes, j)], axis=0)
            * np.ones_like(q)
            for j, node in enumerate(nodes)
        ]
    )
