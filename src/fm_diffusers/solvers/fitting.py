r"""Weights of an SDE's steps, fitted to Gaussian data of every width.

For data :math:`z \sim N(0, s^2)` the posterior mean :math:`E[z|x] = \kappa_n x`,
:math:`\kappa_n = \alpha_n s^2/(\alpha_n^2 s^2 + \beta_n^2)`, is linear, and so is a run of a plan.
The covariance :math:`\Sigma_n` of the sample and of the slopes that it remembers therefore follows
from the weights, exactly and without sampling:

.. math:: \Sigma_{n+1} = M_n \Sigma_n M_n^T + \sigma_n^2 e_0 e_0^T.

A noised step is never long compared with the noise in its slopes: what the past slope adds is as
much a matter of variance as one of extrapolation, and an interpolation that knows nothing of the
data gets that variance wrong, by as much as the data's width differs from one. The weights of a
step have one number to choose, how much is moved from the past slope to the new one: a constant
slope is carried exactly whatever it is. With :math:`\theta_n` that number in units of the weight
of all slopes, and :math:`b_s` the bias of the standard deviation at the end of the run, the fit
is the smallest change that makes the standard deviation right whatever the width,

.. math:: \min_\theta\; \frac1m \sum_s b_s(\theta)^2 + \mu \sum_n \theta_n^2,

by Gauss-Newton steps, the derivatives carried back through the run. It depends on the
signal-to-noise ratios and on K alone, and so not on the path. As steps shrink the bias falls with
their square and the change with their length, so that weak order 2 stays for every field.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Standard deviations s of the data that weights are fitted to, beside coefficients of order 1.
WIDTHS: Array = np.geomspace(0.05, 4.0, 24)

#: The price :math:`\mu` of a change: one of all weight is worth a bias of one per cent.
PRICE = 1e-4

#: Gauss-Newton steps, after which the weights stand still.
ITERATIONS = 6


class Run(NamedTuple):
    r"""What is known of a run beside its weights, each of shape `(steps,)`.

    Attributes:
        alpha: :math:`\alpha` where steps start, and at the end, shape `(steps + 1,)`.
        beta: :math:`\beta` there.
        std: of the noise that steps put back.
        free: whether a step's weights may change.
    """

    alpha: Array
    beta: Array
    std: Array
    free: Array


def fitted(factor: Array, weights: Array, run: Run) -> Array:
    """Return by how much the weight of the past slope falls, and that of the new one rises.

    Args:
        factor: the weights of the sample, shape `(steps,)`.
        weights: those of the slopes, E[z|x] at the starts of steps, newest first, shape
            `(steps, slopes)`.
        run: the rest of the plan.
    """
    unit = np.where(run.free, weights.sum(1), 0.0)
    change = best = np.zeros(len(factor))
    least = np.inf
    for _ in range(ITERATIONS + 1):
        bias, slope = _bias(factor, weights, unit * change, run)
        slope = slope * unit
        cost = (bias**2).mean() + PRICE * (change**2).sum()
        if not cost < least:
            break
        least, best = cost, change
        normal = slope @ slope.T + PRICE * len(bias) * np.eye(len(bias))
        change = slope.T @ np.linalg.solve(normal, slope @ change - bias)
    return unit * best


def _bias(factor: Array, weights: Array, change: Array, run: Run) -> tuple[Array, Array]:
    """Return the bias of every width, `(widths,)`, and its derivatives, `(widths, steps)`."""
    variance = WIDTHS**2
    marginal = run.alpha[:, None] ** 2 * variance + run.beta[:, None] ** 2
    gain = run.alpha[:-1, None] * variance / marginal[:-1]
    count = weights.shape[1]
    # the state is the sample and the past slopes; a step makes the new slope, and the next sample
    moved = weights.copy()
    moved[:, 0] += change
    moved[:, 1] -= change
    matrix = np.zeros((*gain.shape, count, count))
    matrix[:, :, 0, 0] = factor[:, None] + moved[:, :1] * gain
    matrix[:, :, 0, 1:] = moved[:, None, 1:]
    matrix[:, :, 1, 0] = gain
    for past in range(2, count):
        matrix[:, :, past, past - 1] = 1
    turned = matrix.swapaxes(-1, -2)
    covariance = np.zeros((len(factor) + 1, len(variance), count, count))
    covariance[0, :, 0, 0] = marginal[0]
    for i, std in enumerate(run.std):
        covariance[i + 1] = matrix[i] @ covariance[i] @ turned[i]
        covariance[i + 1, :, 0, 0] += std**2
    end = covariance[-1, :, 0, 0]
    back = np.zeros_like(covariance)
    back[-1, :, 0, 0] = 0.5 / np.sqrt(end * marginal[-1])
    for i in range(len(factor) - 1, -1, -1):
        back[i] = turned[i] @ back[i + 1] @ matrix[i]
    direction = np.zeros((*gain.shape, count, 1))
    direction[:, :, 0, 0] = gain
    direction[:, :, 1, 0] = -1
    slope = 2 * (back[1:] @ matrix @ covariance[:-1] @ direction)[:, :, 0, 0]
    return np.sqrt(end / marginal[-1]) - 1, slope.T
