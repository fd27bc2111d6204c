r"""Stable targets: a conditional target averaged over further data, with less variance.

A network regresses the conditional target of one data point z, whose mean given
:math:`x_t = \alpha z + \beta\varepsilon` is what is learned. Where noise is strong, many data may
have led to one :math:`x_t`, and the target of one of them is far from that mean. With a sample
:math:`z_1, ..., z_n` of the data beside :math:`z_0 = z` the mean can be estimated:

.. math:: \bar z = \sum_{r=0}^n w_r z_r, \qquad
          w_r \propto \exp\Big(-\frac{\|x_t - \alpha z_r\|^2}{2 \beta^2}\Big), \qquad
          \bar\varepsilon = \frac{x_t - \alpha \bar z}{\beta}.

Every prediction is linear in data and noise, so the conditional target of
:math:`(\bar z, \bar\varepsilon)` is the weighted mean of the conditional targets. It leans towards
that of z, the less so the more references there are; with all of a data set it is exact.

Reference: Xu, Tong and Jaakkola, "Stable Target Field for Reduced Variance Score Estimation in
Diffusion Models", https://arxiv.org/abs/2302.00670.
"""

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath

#: Up to which ratio of data to noise targets are averaged: above, other points have no weight.
MOST_SIGNAL = 1e3


@torch.no_grad()
def stable_pair(
    path: GaussianPath, z: Tensor, eps: Tensor, t: Tensor, references: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return the means :math:`\bar z, \bar\varepsilon` of data and noise given :math:`x_t`.

    They lie at the same :math:`x_t = \alpha\bar z + \beta\bar\varepsilon`, so they take the place
    of `z` and `eps` in every target and every loss.

    Args:
        path: the path of the training.
        z: data, shape `(batch, ...)`.
        eps: the standard normal noise of that shape, independent of the data.
        t: times in [0, 1], 0 is noise and 1 is data, shape `(batch,)`.
        references: further data under the same condition, shape `(n, ...)`.

    Raises:
        ValueError: if shapes do not agree.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> z, eps, references = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([[-1.0], [0.0]])
        >>> stable_pair(Linear(), z, eps, torch.tensor([0.0, 1.0]), references)[0].flatten()
        tensor([0., 1.])
    """
    if not z.shape == eps.shape or z.shape[1:] != references.shape[1:] or t.shape != z.shape[:1]:
        raise ValueError(
            "z and eps must have one shape (batch, ...), t the shape (batch,) and references the "
            f"shape (n, ...), got {tuple(z.shape)}, {tuple(eps.shape)}, {tuple(t.shape)} and "
            f"{tuple(references.shape)}"
        )
    c = path(t)
    ratio = (c.alpha / c.beta).clamp(max=MOST_SIGNAL)[:, None]
    own, noise, others = (x.flatten(1) for x in (z, eps, references))
    # -|x_t - alpha z_r|^2/(2 beta^2), less the same of the own point
    along = noise @ others.T - (noise * own).sum(1, keepdim=True)
    distance = torch.cdist(own, others).square()
    logits = ratio * along - ratio**2 * distance / 2
    logits = torch.where(ratio < MOST_SIGNAL, logits, -torch.inf)
    weights = torch.cat([torch.zeros_like(ratio), logits], 1).softmax(1)[:, 1:]
    shift = weights @ others - weights.sum(1, keepdim=True) * own
    return z + shift.view_as(z), eps - (ratio * shift).view_as(z)
