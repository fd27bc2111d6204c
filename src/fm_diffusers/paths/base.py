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
from dataclasses import dataclass, field
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.forms import misfit


class Coefficients(NamedTuple):
    r"""The four numbers of a path at a time: :math:`\alpha, \beta, \dot\alpha, \dot\beta`."""

    alpha: Tensor
    beta: Tensor
    d_alpha: Tensor
    d_beta: Tensor


def as_time(t: float | Tensor) -> Tensor:
    """Return `t` as a floating-point tensor; numbers become 0-dim float64 on the CPU."""
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    if t.is_floating_point():
        return t
    return t.double() if t.device.type == "cpu" else t.float()  # float64 stays on the CPU


#: Larger ones, as integers, go into no tensor.
LARGEST_INTEGER = 2**63 - 1


def is_number(value: object) -> bool:
    """Whether a value is a real number that tensors can hold, which a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return not isinstance(value, int) or -LARGEST_INTEGER <= value <= LARGEST_INTEGER


def check_positive(**values: float) -> None:
    """Raise a `ValueError` unless every value is a positive and finite number."""
    for name, value in values.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}: give a number")


def check_finite(**values: float) -> None:
    """Raise a `ValueError` unless every value is a finite number."""
    for name, value in values.items():
        if not is_number(value) or not -math.inf < value < math.inf:
            raise ValueError(f"{name} must be finite, got {value!r}: give a number")


def snapped(t: Tensor) -> Tensor:
    """Return times, those that lie beyond 0 or 1 by rounding alone at that end.

    A time that was computed keeps half the digits of its dtype on every path. Others are left as
    they are, for the caller to refuse.
    """
    end = t.clamp(0, 1)
    return torch.where((t - end).abs() <= torch.finfo(t.dtype).eps ** 0.5, end, t)


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


@dataclass(frozen=True, eq=False, repr=False)
class GaussianPath:
    r"""A path :math:`x_t = \alpha_t z + \beta_t \varepsilon`.

    Subclasses give `coefficients` and `time`.

    **Coupled noise.** Where :math:`\varepsilon` is paired with :math:`z`, by optimal transport or
    by a flow that is straightened, :math:`x_t` is not Gaussian given z. The ODE stays right:
    solvers integrate the same velocity in other variables, which is an identity whatever the noise
    is. But no score follows from the velocity, so there is no SDE.

    Attributes:
        coupled: whether noise and data were paired in the training. Solvers then refuse a
            diffusion.
    """

    coupled: bool = field(default=False, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.coupled, bool):
            raise ValueError(f"coupled must be True or False, got {self.coupled!r}")

    def coefficients(self, t: Tensor) -> Coefficients:
        r"""Return :math:`\alpha_t, \beta_t, \dot\alpha_t, \dot\beta_t` in the shape of `t`."""
        raise misfit("path", type(self).__name__, "it has no coefficients")

    def time(self, log_snr: Tensor) -> Tensor:
        r"""Return the time at which :math:`\log(\alpha_t/\beta_t)` has the given value."""
        raise misfit("path", type(self).__name__, "it has no time")

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
            >>> from fm_diffusers.paths import Linear
        >>> z, eps = torch.ones(2, 3), torch.zeros(2, 3)
            >>> Linear().flow_map(z, eps, torch.tensor([0.0, 0.5]))
            tensor([[0.0000, 0.0000, 0.0000],
                    [0.5000, 0.5000, 0.5000]])
        """
        c = self(t)
        return expand_like(c.alpha, z) * z + expand_like(c.beta, z) * eps


def common_times(path: GaussianPath, other: GaussianPath) -> tuple[float, float]:
    """Return the first and the last time of a path whose signal-to-noise ratio the other has too.

    A network trained on `other` says nothing about samples on `path` before and after.

    Example:
        >>> from fm_diffusers.paths import Linear, NoiseLevel
        >>> common_times(Linear(), NoiseLevel(sigma_max=3.0))
        (0.25, 1.0)
    """
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    own, theirs = path.log_snr(ends), other.log_snr(ends)
    first, last = path.time(theirs).clamp(0, 1).tolist()
    return first if theirs[0] > own[0] else 0.0, last if theirs[1] < own[1] else 1.0


#: Times strictly inside at which a path is tried, no node of any table.
_TRIED, _STEP = torch.tensor([0.2037, 0.5071, 0.8113], dtype=torch.float64), 1e-5


def check_path(path: GaussianPath) -> None:
    """Raise a `ValueError` that shows the right form if `path` is not what solvers need.

    Its coefficients must be four tensors in the shape of the time, the last two derivatives of the
    first two, with a signal-to-noise ratio that increases, of which `time` is the inverse.
    """
    name = type(path).__name__
    if not isinstance(path, GaussianPath):
        raise misfit("path", name, f"a {name} is no GaussianPath")
    t, h = _TRIED, _STEP
    found = path(t)
    four = isinstance(found, Coefficients)
    if not four or not all(isinstance(c, Tensor) and c.shape == t.shape for c in found):
        fault = "coefficients(t) must return Coefficients, four tensors in the shape of t, got a "
        raise misfit("path", name, fault + type(found).__name__)
    before, after = path(t - h), path(t + h)
    for value, rate in (("alpha", "d_alpha"), ("beta", "d_beta")):
        slope = (getattr(after, value) - getattr(before, value)) / (2 * h)
        error = (getattr(found, rate) - slope).abs() / (1e-3 + slope.abs())
        if not (error < 0.02).all():
            fault = f"{rate} must be the derivative of {value}, {slope.tolist()} at t = "
            raise misfit("path", name, f"{fault}{t.tolist()}, got {getattr(found, rate).tolist()}")
    log_snr = path.log_snr(t)
    if not (log_snr.diff() > 0).all():
        fault = (
            f"alpha/beta must increase from noise (t = 0) to data, got {log_snr.exp().tolist()}"
        )
        raise misfit("path", name, fault)
    times = path.time(log_snr)
    if (
        not isinstance(times, Tensor)
        or times.shape != t.shape
        or not (times - t).abs().max() < 1e-3
    ):
        got = times.tolist() if isinstance(times, Tensor) else type(times).__name__
        fault = f"time must be the inverse of log_snr, {t.tolist()}, got {got}"
        raise misfit("path", name, fault)
