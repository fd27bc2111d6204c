r"""Time grids: where a sampler stops on its way from noise to data.

A grid is a variable in which the steps are equal: with :math:`g` a monotone function of the
signal-to-noise ratio, :math:`g(t_i) = g(t_0) + \frac{i}{n} (g(t_n) - g(t_0))`. Stated in the clock
:math:`u = \alpha/(\alpha + \beta)`, which is the time of the linear path, or in its logit
:math:`\lambda = \log(\alpha/\beta)`, a grid stops at the same signal-to-noise ratios whatever path
the network was trained on, so that the samples do not depend on it. (`uniform` alone is equal
steps in the path's own time.)

Variables that are infinite at the noise or the data (`log_snr`, `karras`, `exponential`) are cut
at the ratios :math:`\sigma = \beta/\alpha` of `sigma_max` and `sigma_min`; the ends of the path
are kept and come before and after. None cuts where the ratio is infinite or zero only, at 50 and
.02 (`exponential`: at the data only): an end with a finite ratio is one of the steps' own. A cut
that leaves such an end one long step away, which more steps do not shorten, gives a warning.

References: Esser et al., "Scaling Rectified Flow Transformers", https://arxiv.org/abs/2403.03206
(shift, logit-normal); Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", https://arxiv.org/abs/2206.00364; Lee et al., "Beta Sampling is All You Need",
https://arxiv.org/abs/2407.12173.
"""

import math
import warnings
from collections.abc import Callable

import torch
from scipy import special
from torch import Tensor

from fm_diffusers.paths import GaussianPath
from fm_diffusers.paths.base import check_finite, check_positive, is_number

Function = Callable[[Tensor], Tensor]

#: Where an infinite and a zero ratio beta/alpha are cut.
LARGEST_CUT, SMALLEST_CUT = 50.0, 0.02

#: The longest step in log-SNR between a cut and an end of finite ratio that gives no warning.
LONGEST_LEAP = 1.0


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
    return _equal_steps(
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
    return _equal_steps(
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
    return _cut_steps(n, path, (t_min, t_max), same, same, sigma_min, sigma_max)


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
    return _cut_steps(
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
    return _cut_steps(
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
    return _equal_steps(
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
    return _equal_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: 1 - torch.sigmoid(-log_snr) ** (1 / power),
        lambda g: -torch.logit((1 - g) ** power),
    )


def _equal_steps(
    n: int, path: GaussianPath, ends: tuple[float, float], g: Function, inverse: Function
) -> Tensor:
    """Return the times at which `g` of the log-SNR has equal steps, both ends kept as given."""
    first, last = g(path.log_snr(torch.tensor(ends, dtype=torch.float64))).tolist()
    inner = path.time(inverse(torch.linspace(first, last, n + 1, dtype=torch.float64)[1:-1]))
    return _between(ends, inner)


def _cut_steps(
    n: int,
    path: GaussianPath,
    ends: tuple[float, float],
    g: Function,
    inverse: Function,
    sigma_min: float | None,
    sigma_max: float | None,
    most: float = LARGEST_CUT,
) -> Tensor:
    """Return equal steps in a `g` that is infinite at an end, cut there; the ends are kept."""
    first, last = path.log_snr(torch.tensor(ends, dtype=torch.float64)).tolist()
    # None follows an end of finite ratio
    high = most if sigma_max is None and first == -math.inf else sigma_max
    low = SMALLEST_CUT if sigma_min is None and last == math.inf else sigma_min
    given = [value for value in (low, high) if value is not None]
    if not all(is_number(value) and value > 0 for value in given) or sorted(set(given)) != given:
        raise ValueError(
            f"0 < sigma_min < sigma_max must hold, got {low!r} and {high!r}: they are ratios "
            f"beta/alpha, from {_ratio(first):.3g} to {_ratio(last):.3g} between the ends of the "
            "grid; None follows these ends"
        )
    start = first if high is None else -math.log(high)
    stop = last if low is None else -math.log(low)
    # a cut that lies outside the ends cuts nothing
    count = n - 1 if first < stop < last else n
    span = max(first, start) if start < last else first, stop if count < n else last
    values = g(torch.tensor(span, dtype=torch.float64)).tolist()
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"steps from t = {ends[0]} to {ends[1]} would be infinitely long: they need a "
            f"sigma_min and sigma_max among the ratios beta/alpha on the way, from "
            f"{_ratio(first):.3g} to {_ratio(last):.3g}; got {_ratio(stop):.6g} and "
            f"{_ratio(start):.6g}"
        )
    _warn_of_leaps({"sigma_max": (first, span[0]), "sigma_min": (span[1], last)})
    steps = torch.linspace(*values, max(count, 1) + 1, dtype=torch.float64)
    return _between(ends, path.time(inverse(steps[1:n])))


def _ratio(log_snr: float) -> float:
    return math.inf if log_snr == -math.inf else math.exp(-log_snr)


def _warn_of_leaps(leaps: dict[str, tuple[float, float]]) -> None:
    for name, (start, stop) in leaps.items():
        if math.isfinite(stop - start) and stop - start > LONGEST_LEAP:
            end, cut = (start, stop) if name == "sigma_max" else (stop, start)
            warnings.warn(
                f"{name}={_ratio(cut):.6g} leaves the grid's end at beta/alpha = "
                f"{_ratio(end):.6g} one step away, which more steps do not shorten: leave "
                f"{name} out to space the steps up to this end",
                stacklevel=2,
            )


def _between(ends: tuple[float, float], inner: Tensor) -> Tensor:
    first, last = torch.tensor(ends, dtype=torch.float64).split(1)
    times = torch.cat([first, inner, last])
    if (wrong := (times.diff() <= 0) | ~times.diff().isfinite()).any():
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"a grid of {len(times) - 1} steps from t = {ends[0]} to {ends[1]} with these "
            f"parameters goes from t = {times[place].item()} to {times[place + 1].item()}: they "
            "crowd the steps more than float64 tells apart; take milder ones or fewer steps"
        )
    return times
