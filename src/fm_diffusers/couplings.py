r"""Which noise is paired with which data point, in a batch.

Training draws data :math:`z` and noise :math:`\varepsilon` and joins them by a path. Drawn
independently they make conditional paths that cross, so the marginal ones bend. A coupling puts
the noise of a batch in an order :math:`\pi` that makes the transport cheaper,

.. math:: \min_\pi \sum_i \| z_i - \varepsilon_{\pi(i)} \|^2,

and the paths straighter. Every noise is used exactly once, so over a run the noise stays standard
normal and the data the data: both ends of the marginal path, hence what sampling starts from and
arrives at, stay as they are. The marginal path and its field between the ends do change, and a
network trained so is for the ODE: given :math:`z` the noise is no longer Gaussian, so the score
does not follow from the velocity. What is to be sampled as an SDE is trained with `independent`.

With a condition, optimal transport gives each class its own part of the noise, which sampling,
where noise and class are independent, does not know. So the noise is permuted inside each class
only; with real-valued codes (text embeddings, latent codes) that is the limit of the cost

.. math:: \| z_i - \varepsilon_j \|^2 + w \| c_i - c_j \|^2

at large :math:`w`, noise j having been drawn for the code :math:`c_j`. Drop conditions for
classifier-free guidance after coupling, each with a coin of its own: then the noise of the samples
without condition is standard normal as well.

References: Pooladian et al., "Multisample Flow Matching", https://arxiv.org/abs/2304.14772; Tong
et al., "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport",
https://arxiv.org/abs/2302.00482; Cheng, Schwing, "The Curse of Conditions",
https://arxiv.org/abs/2503.10636; Cuturi, "Sinkhorn Distances", https://arxiv.org/abs/1306.0895.
"""

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.paths.base import check_positive
from fm_diffusers.tables import make

#: By default the weight of the codes leaves this share of the pairs cheaper than the given ones.
CANDIDATES = 0.01

Cost = Callable[[], Tensor]


def _pot() -> ModuleType:
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "this coupling needs POT: pip install fm_diffusers[ot], or say 'independent'"
        ) from error
    return ot


def _independent(n: int, cost: Cost, generator: torch.Generator | None) -> Tensor:
    return torch.arange(n)


def _optimal_transport(n: int, cost: Cost, generator: torch.Generator | None) -> Tensor:
    plan = _pot().emd(np.ones(n), np.ones(n), cost().numpy(), numItermax=10_000_000)
    return torch.from_numpy(plan).argmax(1)


def _sinkhorn(
    n: int, cost: Cost, generator: torch.Generator | None, regularization: float = 0.1
) -> Tensor:
    check_positive(regularization=regularization)
    c = cost()
    # sums over rows or columns are the same for every permutation: what remains is the scale
    c = c - c.mean(0) - c.mean(1, keepdim=True) + c.mean()
    c = c / (regularization * (c.square().mean().sqrt().item() or 1.0))
    ones = np.ones(n)
    _, log = _pot().sinkhorn(
        ones, ones, c.numpy(), 1.0, "sinkhorn_log", numItermax=10_000, stopThr=1e-2, log=True
    )
    u, v = torch.from_numpy(log["log_u"]), torch.from_numpy(log["log_v"])
    return _draw(u[:, None] + v - c, generator)


def _draw(log_plan: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw rows in random order, each a column of those left (by the largest Gumbel variable)."""
    device = "cpu" if generator is None else generator.device
    waiting = torch.empty(log_plan.shape, dtype=log_plan.dtype, device=device)
    waiting.exponential_(generator=generator)
    order = torch.randperm(len(log_plan), generator=generator, device=device)
    keys, permutation = log_plan - waiting.log().cpu(), torch.empty_like(order, device="cpu")
    for row in order.tolist():
        permutation[row] = column = keys[row].argmax()
        keys[:, column] = -math.inf
    return permutation


#: Couplings by name. An entry is a function that returns a permutation of `n` noises, with
#: parameters of its own by name; `cost()`, computed when it is called, has the shape `(n, n)`, a
#: row for each data point:
#:
#:     def nearest(n, cost, generator):  # noise i goes to data point j
#:         rows, taken = cost().clone(), []
#:         for row in rows:
#:             taken.append(int(row.argmin()))
#:             rows[:, taken[-1]] = torch.inf
#:         return torch.tensor(taken)
#:
#:     COUPLINGS["nearest"] = nearest
COUPLINGS: dict[str, Callable[..., Tensor]] = {
    "independent": _independent,
    "optimal_transport": _optimal_transport,
    "sinkhorn": _sinkhorn,
}


def couple(
    z: Tensor,
    eps: Tensor,
    coupling: str = "independent",
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
    condition_weight: float | None = None,
    **parameters: float,
) -> Tensor:
    r"""Return the noise of a batch in the order in which it is paired with the data.

    Couplings: `independent` (the noise as it is); `optimal_transport` (the cheapest permutation);
    `sinkhorn` (a permutation drawn from the entropic plan: each row in turn draws one of the
    columns left. `regularization=0.1` is in units of the standard deviation of the costs, less
    their means over rows and columns; 0 is optimal transport, infinity a random order). The last
    two need POT, the extra `ot`, and compute on the CPU in float64.

    Args:
        z: data, shape `(batch, ...)`: pixels or latents, as the network sees them.
        eps: standard normal noise of that shape.
        coupling: one of `COUPLINGS`.
        condition: what the network is told of each sample, before any of it is dropped: integer
            labels of shape `(batch,)` or floating codes of shape `(batch, ...)`.
        generator: source of the randomness of `sinkhorn`.
        condition_weight: :math:`w` of the codes. By default the least with which at most one in a
            hundred of the other pairs :math:`(i, j)` is cheaper than :math:`(i, i)`.
        **parameters: of the coupling.

    Returns:
        A permutation of `eps` along the batch.

    Raises:
        ValueError: if shapes do not agree, a name or value is unknown, or the codes take so few
            values that no weight can be chosen.
        ImportError: if POT is missing.

    Example:
        >>> z, eps = torch.tensor([[1.0], [-2.0], [0.0]]), torch.tensor([[0.1], [0.9], [-1.3]])
        >>> couple(z, eps, "optimal_transport").flatten()
        tensor([ 0.9000, -1.3000,  0.1000])
        >>> couple(z, eps, "optimal_transport", condition=torch.tensor([7, 7, 3])).flatten()
        tensor([ 0.9000,  0.1000, -1.3000])
    """
    _check(z, eps, condition, condition_weight)
    permutation = torch.empty(len(z), dtype=torch.long)
    codes = condition if condition is not None and condition.is_floating_point() else None
    for group in of_classes(len(z), None if codes is not None else condition):
        cost = partial(_cost, z[group], eps[group], codes, condition_weight)
        given = {"n": len(group), "cost": cost, "generator": generator}
        permutation[group] = group[make("coupling", COUPLINGS, coupling, parameters, **given)]
    return eps[permutation.to(eps.device)]


def of_classes(n: int, labels: Tensor | None) -> list[Tensor]:
    """Return the indices of each class; all of them without labels."""
    if labels is None:
        return [torch.arange(n)]
    labels = labels.cpu()
    return [(labels == label).nonzero().flatten() for label in labels.unique()]


def _cost(z: Tensor, eps: Tensor, codes: Tensor | None, weight: float | None) -> Tensor:
    distances = _distances(z, eps)
    if codes is None:
        return distances
    between = _distances(codes, codes)
    weight = _condition_weight(distances, between) if weight is None else weight
    return distances + weight * between


def _distances(x: Tensor, y: Tensor) -> Tensor:
    x, y = (a.detach().cpu().double().reshape(len(a), -1) for a in (x, y))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("samples and conditions must be finite to be coupled, got inf or nan")
    return torch.cdist(x, y).square()


def _condition_weight(distances: Tensor, between: Tensor) -> float:
    r"""Return the weight above which few pairs save more in distance than they cost in codes.

    Pair :math:`(i, j)` is cheaper than :math:`(i, i)` while
    :math:`w < (d_{ii} - d_{ij})/\|c_i - c_j\|^2`, so the weight is a quantile of these ratios.
    """
    saved = distances.diagonal()[:, None] - distances
    alike = between <= 1e-12 * between.mean()
    ratio = torch.where(alike, math.inf * saved.sign(), saved / between)
    ratio = ratio[~torch.eye(len(ratio), dtype=torch.bool)].sort(descending=True).values
    weight = ratio[int(CANDIDATES * len(ratio))].item() if len(ratio) else 0.0
    if not weight < math.inf:
        raise ValueError(
            f"more than {CANDIDATES:.0%} of the pairs have equal codes, so that no weight keeps "
            "them apart: give integer labels, or a condition_weight"
        )
    return max(weight, 0.0)


def _check(z: Tensor, eps: Tensor, condition: Tensor | None, weight: float | None) -> None:
    if z.shape != eps.shape or z.ndim == 0:
        raise ValueError(
            "z and eps must have one shape (batch, ...), got "
            f"{tuple(z.shape)} and {tuple(eps.shape)}"
        )
    codes = condition is not None and condition.is_floating_point()
    shape = z.shape[:1] if condition is None else condition.shape[: 1 if codes else None]
    if condition is not None and shape != z.shape[:1]:
        raise ValueError(
            f"condition must be integer labels of shape ({len(z)},) or floating codes of shape "
            f"({len(z)}, ...), got {condition.dtype} of shape {tuple(condition.shape)}"
        )
    if weight is not None and not codes:
        raise ValueError(
            f"condition_weight={weight} is for floating codes: classes are kept apart, and "
            "without a condition there is nothing to weight; leave it out"
        )
    if weight is not None and not 0 <= weight < math.inf:
        raise ValueError(f"condition_weight must be finite and at least 0, got {weight}")
