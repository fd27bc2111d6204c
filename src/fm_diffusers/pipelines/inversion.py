r"""The noise of an image: the sampling ODE run back, and how well it returns.

A run of n steps is a map :math:`\Phi` from noise to image. Stepping back through the same times
with the same solver is a map :math:`\Psi` from image to noise, its inverse up to the errors of
both. The exact inverse of the discrete run solves :math:`\Phi(y) = x`. No solver that is told one
state has it in closed form, since its first step back would need the slope at the state that is
sought. But :math:`\Psi` is nearly the inverse, so that

.. math:: y_{k+1} = y_k + \Psi(x) - \Psi(\Phi(y_k))

contracts by about the error of one round trip each time, whatever the solver.

References: Song et al., "Denoising Diffusion Implicit Models", https://arxiv.org/abs/2010.02502
(the ODE as an encoder); Zhang et al., "Exact Diffusion Inversion via Bi-directional Integration
Approximation", https://arxiv.org/abs/2307.10829 (inverses that need two states).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

#: Most corrections of an exact inversion.
CORRECTIONS = 20


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
    start = back(x)
    y, returned = start, forth(start)
    error, best = rms(returned - x), start
    for _ in range(0 if tolerance is None else CORRECTIONS):
        if (error <= tolerance).all():
            break
        y = best + (start - back(returned))
        found = forth(y)
        closer = rms(found - x) < error
        if not closer.any():
            break
        keep = closer.reshape(-1, *[1] * (x.ndim - 1))
        best, returned = torch.where(keep, y, best), torch.where(keep, found, returned)
        error = rms(returned - x)
    if tolerance is not None and not (error <= tolerance).all():
        raise ValueError(
            f"the inverse must return within tolerance={tolerance:g}, got a root mean square of "
            f"{error.max().item():.2g} after its corrections: take more steps or a weaker "
            "guidance, or a larger tolerance (float32 rounds at about 1e-7)"
        )
    return InversionOutput(best, error)


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
