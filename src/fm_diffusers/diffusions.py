r"""The diffusion coefficient :math:`\sigma_t` of the sampling SDE.

Every Gaussian path has a family of SDEs with the same marginals,

.. math:: dX = \Big[u_t + \tfrac{\sigma_t^2}{2} \nabla\log p_t\Big] dt + \sigma_t\, dW
             = \Big[u_t - \tfrac{\sigma_t^2}{2\beta_t} \varepsilon_t\Big] dt + \sigma_t\, dW,

one for every coefficient :math:`\sigma_t` of :math:`dW` (not its half square, as some write);
:math:`\sigma = 0` is the ODE. Each row here is :math:`n_t` and a power :math:`p` with
:math:`\sigma_t^2 = 2 n_t \beta_t^p`, so that what solvers need stays in closed form near the data:

- :math:`\sigma_t^2/(2\beta_t) = n_t \beta_t^{p-1}`, the weight of the noise prediction in the
  drift;
- :math:`K = \int_t^s \sigma_\tau^2/(2\beta_\tau^2) d\tau`, how far a step forgets its noise: over
  it the noise in the sample keeps the factor :math:`e^{-K}`.

References: Song et al., https://arxiv.org/abs/2011.13456; Ma et al., "SiT",
https://arxiv.org/abs/2401.08740 (whose coefficient `w` is half our sigma^2);
Domingo-Enrich et al., "Adjoint Matching", https://arxiv.org/abs/2409.08861 (memoryless);
Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath, as_time

Profile = Callable[[GaussianPath, Tensor, float], Tensor]


@dataclass(frozen=True)
class Diffusion:
    r"""A coefficient :math:`\sigma_t = \sqrt{2 n_t \beta_t^p}` for any path.

    Attributes:
        profile: :math:`n_t` as a function `(path, t, scale)`.
        power: :math:`p`.
        scale: the strength `c`.
        closed_integral: :math:`\int n \beta^{p-2}` as a function `(path, t, s, scale)` where it is
            elementary on every path; elsewhere it is computed by Gauss-Legendre quadrature.
    """

    profile: Profile
    power: int = 0
    scale: float = 1.0
    closed_integral: Callable[[GaussianPath, Tensor, Tensor, float], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(
                f"the scale of a diffusion must be finite and at least 0, got {self.scale}"
            )

    def _weighted(self, path: GaussianPath, t: float | Tensor, power: int) -> Tensor:
        t = as_time(t)
        return self.profile(path, t, self.scale) * path.beta(t) ** power

    def squared(self, path: GaussianPath, t: float | Tensor) -> Tensor:
        r"""Return :math:`\sigma_t^2`, the variance that `dW` adds for each unit of time."""
        return 2 * self._weighted(path, t, self.power)

    def noise_weight(self, path: GaussianPath, t: float | Tensor) -> Tensor:
        r"""Return :math:`\sigma_t^2/(2\beta_t)`: the drift is :math:`u_t` minus it times eps."""
        return self._weighted(path, t, self.power - 1)

    def integral(self, path: GaussianPath, t: float | Tensor, s: float | Tensor) -> Tensor:
        r"""Return :math:`K = \int_t^s \sigma_\tau^2/(2\beta_\tau^2) d\tau` for t <= s < 1.

        It is infinite where the step forgets its noise altogether.
        """
        t, s = as_time(t), as_time(s)
        if self.closed_integral is not None:
            return self.closed_integral(path, t, s, self.scale)
        # in -log(1 - t) the powers of beta that are singular at t = 1 become smooth
        start, stop = -torch.log1p(-t), -torch.log1p(-s)
        v = start[..., None] + (stop - start)[..., None] * _NODES.to(t.device)
        rest = torch.exp(-v)
        values = self._weighted(path, 1 - rest, self.power - 2) * rest
        return (stop - start) * (values * _WEIGHTS.to(t.device)).sum(-1)


_GAUSS = np.polynomial.legendre.leggauss(64)
_NODES, _WEIGHTS = (torch.from_numpy(_GAUSS[0]) + 1) / 2, torch.from_numpy(_GAUSS[1]) / 2


def _constant(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return torch.full_like(t, c**2 / 2)


def _flat(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return torch.full_like(t, c)


def _flat_integral(path: GaussianPath, t: Tensor, s: Tensor, c: float) -> Tensor:
    return c * (s - t)


def _linear(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return c * (1 - t)


def _decreasing(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return (c * torch.cos(math.pi * t) + 1) ** 2 / 4


def _increasing_decreasing(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return c * torch.sin(math.pi * t) ** 2


def _memoryless(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    a = path(t)  # beta D / alpha, with D = alpha' beta - alpha beta'
    return c * (a.d_alpha * a.beta**2 / a.alpha - path.half_d_variance(t))


def _memoryless_integral(path: GaussianPath, t: Tensor, s: Tensor, c: float) -> Tensor:
    return c * (path.log_snr(s) - path.log_snr(t)) if c else torch.zeros_like(t)


def _flow_grpo(path: GaussianPath, t: Tensor, a: float) -> Tensor:
    return _memoryless(path, t, a**2 / 2)


def _flow_grpo_integral(path: GaussianPath, t: Tensor, s: Tensor, a: float) -> Tensor:
    return _memoryless_integral(path, t, s, a**2 / 2)


def _refresh(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return torch.full_like(t, math.inf if c else 0.0)


def _refresh_integral(path: GaussianPath, t: Tensor, s: Tensor, c: float) -> Tensor:
    return torch.full_like(t, math.inf if c else 0.0)


def _zero_ends(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    return c * path.alpha(t)


#: The coefficients by their names in a saved configuration; the comment is sigma_t^2.
#: `DIFFUSIONS["mine"] = Diffusion(...)` adds one; whoever loads a scheduler saved with it must do
#: the same first.
DIFFUSIONS: dict[str, Diffusion] = {
    "constant": Diffusion(_constant),  # c^2
    "beta": Diffusion(_flat, power=1),  # 2 c beta, SiT's "sigma"
    "beta_squared": Diffusion(_flat, power=2, closed_integral=_flat_integral),  # 2 c beta^2
    "linear": Diffusion(_linear),  # 2 c (1 - t)
    "decreasing": Diffusion(_decreasing),  # (c cos(pi t) + 1)^2 / 2
    "increasing_decreasing": Diffusion(_increasing_decreasing),  # 2 c sin(pi t)^2
    "memoryless": Diffusion(_memoryless, closed_integral=_memoryless_integral),  # 2 c beta D/alpha
    "flow_grpo": Diffusion(_flow_grpo, scale=0.7, closed_integral=_flow_grpo_integral),
    "zero_ends": Diffusion(_zero_ends, power=1),  # 2 c alpha beta
    "refresh": Diffusion(_refresh, closed_integral=_refresh_integral),  # infinite: all noise anew
}


def get_diffusion(name: str, scale: float | None = None) -> Diffusion:
    """Return the coefficient of that name, with its own scale or the given one.

    Raises:
        ValueError: if the name is unknown or the scale negative.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> get_diffusion("beta", scale=0.5).squared(Linear(), 0.25).item()  # 2 c beta
        0.75
    """
    if name not in DIFFUSIONS:
        raise ValueError(
            f"unknown diffusion {name!r}: choose one of {', '.join(DIFFUSIONS)}, "
            "or None for the ODE"
        )
    return DIFFUSIONS[name] if scale is None else replace(DIFFUSIONS[name], scale=scale)
