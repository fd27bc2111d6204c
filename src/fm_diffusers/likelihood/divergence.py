r"""The divergence of a field, exactly or from random vectors.

With the Jacobian :math:`J = \partial f/\partial x` it is a sum over vectors :math:`v` with
:math:`\sum v v^T = I`, or its mean over random ones with :math:`E[v v^T] = I`,

.. math:: \nabla\cdot f = \sum_v v^T J v \approx \frac1K \sum_{k=1}^K v_k^T J v_k,

each term one back-propagation, whatever the shape of a sample. (PyTorch's attention has no
forward-mode derivative; many vectors at once, by `vmap`, are no faster on a UNet on a CPU.)

References: Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989);
Grathwohl et al., "FFJORD", https://arxiv.org/abs/1810.01367.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fm_diffusers.fields import Field


def rademacher(x: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return random signs, shape `(count, *x.shape)`: of all vectors those of least variance."""
    device = generator.device if generator is not None else x.device
    signs = torch.randint(2, (count, *x.shape), generator=generator, device=device)
    return (2 * signs - 1).to(x)


def differentiable(value: Tensor) -> Tensor:
    """Return the value of a field, of which a derivative is wanted if gradients are enabled.

    Raises:
        ValueError: if it has none, which would pass for a divergence of zero.
    """
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            "the field cannot be differentiated by x: let it compute from x, outside of "
            "torch.no_grad() and torch.inference_mode()"
        )
    return value


def divergence(
    field: Field,
    x: Tensor,
    t: Tensor,
    probes: Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Return a field and its divergence :math:`\sum_i \partial f_i/\partial x_i`.

    Args:
        field: `f(x, t)`, differentiable, each sample on its own.
        x: samples, shape `(batch, ...)`.
        t: the time.
        probes: random vectors :math:`v_k`, shape `(K, batch, ...)`, for the estimates
            :math:`v_k^T J v_k`, one back-propagation each; None for the exact divergence, with
            one for each dimension.
        create_graph: whether gradients flow through both results.

    Returns:
        The field's value, and estimates of shape `(K, batch)`; `(1, batch)` if exact.

    Raises:
        ValueError: if the field does not depend on `x` by differentiable operations.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> divergence(lambda x, t: x**2, x, torch.tensor(0.5))[1]
        tensor([[ 6., 14.]])
    """
    with torch.enable_grad():
        x = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        value = differentiable(field(x, t))
        more = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
        terms = []
        for v in _unit_vectors(x) if probes is None else probes:
            (product,) = torch.autograd.grad(value, x, v, **more)
            terms.append((product * v).flatten(1).sum(1))
        estimates = torch.stack(terms)
        estimates = estimates.sum(0, keepdim=True) if probes is None else estimates
    return (value, estimates) if create_graph else (value.detach(), estimates.detach())


def _unit_vectors(x: Tensor) -> Iterator[Tensor]:
    for i in range(x[0].numel()):
        v = torch.zeros_like(x, requires_grad=False).flatten(1)
        v[:, i] = 1
        yield v.view_as(x)
