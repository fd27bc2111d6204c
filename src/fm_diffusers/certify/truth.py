"""Data whose distribution and whose field are known, and distances from them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.fields import Field, GaussianMixture
from fm_diffusers.paths import GaussianPath, Linear
from fm_diffusers.predictions import target
from fm_diffusers.solvers import integrate_adaptive

#: Standard deviations of the Gaussians, whose mean is 1.
WIDTHS = (0.1, 0.35, 0.5, 1.0, 2.0)
#: What a `Judge` says.
NEARNESS = ("weights", "distance")
#: Sets of fresh data.
SETS = 16


def gaussian_field(path: GaussianPath, prediction: str, widths: Sequence[float] = WIDTHS) -> Field:
    r"""Return the exact field of data N(1, s^2), a column for each width s.

    .. math:: E[z|x] = 1 + \alpha s^2 r, \quad E[\varepsilon|x] = \beta r, \quad
              r = \frac{x - \alpha}{\alpha^2 s^2 + \beta^2}
    """
    variance = torch.tensor(widths, dtype=torch.float64) ** 2

    def ask(x: Tensor, t: Tensor) -> Tensor:
        c = path(t)
        r = (x - c.alpha) / (c.alpha**2 * variance + c.beta**2)
        return target(path, prediction, 1 + c.alpha * variance * r, c.beta * r, t)

    return ask


def modes(seed: int) -> GaussianMixture:
    """Return eight round modes in the plane, of unequal weights and sizes."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(8, 4, generator=generator, dtype=torch.float64)
    return GaussianMixture(3 * u[:, :2] - 1.5, 0.05 + 0.15 * u[:, 2], 0.2 + u[:, 3])


class Judge:
    """The truth that samples of eight modes in the plane are compared with.

    Args:
        count: how many samples there will be.
        seed: of the data.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.data, generator = modes(7), torch.Generator().manual_seed(seed)
        angles = torch.arange(32, dtype=torch.float64) * (math.pi / 32)
        self.directions = torch.stack([angles.cos(), angles.sin()])
        sets = [self.data.sample(count, generator) for _ in range(SETS)]
        whole = torch.cat(sets)
        self.occupied = self._occupied(whole)
        self.quantiles = (whole @ self.directions).sort(0).values[SETS // 2 :: SETS]
        self.floor = tuple(map(max, zip(*map(self, sets), strict=True)))

    def __call__(self, x: Tensor) -> tuple[float, float]:
        """Return the distances of the weights of modes, and of the samples."""
        weights = (self._occupied(x) - self.occupied).abs().sum().item() / 2
        ends = (x @ self.directions).sort(0).values
        return weights, (ends - self.quantiles).square().mean().sqrt().item()

    def _occupied(self, x: Tensor) -> Tensor:
        nearest = (torch.cdist(x, self.data.means) / self.data.stds).argmin(1)
        return torch.bincount(nearest, minlength=len(self.data.means)).double() / len(x)


def biases(ends: Tensor) -> dict[str, float]:
    """Return the worst errors of width and mean, relative to the width."""
    widths = torch.tensor(WIDTHS, dtype=torch.float64)
    width, mean = ends.std(0) / widths - 1, (ends.mean(0) - 1) / widths
    return {name: v[v.abs().argmax()].item() for name, v in (("width", width), ("mean", mean))}


def converged(data: GaussianMixture, path: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
    r"""Return where the exact ODE leads samples of a path at a time t.

    All paths are the linear one on the clock :math:`u = \alpha/(\alpha + \beta)`.
    """
    c = path(t)
    y, u = x / (c.alpha + c.beta), (c.alpha / (c.alpha + c.beta)).clamp(min=0).item()
    accuracy: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9, "method": "dopri8"}
    return integrate_adaptive(Linear(), data.field(Linear()), y, u, 1.0, **accuracy)
