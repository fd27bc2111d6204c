r"""The grids among which tuning chooses, for all samplers alike.

A grid maps a number of evaluations n to n noise levels of the linear path, sigma = 1 - t, that
descend from 1 and leave out the final 0. In log-SNR, :math:`\lambda = \ln((1-\sigma)/\sigma)`, a
grid means the same on every path.

References: Esser et al., https://arxiv.org/abs/2403.03206 (the shift); Karras et al.,
https://arxiv.org/abs/2206.00364 (equal steps in a root of 1/SNR).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Grid = Callable[[int], Tensor]


def logistic(shift: float = 1.0, scale: float = 1.0) -> Grid:
    r"""Return the grid :math:`\lambda_i = -\ln s + c\,\mathrm{logit}(i/n)` in log-SNR.

    A scale of 1 is diffusers' shifted uniform grid of the linear path.
    """

    def grid(n: int) -> Tensor:
        u = torch.arange(n, dtype=torch.float64) / n
        return torch.sigmoid(math.log(shift) - scale * torch.logit(u))

    return grid


def karras(low: float, high: float, rho: float = 7.0) -> Grid:
    """Return the grid with equal steps in `(1/SNR)^(1/rho)`; pure noise stands before it."""

    def grid(n: int) -> Tensor:
        ends = low ** (1 / rho), high ** (1 / rho)
        ratio = torch.linspace(ends[1], ends[0], n - 1, dtype=torch.float64) ** rho
        return torch.cat([torch.ones(1, dtype=torch.float64), ratio / (1 + ratio)])

    return grid


#: Descending sigmas of the linear path, noise first and without the final 0, as functions of n.
GRIDS: dict[str, Grid] = {
    f"logit {shift:g} x{scale:g}": logistic(shift, scale)
    for shift in (0.5, 1.0, 2.0, 3.0)
    for scale in (1.0, 1.4)
} | {"karras .05-20": karras(0.05, 20), "karras .002-80": karras(0.002, 80)}
