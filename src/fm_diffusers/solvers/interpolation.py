r"""Polynomials through slopes, integrated exactly over steps on the signal-to-noise clock.

The weights of slopes are integrals of the Lagrange polynomials of their places, in a variable of
the log signal-to-noise ratio, against the measure of a form of the ODE, by Gauss-Legendre
quadrature in float64.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.predictions import CANONICAL

Variable = Callable[[Tensor], Tensor]

_GAUSS = np.polynomial.legendre.leggauss(32)
_NODES, _GAUSS_WEIGHTS = (torch.from_numpy(_GAUSS[0]) + 1) / 2, torch.from_numpy(_GAUSS[1]) / 2

#: How far back the kernel of the data form is integrated, in log(1 - u): :math:`e^{-40}` is less
#: than the rounding of float64, and the quadrature resolves that length to rounding.
KERNEL_LENGTH = 40.0

#: Scale c of the interpolation variable arctan(c rho). On networks and exact fields values from 1
#: to 2.5 serve equally well; in memoryless steps this one suits Gaussian data of deviation 1, a
#: smaller one narrower data and a larger one wider data (`benchmarks/samplers/`).
ARCTAN_SCALE = 1.2


def _arctan(log_snr: Tensor) -> Tensor:
    return torch.atan2(ARCTAN_SCALE * torch.sigmoid(log_snr), torch.sigmoid(-log_snr))


#: Interpolation variables, as functions of the log signal-to-noise ratio.
VARIABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "clock": torch.sigmoid,
    "log_snr": lambda log_snr: log_snr,
    "log_noise": torch.nn.functional.softplus,  # -log(1 - u)
    "arctan": _arctan,
}

#: The forms of the ODE: the slope, and the scale S of d(x/S) at a clock u over alpha + beta.
FORMS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "velocity": (CANONICAL, lambda log_snr: torch.ones_like(log_snr)),
    "data": ("sample", lambda log_snr: torch.sigmoid(-log_snr)),
}

#: How the line through two values is integrated: exactly, or by a rule for its slope that names
#: diffusers' `solver_type`: half the step on the clock, or half the step in log-SNR.
RULES = {"exact": "exact", "heun": "exact", "midpoint": "half", "bh2": "half", "bh1": "half_log"}


def integrals(
    form: str, variable: str, rule: str, start: Tensor, stop: Tensor, places: Tensor
) -> Tensor:
    r"""Return the weights of slopes over steps, :math:`S \int l_j`.

    Args:
        form: the slope that is interpolated, one of `FORMS`.
        variable: in which variable, one of `VARIABLES`.
        rule: how a line is integrated, a value of `RULES`.
        start: log-SNR at which the steps start, shape `(steps,)`.
        stop: log-SNR at which they stop.
        places: log-SNR of the slopes, newest first, shape `(steps, slopes)`.
    """
    value = VARIABLES[variable]
    if places.shape[1] == 2 and rule != "exact":
        return _two_values(form, value, rule, start, stop, places)
    if form == "velocity":
        u, u_end = torch.sigmoid(start)[:, None], torch.sigmoid(stop)[:, None]
        at = torch.logit(u + (u_end - u) * _NODES)
        measure = (u_end - u) * _GAUSS_WEIGHTS
    else:
        # w = (1 - u_end)/(1 - u) in equal ratios; all of its weight is at the end if u_end = 1
        ratio = (_log_noise(stop) - _log_noise(start))[:, None].clamp(min=-KERNEL_LENGTH)
        w = torch.exp(ratio * (1 - _NODES))
        whole = stop[:, None] == torch.inf
        at = torch.where(
            whole,
            stop[:, None],
            _log_snr_of_noise(_log_noise(stop)[:, None] - ratio * (1 - _NODES)),
        )
        measure = torch.where(whole, 1.0, -ratio * w) * _GAUSS_WEIGHTS
    return (lagrange(value(places), value(at)) * measure[:, None]).sum(-1)


def _two_values(
    form: str, value: Variable, rule: str, start: Tensor, stop: Tensor, places: Tensor
) -> Tensor:
    """Return the weights of two slopes, of which one is at `start`, by a rule of `RULES`."""
    rate = torch.sigmoid(stop)  # of the integral in log-SNR, at the end
    if form == "velocity":
        length = torch.sigmoid(stop) - torch.sigmoid(start)
        rate = rate * torch.sigmoid(-stop)
    else:
        length = 1 - torch.exp(_log_noise(stop) - _log_noise(start))
    half = length if rule == "half" else rate * (stop - start)
    starts = places[:, 0] == start  # a predictor; a corrector has its new slope first
    other = torch.where(starts, places[:, 1], places[:, 0])
    begin = value(start)
    weight = half / 2 * (value(stop) - begin) / (value(other) - begin)
    rest = length - weight
    first, second = torch.where(starts, rest, weight), torch.where(starts, weight, rest)
    return torch.stack([first, second], 1)


def _log_noise(log_snr: Tensor) -> Tensor:
    r"""Return :math:`\log(1 - u)`."""
    return torch.nn.functional.logsigmoid(-log_snr)


def _log_snr_of_noise(log_noise: Tensor) -> Tensor:
    # beyond, expm1 only adds -1 to what it would overflow at
    return torch.where(log_noise > -KERNEL_LENGTH, torch.log(torch.expm1(-log_noise)), -log_noise)


def history(log_snr: Tensor, shift: Tensor, count: int) -> Tensor:
    """Return the log-SNR of the last `count` slopes at every step, newest first."""
    columns = [log_snr]
    for _ in range(count - 1):
        columns.append(torch.roll(columns[-1] - shift, 1))
    return torch.stack(columns, 1)


def finite(values: Tensor) -> Tensor:
    """Return how many values of each row are finite, before the first that is not."""
    return values.isfinite().long().cumprod(1).sum(1).clamp(min=1)


def lagrange(nodes: Tensor, q: Tensor) -> Tensor:
    """Return the Lagrange polynomials of the nodes `(n, p)` at `q` `(n, m)`, `(n, p, m)`."""
    p = nodes.shape[1]
    basis = []
    for j in range(p):
        value = torch.ones_like(q)
        for i in range(p):
            if i != j:
                value = value * (q - nodes[:, i, None]) / (nodes[:, j] - nodes[:, i])[:, None]
        basis.append(value)
    return torch.stack(basis, 1)
