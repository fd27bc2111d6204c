r"""The noise of an image: the sampling ODE run back, and how well it returns.

A run of n steps is a map :math:`\Phi` from noise to image. Stepping back through the same times
with the same solver is a map :math:`\Psi` from image to noise, its inverse up to the errors of
both. The exact inverse of the discrete run solves :math:`\Phi(y) = x`. No solver that is told one
state has it in closed form, since its first step back would need the slope at the state that is
sought. But :math:`\Psi` is nearly the inverse, so that

.. math:: y_{k+1} = y_k + g(y_k), \qquad g(y) = \Psi(x) - \Psi(\Phi(y))

contracts by about the error of one round trip each time, whatever the solver; Anderson's
acceleration takes the combination of the last iterates whose g is the smallest.

References: Song et al., "Denoising Diffusion Implicit Models", https://arxiv.org/abs/2010.02502
(the ODE as an encoder); Zhang et al., "Exact Diffusion Inversion via Bi-directional Integration
Approximation", https://arxiv.org/abs/2307.10829 (inverses that need two states); Walker, Ni,
"Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

#: Most corrections of an exact inversion, and how many of the last are combined.
CORRECTIONS, MEMORY = 30, 6


@dataclass
class InversionOutput(BaseOutput):
    """The noise of images.

    Attributes:
        latents: what a call takes as `latents` to return the images, shape `(n, channels, height,
            width)`.
        round_trip_error: root mean square of the difference between each image's samples (pixels
            in [-1, 1], or codes) and those that its noise leads to, shape `(n,)`.
    """

    latents: Tensor
    round_trip_error: Tensor


def rms(difference: Tensor) -> Tensor:
    """Return the root mean square of each sample."""
    return difference.flatten(1).float().square().mean(1).sqrt()


def solved(
    forth: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    x: Tensor,
    tolerance: float | None,
) -> InversionOutput:
    r"""Return the noise that a run leads to the samples `x`.

    Args:
        forth: the run :math:`\Phi`.
        back: nearly its inverse, :math:`\Psi`.
        x: samples.
        tolerance: of the round trip, RMS of every sample; None takes :math:`\Psi(x)` as it is.

    Raises:
        ValueError: if the tolerance is not reached.
    """
    y = start = back(x)
    returned = forth(y)
    seen: list[tuple[Tensor, Tensor]] = []
    best, error = y, rms(returned - x)
    for _ in range(0 if tolerance is None else CORRECTIONS):
        if tolerance is None or (error <= tolerance).all():
            break
        seen = [*seen, (y, start - back(returned))][-MEMORY:]
        y = accelerated(seen)
        returned = forth(y)
        found = rms(returned - x)
        closer = (found < error).reshape(-1, *[1] * (x.ndim - 1))
        best, error = torch.where(closer, y, best), torch.minimum(found, error)
    if tolerance is not None and not (error <= tolerance).all():
        raise ValueError(
            f"the inverse must return within tolerance={tolerance:g}, got a root mean square of "
            f"{error.max().item():.2g} after its corrections: take more steps or a weaker "
            "guidance, or a larger tolerance (float32 rounds at about 1e-7)"
        )
    return InversionOutput(best, error)


def accelerated(seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    r"""Return the next iterate of every sample by Anderson's acceleration.

    .. math:: y + g - (\Delta Y + \Delta G)\, \gamma, \qquad
              \gamma = \arg\min |g - \Delta G\, \gamma|

    Args:
        seen: the last iterates y and their :math:`g(y)`, oldest first, shape `(batch, ...)`.
    """
    ys, gs = (torch.stack([pair[i].flatten(1) for pair in seen], -1) for i in (0, 1))
    y, g = ys[..., -1], gs[..., -1]
    if len(seen) == 1:
        return (y + g).reshape(seen[-1][0].shape)
    d_y, d_g = (y[..., None] - ys[..., :-1], g[..., None] - gs[..., :-1])
    solve = (x.cpu().double() for x in (d_g, g[..., None]))
    gamma = torch.linalg.lstsq(*solve, driver="gelsd").solution.to(y)
    return (y + g - ((d_y + d_g) @ gamma)[..., 0]).reshape(seen[-1][0].shape)


def between(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    r"""Return points of the great circle from one noise to another.

    .. math:: \frac{\sin((1 - s)\omega)}{\sin\omega} a + \frac{\sin(s \omega)}{\sin\omega} b,
              \qquad \cos\omega = \frac{a \cdot b}{|a|\,|b|}

    Noise has nearly one length, which points on a straight line between two have not.

    Args:
        a: noise, shape `(channels, height, width)`.
        b: likewise.
        shares: s in [0, 1], shape `(n,)`.

    Reference: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    first, second = (x.cpu().double().flatten() for x in (a, b))
    cosine = first @ second / (first.norm() * second.norm())
    omega, shares = torch.arccos(cosine.clamp(-1, 1)), shares.cpu().double()[:, None]
    if torch.sin(omega) < 1e-6:  # the same direction
        points = torch.lerp(first, second, shares)
    else:
        points = torch.sin((1 - shares) * omega) * first + torch.sin(shares * omega) * second
        points = points / torch.sin(omega)
    points = torch.where(shares == 0, first, torch.where(shares == 1, second, points))
    return points.reshape(-1, *a.shape).to(a)
