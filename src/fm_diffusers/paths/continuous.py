"""The paths in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fm_diffusers.paths.base import Coefficients, GaussianPath, as_time, check_positive, is_number


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
    r""":math:`\alpha = \sin(\pi t/2)/s, \beta = \cos(\pi t/2)`: the trigonometric path.

    With the standard deviation :math:`s` of the data as `data_std` every :math:`x_t` has variance
    one. That is the frame of EDM's networks, :math:`x = (z + \sigma \varepsilon)/
    \sqrt{\sigma^2 + s^2}`; what they predict is the velocity of this path times
    :math:`2/\pi` (TrigFlow, https://arxiv.org/abs/2410.11081).
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(data_std=self.data_std)

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        # cos(pi t/2) as a sine, which is exactly zero at t = 1
        sine, beta = torch.sin(math.pi / 2 * t), torch.sin(math.pi / 2 * (1 - t))
        rate = math.pi / 2
        return Coefficients(sine / self.data_std, beta, rate / self.data_std * beta, -rate * sine)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return 2 / math.pi * torch.atan(self.data_std * torch.exp(log_snr))


@dataclass(frozen=True)
class Polynomial(GaussianPath):
    r""":math:`\alpha = t^n, \beta = 1 - t^n` for a degree :math:`n \ge 1`.

    For :math:`n > 1` the velocity vanishes at :math:`t = 0`, whatever the data.
    """

    degree: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.degree) or not 1 <= self.degree < math.inf:
            raise ValueError(
                f"degree must be at least 1 and finite, got {self.degree!r}: below it the "
                "velocity is infinite at t = 0"
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
        super().__post_init__()
        numbers = is_number(self.beta_min) and is_number(self.beta_max)
        if not numbers or not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(
                f"0 < beta_min < beta_max < inf must hold, got beta_min={self.beta_min!r} "
                f"and beta_max={self.beta_max!r}"
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
        # its limit where the ratio of data is 0, which this path never reaches
        ratio = torch.where(integral.isinf(), integral, integral / (self.beta_min + root))
        return 1 - 2 * ratio

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
        super().__post_init__()
        numbers = is_number(self.sigma_min) and is_number(self.sigma_max)
        if not numbers or not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"0 < sigma_min < sigma_max < inf must hold, got sigma_min={self.sigma_min!r} "
                f"and sigma_max={self.sigma_max!r}"
            )

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_min / self.sigma_max)

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        one, beta = torch.ones_like(t), self.sigma_max * torch.exp(self._rate * t)
        return Coefficients(one, beta, 0 * one, self._rate * beta)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return -(log_snr + math.log(self.sigma_max)) / self._rate


@dataclass(frozen=True)
class NoiseLevel(GaussianPath):
    r""":math:`\alpha = 1, \beta = \sigma_{max} (1 - t)`: EDM's path, timed by its noise level.

    At :math:`t = 0` the data is drowned, not absent; at :math:`t = 1` no noise is left.

    Reference: Karras et al., https://arxiv.org/abs/2206.00364.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(sigma_max=self.sigma_max)

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        one = torch.ones_like(t)
        return Coefficients(one, self.sigma_max * (1 - t), 0 * one, -self.sigma_max * one)

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return 1 - torch.exp(-log_snr) / self.sigma_max
