r"""Weights of an SDE's steps, fitted to Gaussian data of every width.

Of data :math:`z \sim N(0, s^2)` a sample tells linearly,

.. math:: E[z|x] = \kappa_n x, \qquad \kappa_n = \frac{\alpha_n s^2}{\alpha_n^2 s^2 + \beta_n^2},

and so a run of a plan is linear too: the covariance :math:`\Sigma_n` of the sample and of the
slopes that it remembers follows from the weights exactly, without sampling,

.. math:: \Sigma_{n+1} = M_n \Sigma_n M_n^T + s_n^2 e_0 e_0^T.

A past slope of a noised step has noise of its own, which goes into the next sample: its weight is
a matter of variance as much as of extrapolation. Polynomials, which know nothing of the data, get
that variance wrong on long steps, at every width by another amount. What is free in a step is how
much weight moves from the past slope to the new one; a constant slope is carried exactly by any.
With :math:`\theta_n` that much, in units of the weight of all slopes, and with :math:`b_s` the
bias of the standard deviation at the end, the fit is the smallest move that makes it right,

.. math:: \min_\theta\; \frac1m \sum_s b_s(\theta)^2 + \mu \sum_n h_n^3 \theta_n^2,

by Gauss-Newton steps, halved where they lead up, with derivatives that are carried back through
the run. :math:`h_n` is the length of a step on the clock :math:`\rho/(\rho + 2)`, where those of
the default grid are equal; long steps are dear, since data is Gaussian the less the further one
looks. The fit depends on signal-to-noise ratios and on K alone, and so on no path. The bias falls
like :math:`h^2` and the moves like h, to which the price is scaled: so that the weights stay those
of weak order 2 in the limit, for every field.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fm_diffusers.paths import GaussianPath

Array = NDArray[np.float64]

#: The widths s: what data has beside coefficients of order 1, from its details to its whole.
WIDTHS: Array = np.geomspace(0.05, 4.0, 24)

#: The price :math:`\mu` of moves. A tenth of it takes little off the bias of 8 steps, and its
#: samples of mixtures are worse.
PRICE = 0.5

#: Gauss-Newton steps. On the default grid weights stand still from the third on.
ITERATIONS = 8


def fitted(
    path: GaussianPath, times: Tensor, std: Tensor, factor: Tensor, rows: list[Tensor]
) -> list[Tensor]:
    """Return the weights of slopes with some moved between the new one and the one before.

    Steps that are not noised and follow none that is stay as they are, and so do those with one
    slope.

    Args:
        path: the path of the samples.
        times: where steps start, and the end, shape `(steps + 1,)`.
        std: of the noise that steps put back, shape `(steps,)`.
        factor: the weights of the sample.
        rows: those of the slopes E[z|x], newest first, for each number p of past ones from 0,
            shapes `(steps, p + 1)`.
    """
    weights = rows[-1].clone()  # in a run from the first step
    for past, row in enumerate(rows[: len(weights)]):
        weights[past] = 0
        weights[past, : past + 1] = row[past]
    noised = std > 0
    free = (noised | torch.roll(noised, 1)) & (weights[:, 1] != 0)
    length = torch.sigmoid(path.log_snr(times) - math.log(2)).diff()
    price = len(WIDTHS) * PRICE * length**3  # a move is counted in units of its root
    unit = torch.where(free, weights.sum(1) / price.sqrt(), 0.0).numpy()
    run = (path.alpha(times), path.beta(times), std, factor, weights)
    alpha, beta, *plan = (values.numpy() for values in run)
    move = best = np.zeros_like(unit)
    least = np.inf
    for _ in range(ITERATIONS if free.any() else 0):
        bias, slope = _bias(alpha, beta, plan[0], plan[1], plan[2], unit * move)
        cost = (bias**2).sum() + (move**2).sum()
        if not cost < least:
            move = (best + move) / 2
            continue
        least, best, slope = cost, move, slope * unit
        normal = slope @ slope.T + np.eye(len(bias))
        move = slope.T @ np.linalg.solve(normal, slope @ move - bias)
    moved = torch.from_numpy(unit * best)
    shift = torch.stack([moved, -moved], 1)
    pairs = [torch.nn.functional.pad(shift, (0, row.shape[1] - 2)) for row in rows[1:]]
    return [rows[0], *(row + pair for row, pair in zip(rows[1:], pairs, strict=True))]


def _bias(
    alpha: Array, beta: Array, std: Array, factor: Array, weights: Array, moved: Array
) -> tuple[Array, Array]:
    """Return the bias of every width, `(widths,)`, and its derivatives, `(widths, steps)`."""
    variance, size = WIDTHS**2, weights.shape[1]
    marginal = alpha[:, None] ** 2 * variance + beta[:, None] ** 2
    gain = alpha[:-1, None] * variance / marginal[:-1]
    # the state is the sample and the past slopes
    move = np.zeros((*gain.shape, size))
    move[..., 0], move[..., 1] = gain, -1
    step = np.zeros((*gain.shape, size, size))
    step[..., 0, 0] = factor[:, None] + weights[:, :1] * gain
    step[..., 0, 1:] = weights[:, None, 1:]
    step[..., 0, :] += moved[:, None, None] * move
    step[..., 1, 0] = gain
    step[..., range(2, size), range(1, size - 1)] = 1
    turned = step.swapaxes(-1, -2)
    covariance = np.zeros((len(alpha), *step.shape[1:]))
    covariance[0, :, 0, 0] = marginal[0]
    for n in range(len(step)):
        covariance[n + 1] = step[n] @ covariance[n] @ turned[n]
        covariance[n + 1, :, 0, 0] += std[n] ** 2
    end, exact = covariance[-1, :, 0, 0], marginal[-1]
    back = np.zeros_like(covariance)  # the derivatives of the bias by the covariance
    back[-1, :, 0, 0] = 0.5 / np.sqrt(end * exact)
    for n in reversed(range(len(step))):
        back[n] = turned[n] @ back[n + 1] @ step[n]
    slope = 2 * (back[1:] @ step @ covariance[:-1] @ move[..., None])[..., 0, 0]
    return np.sqrt(end / exact) - 1, slope.T
