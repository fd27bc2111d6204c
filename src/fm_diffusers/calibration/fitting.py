r"""Rows of weights by reweighted least squares, from the inner products of what they combine.

How far a combination v of columns :math:`f_1, \dots, f_m` is from a target z is a quadratic form
of their Gram matrix, :math:`\|z - \sum_j v_j f_j\|^2 = (v, -1)^T G (v, -1)`: for each sample a
matrix of m + 1 rows is all that a fit and its judgement need, whatever the samples' size.
"""

import torch
from torch import Tensor

from fm_diffusers.solvers.steps import Weights

#: How many times the samples are weighed anew by their errors.
ROUNDS = 20

#: The pull towards the method's own weights, relative to the inner products.
RIDGE = 1e-6


def gram(columns: list[Tensor]) -> Tensor:
    """Return the inner products of m columns `(n, ...)`, means over dimensions, `(n, m, m)`."""
    flat = torch.stack([column.flatten(1).cpu().double() for column in columns], 1)
    return flat @ flat.mT / flat.shape[-1]


def square_errors(products: Tensor, weights: Weights) -> Tensor:
    """Return how far a combination is from the last column, a mean square for each sample."""
    v = torch.tensor([*weights, -1.0], dtype=torch.float64)
    return (products @ v @ v).clamp(min=0)


def fit(products: Tensor, own: Weights) -> Weights:
    r"""Return the weights that combine the other columns to the last one.

    They solve :math:`\min_v \sum_i \omega_i e_i^2(v)` with :math:`\omega_i = 1/(e_i^2 + \delta)`,
    so that the few samples that end in another mode do not rule the fit, and are drawn a little
    towards the method's `own`.
    """
    weights, towards = own, torch.tensor(own, dtype=torch.float64)
    for _ in range(ROUNDS):
        error = square_errors(products, weights)
        omega = 1 / (error + 0.1 * error.median() + 1e-30)
        whole = torch.einsum("n,nij->ij", omega / omega.sum(), products)
        a, moment = whole[:-1, :-1], whole[:-1, -1]
        pull = torch.diag(RIDGE * a.diagonal() + 1e-12 * a.diagonal().mean())  # of 0 columns too
        weights = tuple(torch.linalg.solve(a + pull, moment + pull @ towards).tolist())
    return weights
