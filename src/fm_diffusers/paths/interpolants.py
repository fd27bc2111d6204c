r"""Interpolants of other projects: paths that leave noise at the data.

With :math:`x = a z + b \varepsilon` on a known path, noise of standard deviation :math:`\sigma` is
left at the data in one of two ways. Every point is blurred (Tong et al.),

.. math:: x_t = a z + b \varepsilon + \sigma \xi, \qquad \alpha = a, \quad
          \beta = \sqrt{b^2 + \sigma^2}, \quad \beta \dot\beta = b \dot b,

where a network that regresses :math:`\dot a z + \dot b \varepsilon` learns the velocity of that
Gaussian path, since :math:`E[b \varepsilon | x, z] = (b^2/\beta^2)(x - a z)`. Or the straight path
stops short (Lipman et al.): :math:`\alpha = t, \beta = 1 - (1 - \sigma) t`.

References: Tong et al., "Improving and Generalizing Flow-Based Generative Models with Minibatch
Optimal Transport", https://arxiv.org/abs/2302.00482; Lipman et al., "Flow Matching for Generative
Modeling", https://arxiv.org/abs/2210.02747; Albergo, Vanden-Eijnden, "Building Normalizing Flows
with Stochastic Interpolants", https://arxiv.org/abs/2209.15571.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.paths.base import Coefficients, GaussianPath, as_time
from fm_diffusers.paths.continuous import Cosine, Linear


@dataclass(frozen=True)
class _LinearVariancePreserving(GaussianPath):
    r""":math:`\alpha = t, \beta = \sqrt{1 - t^2}`: the cosine path, timed by its data."""

    def coefficients(self, t: Tensor) -> Coefficients:
        beta = torch.sqrt((1 - t) * (1 + t))
        return Coefficients(t, beta, torch.ones_like(t), -t / beta)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2 * log_snr))

    def half_d_variance(self, t: float | Tensor) -> Tensor:
        return -as_time(t)

    def tangent(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self(t)
        return c.beta, -c.alpha, c.beta


class Base(NamedTuple):
    r"""A path, and what becomes of it with noise :math:`\sigma` at the data.

    Attributes:
        path: the path without it.
        beta: :math:`\beta` as a function of t, b and :math:`\sigma`.
        half_d_variance: :math:`\beta \dot\beta` as a function of t, :math:`b \dot b` and sigma.
        time: the time of :math:`(\beta/\alpha)^2`, a function of it and of :math:`\sigma^2`. Below
            its least value, which is reached at t = 1 or soon after, the time of that one.
    """

    path: GaussianPath
    beta: Callable[[Tensor, Tensor, float], Tensor]
    half_d_variance: Callable[[Tensor, Tensor, float], Tensor]
    time: Callable[[Tensor, float], Tensor]


def _blurred(path: GaussianPath, time: Callable[[Tensor, float], Tensor]) -> Base:
    return Base(path, lambda t, b, s: torch.sqrt(b**2 + s**2), lambda t, bdb, s: bdb, time)


def _linear_time(ratio: Tensor, v: float) -> Tensor:
    return (1 + v) / (1 + torch.sqrt((ratio * (1 + v) - v).clamp(min=0)))


def _cosine_time(ratio: Tensor, v: float) -> Tensor:
    side = torch.sqrt((ratio - v).clamp(min=0))
    return 2 / math.pi * torch.atan2(torch.full_like(side, math.sqrt(1 + v)), side)


def _linear_vp_time(ratio: Tensor, v: float) -> Tensor:
    return torch.sqrt((1 + v) / (1 + ratio))


#: What an `Interpolant` is made of, by name.
BASES: dict[str, Base] = {
    "linear": _blurred(Linear(), _linear_time),
    "cosine": _blurred(Cosine(), _cosine_time),
    "linear_vp": _blurred(_LinearVariancePreserving(), _linear_vp_time),
    "target": Base(
        Linear(),
        lambda t, b, s: b + s * t,
        lambda t, bdb, s: (s - 1) * (1 + (s - 1) * t),
        lambda ratio, v: 1 / (torch.sqrt(ratio) + (1 - math.sqrt(v))),
    ),
}


@dataclass(frozen=True)
class Interpolant(GaussianPath):
    r""":math:`\alpha = a, \beta` from b and :math:`\sigma`: paths with noise at the data.

    Attributes:
        base: `linear`, `cosine` or `linear_vp` (:math:`a = t, b = \sqrt{1 - t^2}`), which are
            blurred, or `target`, the straight path that stops short; see the module.
        sigma: standard deviation of the noise at the data. A blurred path starts with
            :math:`\sqrt{1 + \sigma^2}`.
    """

    base: str = "linear"
    sigma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in BASES:
            raise ValueError(f"base must be one of {', '.join(BASES)}, got {self.base!r}")
        largest = 1.0 if self.base == "target" else math.inf
        if not 0 <= self.sigma < largest:
            raise ValueError(
                f"sigma of {self.base!r} must be at least 0 and less than {largest}, got "
                f"{self.sigma}: it is the standard deviation of the noise left at the data"
            )

    @property
    def _base(self) -> Base:
        return BASES[self.base]

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        c = self._base.path(t)
        if not self.sigma:
            return c
        beta = self._base.beta(t, c.beta, self.sigma)
        return Coefficients(c.alpha, beta, c.d_alpha, self.half_d_variance(t) / beta)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        if not self.sigma:
            return self._base.path.time(log_snr)
        return self._base.time(torch.exp(-2 * log_snr), self.sigma**2)

    def half_d_variance(self, t: float | Tensor) -> Tensor:  # noqa: D102
        t = as_time(t)
        half = self._base.path.half_d_variance(t)
        return self._base.half_d_variance(t, half, self.sigma) if self.sigma else half

    def tangent(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        return super().tangent(t) if self.sigma else self._base.path.tangent(t)
