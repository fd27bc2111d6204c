r"""Time grids: where a sampler stops on its way from noise to data.

A grid is a variable in which the steps are equal: with :math:`g` a monotone function of the
signal-to-noise ratio, :math:`g(t_i) = g(t_0) + \frac{i}{n} (g(t_n) - g(t_0))`. Stated in the clock
:math:`u = \alpha/(\alpha + \beta)`, which is the time of the linear path, or in its logit
:math:`\lambda = \log(\alpha/\beta)`, a grid stops at the same signal-to-noise ratios whatever path
the network was trained on, so that the samples do not depend on it. (`uniform` alone is equal
steps in the path's own time.)

Variables that are infinite at the noise or the data (`log_snr`, `karras`, `exponential`) are cut
at ratios `sigma_max` and `sigma_min`; see `fm_diffusers.grids.steps`.

References: Esser et al., "Scaling Rectified Flow Transformers", https://arxiv.org/abs/2403.03206
(shift, logit-normal); Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", https://arxiv.org/abs/2206.00364; Lee et al., "Beta Sampling is All You Need",
https://arxiv.org/abs/2407.12173.
"""

import math

import torch
from scipy import special
from torch import Tensor

from fm_diffusers.grids.steps import Function, cut_steps, equal_steps
from fm_diffusers.paths import GaussianPath
from fm_diffusers.paths.base import check_finite, check_positive


def uniform(n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """Return `n` equal steps in the path's time.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> uniform(4, Linear())
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return torch.linspace(t_min, t_max, n + 1, dtype=torch.float64)


def logistic(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    shift: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    r"""Return the quantiles :math:`\lambda_i = s\, \mathrm{logit}(i/n) - \ln(shift)`.

    The log-SNR is spread like a logistic distribution. A shift above 1 moves the steps towards the
    noise, a `scale` s above 1 towards both ends.

    Raises:
        ValueError: if `shift` or `scale` is not positive.
    """
    check_positive(shift=shift, scale=scale)
    offset = math.log(shift)
    return equal_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: torch.sigmoid((log_snr + offset) / scale),
        lambda g: scale * torch.logit(g) - offset,
    )


def shifted(
    n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0, shift: float = 3.0
) -> Tensor:
    r"""Return equal steps in u with the noise level :math:`\sigma = 1 - u` moved to the noise.

    :math:`\sigma' = s\sigma / (1 + (s - 1)\sigma)`: every signal-to-noise ratio is divided by the
    shift :math:`s`. `t_min` and `t_max` are times after the shift.

    Raises:
        ValueError: if `shift` is not positive.
    """
    check_positive(shift=shift)
    return logistic(n, path, t_min, t_max, shift, scale=1.0)


def logit_normal(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    mean: float = 0.0,
    std: float = 2.0,
) -> Tensor:
    r"""Return the quantiles :math:`\lambda_i = mean + std\, \Phi^{-1}(i/n)`.

    Raises:
        ValueError: if `std` is not positive or `mean` not finite.
    """
    check_positive(std=std)
    check_finite(mean=mean)
    return equal_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: torch.special.ndtr((log_snr - mean) / std),
        lambda g: mean + std * torch.special.ndtri(g),
    )


def log_snr(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    r"""Return equal steps in :math:`\lambda`, between the ratios `sigma_max` and `sigma_min`.

    Raises:
        ValueError: unless `0 < sigma_min < sigma_max`, and if steps would be infinitely long.
    """
    same: Function = lambda value: value  # noqa: E731
    return cut_steps(n, path, (t_min, t_max), same, same, sigma_min, sigma_max)


def karras(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    r"""Return equal steps in :math:`(\beta/\alpha)^{1/\rho}` (EDM).

    Raises:
        ValueError: if `rho` is not positive.
    """
    check_positive(rho=rho)
    return cut_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: -torch.exp(-log_snr / rho),
        lambda g: -rho * torch.log(-g),
        sigma_min,
        sigma_max,
    )


def exponential(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    r"""Return equal ratios of :math:`1 - u`, until :math:`\beta/\alpha` is `sigma_min`.

    Raises:
        ValueError: unless `0 < sigma_min < sigma_max`, and if steps would be infinitely long.
    """
    return cut_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: -torch.nn.functional.logsigmoid(-log_snr),
        lambda g: torch.log(torch.expm1(g)),
        sigma_min,
        sigma_max,
        most=math.inf,
    )


def beta(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    alpha: float = 0.6,
    beta: float = 0.6,
) -> Tensor:
    """Return the quantiles of a beta distribution of the clock u.

    Raises:
        ValueError: if `alpha` or `beta` is not positive.
    """
    check_positive(alpha=alpha, beta=beta)
    return equal_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: torch.as_tensor(
            special.betainc(alpha, beta, torch.sigmoid(log_snr).numpy())
        ),
        lambda g: torch.logit(torch.as_tensor(special.betaincinv(alpha, beta, g.numpy()))),
    )


def polynomial(
    n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0, power: float = 2.0
) -> Tensor:
    r"""Return :math:`1 - u_i = (1 - i/n)^{power}`: a power above 1 slows down towards the data.

    Raises:
        ValueError: if `power` is not positive.
    """
    check_positive(power=power)
    return equal_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: 1 - torch.sigmoid(-log_snr) ** (1 / power),
        lambda g: -torch.logit((1 - g) ** power),
    )
