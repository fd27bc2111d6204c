r"""Gaussian paths from noise to data.

A Gaussian path moves a data point :math:`z` along

.. math:: x_t = \alpha_t z + \beta_t \varepsilon, \qquad \varepsilon \sim N(0, I),

from noise at :math:`t = 0` (:math:`\alpha = 0, \beta = 1`, or nearly) to data at :math:`t = 1`
(:math:`\alpha = 1, \beta = 0`, or nearly). Its conditional velocity is
:math:`u_t = \dot\alpha_t z + \dot\beta_t \varepsilon`. A path here is two functions of time and
their derivatives in closed form; everything else in the package is derived from these four.

The samples depend on a path only through its log signal-to-noise ratio
:math:`\lambda_t = \log(\alpha_t / \beta_t)`, so each path also knows the inverse, the time at
which it reaches a given :math:`\lambda`.

References: Lipman et al., "Flow Matching for Generative Modeling",
https://arxiv.org/abs/2210.02747; Albergo et al., "Stochastic Interpolants",
https://arxiv.org/abs/2303.08797; Song et al., "Score-Based Generative Modeling through SDEs",
https://arxiv.org/abs/2011.13456.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Coefficients(NamedTuple):
    r"""The four numbers of a path at a time: :math:`\alpha, \beta, \dot\alpha, \dot\beta`."""

    alpha: Tensor
    beta: Tensor
    d_alpha: Tensor
    d_beta: Tensor


def as_time(t: float | Tensor) -> Tensor:
    """Return `t` as a floating-point tensor; numbers become 0-dim float64 on the CPU."""
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    return t if t.is_floating_point() else t.double()


def expand_like(c: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient of shape `()` or `(batch,)` so that it multiplies `x` sample by sample.

    Raises:
        ValueError: if `c` is neither a scalar nor one number for each sample of `x`.

    Example:
        >>> expand_like(torch.ones(2), torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 1, 1, 1])
    """
    if c.ndim == 0:
        return c
    if c.shape != x.shape[:1]:
        raise ValueError(
            f"a time must be a scalar or have one value for each of the {x.shape[0]} samples, "
            f"got shape {tuple(c.shape)} for samples of shape {tuple(x.shape)}"
        )
    return c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class GaussianPath:
    r"""A path :math:`x_t = \alpha_t z + \beta_t \varepsilon`.

    Subclasses give `coefficients` and `time`.
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        r"""Return :math:`\alpha_t, \beta_t, \dot\alpha_t, \dot\beta_t` in the shape of `t`."""
        raise NotImplementedError

    def time(self, log_snr: Tensor) -> Tensor:
        r"""Return the time at which :math:`\log(\alpha_t/\beta_t)` has the given value."""
        raise NotImplementedError

    def __call__(self, t: float | Tensor) -> Coefficients:
        """Return the coefficients at `t`, a number or a tensor of any shape."""
        return self.coefficients(as_time(t))

    def alpha(self, t: float | Tensor) -> Tensor:
        r"""Return the weight :math:`\alpha_t` of the data."""
        return self(t).alpha

    def beta(self, t: float | Tensor) -> Tensor:
        r"""Return the weight :math:`\beta_t` of the noise, the standard deviation of the path."""
        return self(t).beta

    def d_alpha(self, t: float | Tensor) -> Tensor:
        r"""Return the time derivative :math:`\dot\alpha_t`."""
        return self(t).d_alpha

    def d_beta(self, t: float | Tensor) -> Tensor:
        r"""Return the time derivative :math:`\dot\beta_t`; :math:`-\infty` where it is so."""
        return self(t).d_beta

    def log_snr(self, t: float | Tensor) -> Tensor:
        r"""Return :math:`\lambda_t = \log(\alpha_t/\beta_t)`, infinite at an end without noise."""
        c = self(t)
        return torch.log(c.alpha) - torch.log(c.beta)

    def half_d_variance(self, t: float | Tensor) -> Tensor:
        r"""Return :math:`\beta_t \dot\beta_t`, half the derivative of the path's variance."""
        c = self(t)
        return c.beta * c.d_beta

    def tangent(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return finite :math:`(a, b, w)` with :math:`w\, u_t = a z + b \varepsilon`."""
        c = self(t)
        return c.d_alpha, c.d_beta, torch.ones_like(c.alpha)

    def flow_map(self, z: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        r"""Return :math:`\psi_t(\varepsilon | z) = \alpha_t z + \beta_t \varepsilon`.

        Args:
            z: data, shape `(batch, ...)`.
            eps: standard normal noise of the same shape.
            t: time in [0, 1], 0 is noise and 1 is data; a scalar or shape `(batch,)`.

        Example:
            >>> z, eps = torch.ones(2, 3), torch.zeros(2, 3)
            >>> Linear().flow_map(z, eps, torch.tensor([0.0, 0.5]))
            tensor([[0.0000, 0.0000, 0.0000],
                    [0.5000, 0.5000, 0.5000]])
        """
        c = self(t)
        return expand_like(c.alpha, z) * z + expand_like(c.beta, z) * eps


@dataclass(frozen=True)
class Linear(GaussianPath):
    r""":math:`\alpha = t, \beta = 1 - t`: conditional optimal transport, rectified flow."""

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return torch.sigmoid(log_snr)


@dataclass(frozen=True)
class Cosine(GaussianPath):
    r""":math:`\alpha = \sin(\pi t/2), \beta = \cos(\pi t/2)`: the trigonometric path."""

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        # cos(pi t/2) as a sine, which is exactly zero at t = 1
        alpha, beta = torch.sin(math.pi / 2 * t), torch.sin(math.pi / 2 * (1 - t))
        return Coefficients(alpha, beta, math.pi / 2 * beta, -math.pi / 2 * alpha)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return 2 / math.pi * torch.atan(torch.exp(log_snr))


@dataclass(frozen=True)
class Polynomial(GaussianPath):
    r""":math:`\alpha = t^n, \beta = 1 - t^n` for a degree :math:`n \ge 1`.

    For :math:`n > 1` the velocity vanishes at :math:`t = 0`, whatever the data.
    """

    degree: float = 2.0

    def __post_init__(self) -> None:
        if not self.degree >= 1:
            raise ValueError(
                f"degree must be at least 1, got {self.degree}: below it the velocity "
                "is infinite at t = 0"
            )

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        alpha, d_alpha = t**self.degree, self.degree * t ** (self.degree - 1)
        return Coefficients(alpha, 1 - alpha, d_alpha, -d_alpha)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return torch.sigmoid(log_snr) ** (1 / self.degree)


@dataclass(frozen=True)
class VariancePreserving(GaussianPath):
    r""":math:`\alpha = e^{-B/2}, \beta = \sqrt{1 - e^{-B}}`, the continuous limit of DDPM.

    With :math:`r = 1 - t`, :math:`B = \beta_{min} r + (\beta_{max} - \beta_{min}) r^2/2` (Song et
    al., VP SDE). At :math:`t = 0` a little data is left, :math:`\alpha_0 = 0.0066` by default; at
    :math:`t = 1` the derivative :math:`\dot\beta` is :math:`-\infty`.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"0 < beta_min < beta_max must hold, got beta_min={self.beta_min} "
                f"and beta_max={self.beta_max}"
            )

    def _integral_and_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r, growth = 1 - t, self.beta_max - self.beta_min
        return r * (self.beta_min + growth * r / 2), self.beta_min + growth * r

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        integral, rate = self._integral_and_rate(t)
        alpha, beta = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
        d_alpha = alpha * rate / 2
        return Coefficients(alpha, beta, d_alpha, -alpha * d_alpha / beta)

    def log_snr(self, t: float | Tensor) -> Tensor:  # noqa: D102
        return -torch.log(torch.expm1(self._integral_and_rate(as_time(t))[0])) / 2

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        integral, growth = softplus(-2 * log_snr, threshold=40), self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * growth * integral)
        return 1 - 2 * integral / (self.beta_min + root)

    def half_d_variance(self, t: float | Tensor) -> Tensor:  # noqa: D102
        c = self(t)
        return -c.alpha * c.d_alpha

    def tangent(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        c = self(t)
        return c.beta * c.d_alpha, -c.alpha * c.d_alpha, c.beta


@dataclass(frozen=True)
class VarianceExploding(GaussianPath):
    r""":math:`\alpha = 1, \beta = \sigma_{max} (\sigma_{min}/\sigma_{max})^t`, the VE SDE of Song.

    Both ends are near ones: at :math:`t = 0` the data is drowned, not absent, and samples end with
    the noise :math:`\sigma_{min}`. Sampling starts from noise of standard deviation
    :math:`\sigma_{max}`, the scheduler's `init_noise_sigma`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"0 < sigma_min < sigma_max must hold, got sigma_min={self.sigma_min} "
                f"and sigma_max={self.sigma_max}"
            )

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_min / self.sigma_max)

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        one, beta = torch.ones_like(t), self.sigma_max * torch.exp(self._rate * t)
        return Coefficients(one, beta, 0 * one, self._rate * beta)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return -(log_snr + math.log(self.sigma_max)) / self._rate


#: The paths by their names in a saved configuration. `PATHS["mine"] = MyPath` adds one; whoever
#: loads a pipeline saved with it must do the same first.
PATHS: dict[str, type[GaussianPath]] = {
    "linear": Linear,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "variance_preserving": VariancePreserving,
    "variance_exploding": VarianceExploding,
}
