r"""The rows of `DIFFUSIONS`: profiles :math:`n_t`, and the :math:`K` of steps.

The second half depends on a path through its signal-to-noise ratio alone: with
:math:`\lambda = \log(\alpha/\beta)` and the noise level
:math:`\sigma = \beta/(\alpha + \beta)`, which on the linear path is :math:`1 - t`, the published
formulas of the linear path hold on every path. The standard deviation of a step's noise is
:math:`\beta_s \sqrt{1 - e^{-2K}}`.
"""

import math

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath

# --- rates: n_t, with sigma_t^2 = 2 n alpha^a beta^b ---------------------------------------------


def constant(path: GaussianPath, t: Tensor, c: float) -> Tensor:  # noqa: D103
    return torch.full_like(t, c * c / 2)


def flat(path: GaussianPath, t: Tensor, c: float) -> Tensor:  # noqa: D103
    return torch.full_like(t, c)


def flat_integral(path: GaussianPath, t: Tensor, s: Tensor, c: float) -> Tensor:  # noqa: D103
    return c * (s - t)


def linear(path: GaussianPath, t: Tensor, c: float) -> Tensor:  # noqa: D103
    return c * (1 - t)


def decreasing(path: GaussianPath, t: Tensor, c: float) -> Tensor:  # noqa: D103
    return (c * torch.cos(math.pi * t) + 1) ** 2 / 4


def increasing_decreasing(path: GaussianPath, t: Tensor, c: float) -> Tensor:  # noqa: D103
    return c * torch.sin(math.pi * t) ** 2


def memoryless(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    r"""Return :math:`c \beta (\dot\alpha \beta - \alpha \dot\beta)`, over alpha."""
    a = path(t)
    return c * (a.d_alpha * a.beta**2 - a.alpha * path.half_d_variance(t))


def memoryless_integral(path: GaussianPath, t: Tensor, s: Tensor, c: float) -> Tensor:
    r"""Return :math:`c (\lambda_s - \lambda_t)`."""
    return c * (path.log_snr(s) - path.log_snr(t)) if c else torch.zeros_like(t)


def flow_grpo(path: GaussianPath, t: Tensor, a: float) -> Tensor:  # noqa: D103
    return memoryless(path, t, a * a / 2)


def flow_grpo_integral(path: GaussianPath, t: Tensor, s: Tensor, a: float) -> Tensor:  # noqa: D103
    return memoryless_integral(path, t, s, a * a / 2)


def er_sde(path: GaussianPath, t: Tensor, c: float) -> Tensor:
    r"""Return the derivative of `er_sde_integral`, less its powers of alpha and beta."""
    return 0.3 * torch.sigmoid(torch.exp(-0.3 * path.log_snr(t)) - _TEN) * memoryless(path, t, c)


def er_sde_integral(path: GaussianPath, t: Tensor, s: Tensor, c: float) -> Tensor:
    r"""Return :math:`c (\phi_t - \phi_s), \phi = \log(e^{(\beta/\alpha)^{0.3}} + 10)`."""

    def phi(time: Tensor) -> Tensor:
        power = torch.exp(-0.3 * path.log_snr(time))
        return torch.logaddexp(power, torch.full_like(power, _TEN))

    return c * (phi(t) - phi(s)) if c else torch.zeros_like(t)


_TEN = math.log(10)

# --- steps: K ------------------------------------------------------------------------------------


def dance_precise(path: GaussianPath, t: Tensor, s: Tensor, eta: float) -> Tensor:
    r"""Return :math:`\eta^2/2\, (1/\sigma_s - 1/\sigma_t)`."""
    return eta * eta / 2 * (torch.exp(path.log_snr(s)) - torch.exp(path.log_snr(t)))


def cps(path: GaussianPath, t: Tensor, s: Tensor, eta: float) -> Tensor:
    r"""Return :math:`-\log \cos(\eta \pi/2)`, whatever the step; infinite for eta = 1."""
    # the cosine as a sine, which is exactly zero for eta = 1
    return -torch.log(torch.sin(torch.full_like(t, math.pi / 2 * (1 - eta))))


def ancestral(path: GaussianPath, t: Tensor, s: Tensor, eta: float) -> Tensor:
    r"""Return the K of noise with the variance :math:`\eta^2 (1 - e^{-2(\lambda_s - \lambda_t)})`.

    That is as a share of :math:`\beta_s^2`.
    """
    kept, more = (torch.full_like(t, share).log() for share in (1 - eta * eta, eta * eta))
    return -torch.logaddexp(kept, more - 2 * (path.log_snr(s) - path.log_snr(t))) / 2


def euler_ancestral_rf(path: GaussianPath, t: Tensor, s: Tensor, eta: float) -> Tensor:
    r"""Return :math:`\lambda(\sigma_s d) - \lambda(\sigma_s)`, on to a lower level and back.

    :math:`d = 1 + \eta (\sigma_s/\sigma_t - 1)`.
    """
    before, after = (torch.sigmoid(-path.log_snr(time)) for time in (t, s))
    down = 1 + eta * (after / before - 1)
    return torch.log1p(-after * down) - torch.log1p(-after) - torch.log(down)
