r"""Adaptive integration: the sampling ODE to a tolerance, with as many evaluations as that takes.

Every Gaussian path becomes the linear one on the clock :math:`u = \alpha/(\alpha + \beta)`,

.. math:: \frac{d}{du} \frac{x}{\alpha + \beta} = F(x, u), \qquad F = E[z - \varepsilon | x],

so that steps chosen by the error there, and the endpoints, do not depend on the path. The slope is
finite at the data, where the velocity of some paths is not, and the last step ends there exactly:
no evaluation lies beyond the ends.

The number of evaluations is not known beforehand, which is why this is a function and not a
solver of the scheduler. It serves as a reference, and for inversion.

References: Dormand, Prince, "A family of embedded Runge-Kutta formulae"; Chen,
"torchdiffeq", https://github.com/rtqichen/torchdiffeq; Chen et al., "Neural Ordinary Differential
Equations", https://arxiv.org/abs/1806.07366.
"""

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath
from fm_diffusers.predictions import CANONICAL, conversion
from fm_diffusers.solvers.exponential import Multistep

#: The embedded pairs of torchdiffeq that can be told where to end.
METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


def integrate_adaptive(
    path: GaussianPath,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t_min: float = 0.0,
    t_max: float = 1.0,
    prediction: str = "velocity",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
) -> Tensor:
    r"""Carry samples along a field, from `t_min` to `t_max`, to a tolerance.

    Solves :math:`d(x/(\alpha + \beta)) = F\, du` in the dtype of `x`, float32 or float64.

    Args:
        path: the path of the field.
        field: `f(x, t)` with `t` a 0-dim float64 tensor, returning what `prediction` names.
        x: samples at `t_min`, shape `(batch, ...)`.
        t_min: where to start, 0 is noise.
        t_max: where to end, 1 is data; less than `t_min` to run back (inversion).
        prediction: what the field predicts, one of `PREDICTIONS`.
        rtol: relative tolerance of a step, in the root mean square over the batch.
        atol: absolute tolerance, of :math:`x/(\alpha + \beta)`.
        method: an adaptive method of torchdiffeq, one of `METHODS`.

    Returns:
        The samples at `t_max`.

    Raises:
        ImportError: without torchdiffeq.
        ValueError: if the prediction does not determine a finite slope at one of the ends, if
            these are equal, or for an unknown method.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> to_zero = lambda x, t: -x / (1 - t)  # all data at 0: u = (0 - x)/(1 - t)
        >>> integrate_adaptive(Linear(), to_zero, torch.tensor([2.0]), t_max=0.5)
        tensor([1.0000])
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "integrate_adaptive needs torchdiffeq: pip install fm_diffusers[ode]"
        ) from error
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    check_order(path, t_min, t_max)
    ends = torch.tensor([t_min, t_max], dtype=torch.float64)
    _check_ends(path, prediction, ends)
    c = path(ends)
    scale = c.alpha + c.beta
    clock = c.alpha / scale

    def slope(u: Tensor, y: Tensor) -> Tensor:
        # the first step's length is guessed by one that may leave the interval: end there
        u = u.cpu().double().clamp(clock.min(), clock.max())
        t = path.time(torch.logit(u))
        alpha, beta = path(t)[:2]
        x = (alpha + beta) * y
        c_x, c_q = conversion(path, prediction, CANONICAL, t)
        return c_x * x + c_q * field(x, t)

    u = clock.to(x.device)
    # without step_t the last step would pass the end, and be interpolated
    options = {"rtol": rtol, "atol": atol, "method": method, "options": {"step_t": u}}
    try:
        y = odeint(slope, x / scale[0], u, **options)
    except AssertionError as error:  # "underflow in dt"
        raise ValueError(
            f"no step of {method!r} is short enough for rtol={rtol:g} and atol={atol:g} "
            f"({error}): the field is not finite somewhere, or too stiff; set t_min and t_max "
            "inside, or integrate() on a grid"
        ) from error
    return scale[1] * y[1]


def check_order(path: GaussianPath, t_min: float | None, t_max: float | None) -> None:
    """Raise a `ValueError` for arguments that are not in the order of all such functions."""
    order = "the order is (path, field, x, t_min, t_max, prediction)"
    if not isinstance(path, GaussianPath):
        raise ValueError(f"path must be a GaussianPath, got {type(path).__name__}: {order}")
    for name, t in (("t_min", t_min), ("t_max", t_max)):
        if not (t is None or isinstance(t, Real) or isinstance(t, Tensor) and t.ndim == 0):
            raise ValueError(f"{name} must be a time from 0 (noise) to 1, got {t!r}: {order}")


def _check_ends(path: GaussianPath, prediction: str, ends: Tensor) -> None:
    if ends[0] == ends[1]:
        raise ValueError(f"t_min and t_max must differ, got {ends[0].item()} for both")
    for t in ends[~Multistep(path, prediction).exists(ends)].tolist():
        raise ValueError(
            f"at t = {t} a model that predicts {prediction!r} does not determine a finite slope, "
            "which is asked for at both ends (t = 0 is noise, 1 is data): set t_min and t_max "
            "strictly inside, or integrate() on a grid, which does not ask at its end"
        )
