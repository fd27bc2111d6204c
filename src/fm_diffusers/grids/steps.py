r"""Equal steps in a variable of the signal-to-noise ratio, cut where it is infinite.

With g a monotone function of the log signal-to-noise ratio :math:`\lambda`, the steps from
:math:`t_0` to :math:`t_n` are :math:`g(t_i) = g(t_0) + \frac{i}{n} (g(t_n) - g(t_0))`.

A variable that is infinite at an end is cut at the ratios :math:`\sigma = \beta/\alpha` of
`sigma_max` and `sigma_min`; the ends of the path are kept and come before and after. None cuts
only where the ratio is infinite or zero: an end of finite ratio is where the equal steps begin or
end. A cut that leaves such an end one long step away, which more steps do not shorten, gives a
warning.
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath
from fm_diffusers.paths.base import is_number

Function = Callable[[Tensor], Tensor]

#: Where an infinite and a zero ratio beta/alpha are cut.
LARGEST_CUT, SMALLEST_CUT = 50.0, 0.02

#: The longest step in log-SNR between a cut and an end of finite ratio that gives no warning.
LONGEST_LEAP = 1.0


def equal_steps(
    n: int, path: GaussianPath, ends: tuple[float, float], g: Function, inverse: Function
) -> Tensor:
    """Return the times at which `g` of the log-SNR has equal steps, both ends kept as given."""
    first, last = g(path.log_snr(torch.tensor(ends, dtype=torch.float64))).tolist()
    inner = path.time(inverse(torch.linspace(first, last, n + 1, dtype=torch.float64)[1:-1]))
    return _between(ends, inner)


def cut_steps(
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
            f"steps from t = {ends[0]} to {ends[1]} would be infinitely long: give a "
            f"sigma_min and a sigma_max among the ratios beta/alpha on the way, from "
            f"{_ratio(first):.3g} to {_ratio(last):.3g}; got {_ratio(stop):.6g} and "
            f"{_ratio(start):.6g}"
        )
    _warn_of_leaps({"sigma_max": (first, span[0]), "sigma_min": (span[1], last)})
    low, high = values
    steps = torch.linspace(low, high, max(count, 1) + 1, dtype=torch.float64)
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
