r"""What a network may predict, and how one prediction becomes another.

Every prediction is a row :math:`(a, b, w)`,

.. math:: w\, q = a z + b \varepsilon,

and so is the sample itself, :math:`x = \alpha z + \beta \varepsilon`. Two rows determine
:math:`z` and :math:`\varepsilon`, hence every third: with
:math:`\det = \alpha b - \beta a` and the row :math:`(c, d, w')`,

.. math:: q' = \frac{c b - d a}{w' \det} x + \frac{(d \alpha - c \beta) w}{w' \det} q.

All conversions and all training targets are this one line. Where a conversion does not exist (a
noise prediction says nothing about the data at :math:`\alpha = 0`) its numbers are not finite;
they are never clamped.

Signs and scales (:math:`t = 0` is noise, :math:`t = 1` is data):

======================  =============================================================
`velocity`              :math:`u = \dot\alpha z + \dot\beta \varepsilon`: dx/dt, noise to data
`flow_prediction`       :math:`-u`, the sign of diffusers' flow models: `eps - z`
`sample`                :math:`z`
`epsilon`               :math:`\varepsilon`
`score`                 :math:`\nabla \log p_t(x | z) = -\varepsilon/\beta`
`v_prediction`          :math:`\alpha \varepsilon - \beta z`; not the velocity
`edm`                   :math:`2u/\pi`, the raw output of an EDM network on the cosine path
======================  =============================================================
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fm_diffusers.forms import misfit
from fm_diffusers.paths import GaussianPath, as_time, expand_like
from fm_diffusers.tables import look_up

Coefficient = Callable[[GaussianPath, Tensor], Tensor]
Row = tuple[Tensor, Tensor, Tensor]


def _one(path: GaussianPath, t: Tensor) -> Tensor:
    return torch.ones_like(t)


def _minus_one(path: GaussianPath, t: Tensor) -> Tensor:
    return -torch.ones_like(t)


def _quarter_turn(path: GaussianPath, t: Tensor) -> Tensor:
    return torch.full_like(t, math.pi / 2)


def _minus_beta(path: GaussianPath, t: Tensor) -> Tensor:
    if path.coupled:
        raise ValueError(
            f"there is no score on {path}: noise and data were paired in the training, so that "
            "it follows from no other prediction; ask for the velocity"
        )
    return -path.beta(t)


def _velocity(path: GaussianPath, t: Tensor) -> Row:
    return path.tangent(t)


def _sample(path: GaussianPath, t: Tensor) -> Row:
    one = torch.ones_like(t)
    return one, 0 * one, one


def _epsilon(path: GaussianPath, t: Tensor) -> Row:
    one = torch.ones_like(t)
    return 0 * one, one, one


def _v(path: GaussianPath, t: Tensor) -> Row:
    return -path.beta(t), path.alpha(t), torch.ones_like(t)


def _canonical(path: GaussianPath, t: Tensor) -> Row:
    one = torch.ones_like(t)
    return one, -one, one


#: Each prediction `q` by its row, and the factor `f` that brings it there: `f q` has that row. An
#: entry is a pair of functions of the path and of times of any shape:
#:
#:     def row(path, t):  # (a, b, w): what is predicted is q with w f q = a z + b eps
#:         one = torch.ones_like(t)
#:         return one, -one, one
#:
#:     def factor(path, t):  # f
#:         return torch.full_like(t, 2.0)
#:
#:     PREDICTIONS["mine"] = (row, factor)
#:
#: Whoever loads a pipeline saved with such a name must do the same first.
PREDICTIONS: dict[str, tuple[Callable[[GaussianPath, Tensor], Row], Coefficient]] = {
    "velocity": (_velocity, _one),
    "flow_prediction": (_velocity, _minus_one),
    "sample": (_sample, _one),
    "epsilon": (_epsilon, _one),
    "score": (_epsilon, _minus_beta),
    "v_prediction": (_v, _one),
    "edm": (_velocity, _quarter_turn),
}

#: The velocity `z - eps` of the linear path, on any path: what solvers on the signal-to-noise
#: clock integrate. No network need predict it, so it is not one of `PREDICTIONS`.
CANONICAL = "canonical"

_CANONICAL = (_canonical, _one)


def check_prediction(prediction: str) -> None:
    """Raise a `ValueError` unless `prediction` is one of `PREDICTIONS`."""
    look_up("prediction type", PREDICTIONS, prediction)


def _entry(prediction: str) -> tuple[Callable[[GaussianPath, Tensor], Row], Coefficient]:
    if prediction == CANONICAL:
        return _CANONICAL
    return look_up("prediction type", PREDICTIONS, prediction)


def _row(path: GaussianPath, prediction: str, t: Tensor) -> Row:
    row, factor = _entry(prediction)
    found = row(path, t)
    if not isinstance(found, tuple) or len(found) != 3:
        got = len(found) if isinstance(found, tuple) else type(found).__name__
        raise misfit("prediction type", prediction, f"row(path, t) must return three, got {got}")
    a, b, w = found
    return a, b, w * factor(path, t)


def is_defined(path: GaussianPath, prediction: str, t: float | Tensor) -> Tensor:
    """Whether the prediction's own target is finite at times `t`.

    Where it is not (the score at the data, the velocity of the variance-preserving path there) no
    network can have learned it.
    """
    return _row(path, prediction, as_time(t))[2] != 0


def conversion(
    path: GaussianPath, source: str, target: str, t: float | Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`(c_x, c_q)` with :math:`q_{target} = c_x x + c_q q_{source}` at time `t`.

    Both have the shape of `t`. They are not finite where the source does not determine the target.

    Raises:
        ValueError: if a prediction's name is unknown.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> c_x, c_q = conversion(Linear(), "velocity", "sample", 0.25)  # z = x + (1 - t) u
        >>> c_x.item(), c_q.item()
        (1.0, 0.75)
    """
    t = as_time(t)
    a, b, w = _row(path, source, t)
    c, d, w_target = _row(path, target, t)
    if source == target:
        return torch.zeros_like(t), torch.ones_like(t)
    (row, factor), (row_target, factor_target) = _entry(source), _entry(target)
    if row is row_target:
        return torch.zeros_like(t), factor(path, t) / factor_target(path, t)
    alpha, beta = path.alpha(t), path.beta(t)
    det, cross = alpha * b - beta * a, d * alpha - c * beta
    # where the source repeats x, or says nothing, a target that is a multiple of x is still known
    only_x = (det == 0) & (cross == 0)
    along_x = torch.where(alpha.abs() > beta.abs(), c / alpha, d / beta)
    c_x = torch.where(only_x, along_x, (c * b - d * a) / det) / w_target
    c_q = torch.where(only_x, cross, cross * w / det) / w_target
    return c_x, c_q


def convert(
    path: GaussianPath, source: str, target: str, x: Tensor, q: Tensor, t: float | Tensor
) -> Tensor:
    r"""Return the `target` prediction at the sample `x`, given the `source` prediction `q`.

    Args:
        path: the path of the model.
        source: what `q` is, one of `PREDICTIONS`.
        target: what is wanted, one of `PREDICTIONS`.
        x: samples at time `t`, shape `(batch, ...)`.
        q: the source prediction, of the same shape.
        t: time in [0, 1], 0 is noise; a scalar or shape `(batch,)`.
    """
    if source == target:
        return q
    c_x, c_q = conversion(path, source, target, t)
    return expand_like(c_x, x) * x + expand_like(c_q, x) * q


def target(
    path: GaussianPath, prediction: str, z: Tensor, eps: Tensor, t: float | Tensor
) -> Tensor:
    r"""Return the conditional target :math:`(a z + b \varepsilon)/w` that a network regresses.

    Args:
        path: the path on which the network is trained.
        prediction: what the network predicts, one of `PREDICTIONS`.
        z: data, shape `(batch, ...)`.
        eps: the noise of the same shape.
        t: time in [0, 1], 0 is noise; a scalar or shape `(batch,)`.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> target(Linear(), "velocity", torch.tensor([3.0]), torch.tensor([1.0]), 0.5)
        tensor([2.])
    """
    a, b, w = _row(path, prediction, as_time(t))
    return expand_like(a / w, z) * z + expand_like(b / w, z) * eps
