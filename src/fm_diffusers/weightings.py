r"""Weights of a training loss over time, by name, for any path and any prediction.

At a given :math:`x_t` an error of one kind is a multiple of an error of every other,
:math:`\delta q' = c_q\, \delta q`. A weighting is stated here once, on the squared errors of the
kinds that its paper uses, as a function

.. math:: h_t(\|\delta q_1\|^2, \|\delta q_2\|^2, \dots)

that is homogeneous of degree one: twice the errors, twice the loss. Min-SNR, for example, is
:math:`\min(\|\delta\varepsilon\|^2, \gamma \|\delta z\|^2)`, because with
:math:`\mathrm{SNR} = \alpha^2/\beta^2` the first is SNR times the second. The weight of the error
of what a network predicts is then :math:`w_t = h_t(c_1^2, c_2^2, \dots)`, so a weighting is the
same loss for every network. It is finite at both ends where the mathematics is: of a conversion
that diverges a minimum takes the other side.

With :math:`D = \dot\alpha\beta - \alpha\dot\beta`, :math:`\lambda = \log\mathrm{SNR}` and
:math:`\dot\lambda/2 = D/(\alpha\beta)`:

==================  ===========================================================================
`uniform`           1 on the network's own error
`flow_matching`     :math:`\|\delta u\|^2`
`snr`               :math:`\|\delta\varepsilon\|^2`: score matching with the weight
                    :math:`\beta^2`, DDPM's simple loss
`min_snr`           :math:`\min(\|\delta\varepsilon\|^2, \gamma\|\delta z\|^2)`
`edm`               :math:`\|\delta\varepsilon\|^2 + \|\delta z\|^2/s^2`, s the data's deviation
`likelihood`        :math:`(\dot\lambda/2)\, \|\delta\varepsilon\|^2`, which is
                    :math:`g^2/2\, \|\delta s\|^2` for the memoryless g: the variational bound
`sde_likelihood`    the same bound for the SDE that is sampled with another `diffusion` g
`sigmoid`           `likelihood` times :math:`\mathrm{sigmoid}(b - \lambda)`
`logit_normal`, `beta`, `cosmap`
                    :math:`\pi_t \|\delta u\|^2`, the densities of those time samplers
`sigma_sqrt`        :math:`\sigma^{-2} \|\delta u\|^2` with :math:`\sigma = \beta/(\alpha + \beta)`
==================  ===========================================================================

Uniform times with the weight :math:`\pi_t` have the expected loss of times drawn from
:math:`\pi_t`. The likelihoods, summed over the elements (our losses are their means) and
integrated over t, are nats. By Girsanov's theorem the SDE with :math:`g^2 = 2n` and a field in
error lies at :math:`\int (n + m)^2/(4n)\, E\|\delta s\|^2 dt` from the true one, where
:math:`2m = 2\beta D/\alpha` is the memoryless :math:`g^2`, which makes it least. These, and
`sigma_sqrt`, diverge at the data: they need times below 1.

References: Ho et al., https://arxiv.org/abs/2006.11239 (simple loss); Hang et al., "Efficient
Diffusion Training via Min-SNR Weighting Strategy", https://arxiv.org/abs/2303.09556; Karras et
al., https://arxiv.org/abs/2206.00364 (edm); Song et al., "Maximum Likelihood Training of
Score-Based Diffusion Models", https://arxiv.org/abs/2101.09258; Albergo et al., "Stochastic
Interpolants", https://arxiv.org/abs/2303.08797 (any g); Kingma, Gao, "Understanding Diffusion
Objectives as the ELBO with Simple Data Augmentation", https://arxiv.org/abs/2303.00848, and
Hoogeboom et al., "Simpler Diffusion", https://arxiv.org/abs/2410.19324 (sigmoid); Esser et al.,
"Scaling Rectified Flow Transformers", https://arxiv.org/abs/2403.03206 (densities).
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fm_diffusers.diffusions import get_diffusion
from fm_diffusers.forms import misfit
from fm_diffusers.paths import GaussianPath, as_time
from fm_diffusers.paths.base import check_positive
from fm_diffusers.predictions import CANONICAL, check_prediction, conversion
from fm_diffusers.tables import make


@dataclass(frozen=True)
class Weighting:
    r"""A loss :math:`h_t` of squared errors.

    Attributes:
        kinds: the predictions whose errors it takes.
        loss: `h` as a function of the path, the time and one squared error for each kind,
            homogeneous of degree one in these.
    """

    kinds: tuple[str, ...]
    loss: Callable[..., Tensor]


def _uniform() -> Weighting:
    return Weighting((), lambda path, t: torch.ones_like(t))


def _flow_matching() -> Weighting:
    return Weighting(("velocity",), lambda path, t, u: u)


def _snr() -> Weighting:
    return Weighting(("epsilon",), lambda path, t, eps: eps)


def _min_snr(gamma: float = 5.0) -> Weighting:
    check_positive(gamma=gamma)
    return Weighting(("epsilon", "sample"), lambda path, t, eps, z: torch.minimum(eps, gamma * z))


def _edm(data_std: float = 0.5) -> Weighting:
    check_positive(data_std=data_std)
    return Weighting(("epsilon", "sample"), lambda path, t, eps, z: eps + z / data_std**2)


# |deps|^2/alpha^2 = |dz|^2/beta^2 = q/(alpha + beta)^2 for the squared error q of z - eps on the
# linear path, which is finite for every velocity: hence the weights below that contain D
def _beta_d(path: GaussianPath, t: Tensor) -> Tensor:
    c = path(t)
    return c.d_alpha * c.beta**2 - c.alpha * path.half_d_variance(t)


def _likelihood() -> Weighting:
    def loss(path: GaussianPath, t: Tensor, q: Tensor) -> Tensor:
        alpha, beta = path(t)[:2]
        return _beta_d(path, t) * alpha / beta**2 * q / (alpha + beta) ** 2

    return Weighting((CANONICAL,), loss)


def _sigmoid(bias: float = 0.0) -> Weighting:
    gamma = math.exp(bias)

    def loss(path: GaussianPath, t: Tensor, q: Tensor) -> Tensor:
        alpha, beta = path(t)[:2]
        bounded = gamma * alpha / (alpha**2 + gamma * beta**2)
        return _beta_d(path, t) * bounded * q / (alpha + beta) ** 2

    return Weighting((CANONICAL,), loss)


def _sde_likelihood(diffusion: str = "beta", scale: float | None = None) -> Weighting:
    g = get_diffusion(diffusion, scale)

    def loss(path: GaussianPath, t: Tensor, u: Tensor) -> Tensor:
        if not g.squared(path, 0.0).isfinite():
            raise ValueError(
                f"the diffusion {diffusion!r} is infinite at t = 0: say 'likelihood', the bound "
                "of the memoryless one, or choose a bounded diffusion"
            )
        n = g.squared(path, t) / 2
        return (1 + n * path.alpha(t) / _beta_d(path, t)) ** 2 / (4 * n) * u

    return Weighting(("velocity",), loss)


def _density(density: Callable[[Tensor], Tensor]) -> Weighting:
    return Weighting(("velocity",), lambda path, t, u: density(t) * u)


def _logit_normal(mean: float = 0.0, std: float = 1.0) -> Weighting:
    check_positive(std=std)

    def density(t: Tensor) -> Tensor:
        # N(logit t; mean, std)/(t (1 - t)), the square completed: it vanishes at both ends
        logit = torch.logit(t)
        side = logit.sign() * mean
        exponent = side + std**2 / 2 - ((logit.abs() - side) / std - std) ** 2 / 2
        return torch.exp(exponent + 2 * softplus(-logit.abs())) / (std * math.sqrt(2 * math.pi))

    return _density(density)


def _beta(a: float = 1.5, b: float = 1.0) -> Weighting:
    check_positive(a=a, b=b)
    norm = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    return _density(lambda t: norm * t ** (a - 1) * (1 - t) ** (b - 1))


def _cosmap() -> Weighting:
    return _density(lambda t: 2 / (math.pi * (1 - 2 * t + 2 * t**2)))


def _sigma_sqrt() -> Weighting:
    return Weighting(("velocity",), lambda path, t, u: (path.alpha(t) / path.beta(t) + 1) ** 2 * u)


#: Weightings by name. An entry is a function of its parameters that returns a `Weighting`:
#:
#:     def late(power=2.0):  # a loss of the squared errors of these kinds, of degree one
#:         return Weighting(("velocity",), lambda path, t, velocity: t**power * velocity)
#:
#:     WEIGHTINGS["late"] = late
WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "uniform": _uniform,
    "flow_matching": _flow_matching,
    "snr": _snr,
    "min_snr": _min_snr,
    "edm": _edm,
    "likelihood": _likelihood,
    "sde_likelihood": _sde_likelihood,
    "sigmoid": _sigmoid,
    "logit_normal": _logit_normal,
    "beta": _beta,
    "cosmap": _cosmap,
    "sigma_sqrt": _sigma_sqrt,
}


def loss_weight(
    path: GaussianPath,
    t: float | Tensor,
    prediction: str = "velocity",
    weighting: str = "uniform",
    **parameters: float | str,
) -> Tensor:
    r"""Return the weight :math:`w_t` of the squared error of what a network predicts.

    Weightings (see the module) and their parameters: `uniform`, `flow_matching`, `snr`, `min_snr`
    (`gamma=5`), `edm` (`data_std=0.5`), `likelihood`, `sde_likelihood` (`diffusion="beta"`,
    `scale`), `sigmoid` (`bias=0`), `logit_normal` (`mean=0, std=1`), `beta` (`a=1.5, b=1`),
    `cosmap`, `sigma_sqrt`.

    Args:
        path: the path of the training.
        t: times in [0, 1], 0 is noise and 1 is data, of any shape.
        prediction: what the network predicts, one of `PREDICTIONS`.
        weighting: one of `WEIGHTINGS`.
        **parameters: of the weighting.

    Returns:
        Weights in the shape of `t`; not finite at an end where the weighting diverges, or where
        the prediction does not determine the errors that it weights.

    Raises:
        ValueError: if a name, a parameter or a value is unknown or out of its range.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> t = torch.tensor([0.0, 0.5, 0.75, 1.0])
        >>> loss_weight(Linear(), t, "velocity", "min_snr")  # min(t^2, 5 (1 - t)^2)
        tensor([0.0000, 0.2500, 0.3125, 0.0000])
        >>> loss_weight(Linear(), t, "epsilon", "min_snr")  # min(1, 5/SNR)
        tensor([1.0000, 1.0000, 0.5556, 0.0000])
    """
    check_prediction(prediction)
    t, row = as_time(t), make("weighting", WEIGHTINGS, weighting, parameters)
    errors = [conversion(path, prediction, kind, t)[1].square() for kind in row.kinds]
    try:
        inspect.signature(row.loss).bind(path, t, *errors)
    except TypeError as error:
        fault = f"its loss is called with path, t and {len(errors)} squared errors, and {error}"
        raise misfit("weighting", weighting, fault) from error
    weight = row.loss(path, t, *errors)
    if not isinstance(weight, Tensor) or weight.shape != t.shape:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        fault = f"its loss must have the shape {tuple(t.shape)} of t, got {got}"
        raise misfit("weighting", weighting, fault)
    return weight
