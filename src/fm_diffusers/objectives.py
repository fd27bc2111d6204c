r"""Training objectives: regression of a conditional target, and the times at which it is asked.

Flow matching and score matching minimise

.. math:: E_{t, z, \varepsilon}\; w_t\, \| \hat q(x_t) - q_t(x_t | z) \|^2,
          \qquad x_t = \alpha_t z + \beta_t \varepsilon,

whose minimiser is the marginal field, the posterior mean of the conditional target. At a given
:math:`x_t` every prediction is one linear map :math:`q' = c_x x + c_q q` from every other, so an
error in one kind is :math:`c_q` times the error in another: a loss on any kind is the loss on the
network's own kind with the weight :math:`c_q^2`. In particular the score-matching error is
:math:`(\alpha/(\beta D))^2` times the flow-matching error, with
:math:`D = \dot\alpha\beta - \alpha\dot\beta`: without a weight it diverges at the data, and the
weight
:math:`\beta_t^2`, with which it is the noise-matching loss :math:`\|\hat\varepsilon -
\varepsilon\|^2`, keeps it bounded. Weights of the literature go by name in `weighted_loss`.

References: Lipman et al., "Flow Matching for Generative Modeling",
https://arxiv.org/abs/2210.02747; Vincent, "A Connection Between Score Matching and Denoising
Autoencoders" (2011); Ho et al., "Denoising Diffusion Probabilistic Models",
https://arxiv.org/abs/2006.11239; Esser et al., "Scaling Rectified Flow Transformers",
https://arxiv.org/abs/2403.03206 (time samplers); Kingma et al., "Variational Diffusion Models",
https://arxiv.org/abs/2107.00630 (low discrepancy).
"""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath
from fm_diffusers.predictions import convert, target
from fm_diffusers.tables import look_up, make
from fm_diffusers.weightings import loss_weight


def prediction_loss(
    output: Tensor,
    path: GaussianPath,
    z: Tensor,
    eps: Tensor,
    t: Tensor,
    prediction: str = "velocity",
    on: str | None = None,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Return :math:`w_t \| \hat q - q \|^2` of each sample, as a mean over its elements.

    Args:
        output: what the network predicted at `path.flow_map(z, eps, t)`, shape `(batch, ...)`.
        path: the path of the training.
        z: data of that shape.
        eps: the standard normal noise of that shape.
        t: times in [0, 1], 0 is noise and 1 is data, shape `(batch,)`.
        prediction: what the network predicts, one of `PREDICTIONS`.
        on: the kind of prediction whose error is measured; by default the network's own.
        weight: :math:`w_t` as a function of `t`; by default 1.

    Returns:
        Losses of shape `(batch,)`, in float32 or better. Take their mean to train.

    Raises:
        ValueError: if shapes do not agree, a name is unknown, or times on the CPU lie outside of
            [0, 1]; on an accelerator the check would wait for it.
    """
    if not output.shape == z.shape == eps.shape or t.shape != z.shape[:1]:
        raise ValueError(
            "output, z and eps must have one shape (batch, ...) and t the shape (batch,), got "
            f"{tuple(output.shape)}, {tuple(z.shape)}, {tuple(eps.shape)} and {tuple(t.shape)}"
        )
    if t.device.type == "cpu" and not ((t >= 0) & (t <= 1)).all():
        raise ValueError(
            f"times must lie in [0, 1], 0 is noise and 1 is data, got {t.min():g} to {t.max():g}: "
            "the time of a timestep of diffusers is 1 - timestep/1000"
        )
    kind = prediction if on is None else on
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    estimate = convert(path, prediction, kind, path.flow_map(z, eps, t), output, t)
    loss = (estimate - target(path, kind, z, eps, t)).square().flatten(1).mean(1)
    return loss if weight is None else loss * weight(t)


def flow_matching_loss(
    output: Tensor,
    path: GaussianPath,
    z: Tensor,
    eps: Tensor,
    t: Tensor,
    prediction: str = "velocity",
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Return :math:`E\, w_t \| \hat u - u_t(x_t|z) \|^2`, the conditional flow-matching loss.

    For a network that predicts something else than the velocity the error is converted, which
    weights it by :math:`c_q^2`; for noise that diverges at t = 0, for data at t = 1: give a
    `weight` then, or use `prediction_loss` on the network's own target. Arguments and errors are
    those of `prediction_loss`.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> z, eps = torch.ones(2, 1), torch.zeros(2, 1)
        >>> flow_matching_loss(z - eps, Linear(), z, eps, torch.tensor([0.1, 0.9]))
        tensor(0.)
    """
    return prediction_loss(output, path, z, eps, t, prediction, "velocity", weight).mean()


def score_matching_loss(
    output: Tensor,
    path: GaussianPath,
    z: Tensor,
    eps: Tensor,
    t: Tensor,
    prediction: str = "score",
) -> Tensor:
    r"""Return :math:`E\, \beta_t^2 \| \hat s - \nabla \log p_t(x_t|z) \|^2`.

    The weight :math:`\beta_t^2` makes the loss bounded; it is the noise-matching loss. For a
    velocity it is flow matching with the weight :math:`(\alpha/D)^2`, which is :math:`t^2` on the
    linear path. It is not bounded at t = 1 for a network that predicts the data. Arguments and
    errors are those of `prediction_loss`.
    """
    return prediction_loss(output, path, z, eps, t, prediction, "epsilon").mean()


def weighted_loss(
    output: Tensor,
    path: GaussianPath,
    z: Tensor,
    eps: Tensor,
    t: Tensor,
    prediction: str = "velocity",
    weighting: str = "uniform",
    **parameters: float | str,
) -> Tensor:
    r"""Return :math:`w_t \| \hat q - q \|^2` of each sample, with a weight of `WEIGHTINGS`.

    Apart from `uniform`, a weighting is the same loss whatever the network predicts:
    `flow_matching` and `snr` are `flow_matching_loss` and `score_matching_loss`. The weighting's
    parameters are those of `loss_weight`; other arguments and errors are those of
    `prediction_loss`.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> z, eps, t = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0.5, 0.75])
        >>> weighted_loss(z - eps + 1, Linear(), z, eps, t, weighting="min_snr", gamma=2.0)
        tensor([0.2500, 0.1250])
    """

    def weight(t: Tensor) -> Tensor:
        return loss_weight(path, t, prediction, weighting, **parameters)

    return prediction_loss(output, path, z, eps, t, prediction, weight=weight)


def _independent(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.rand(n, generator=generator, device=device)


def _stratified(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    offset = torch.rand(1, generator=generator, device=device)
    return (offset + torch.randperm(n, generator=generator, device=device) / n) % 1


def _logit_normal(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    if not 0 < std < math.inf:
        raise ValueError(f"std of logit_normal times must be positive and finite, got {std}")
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def _mode(u: Tensor, scale: float = 1.29) -> Tensor:
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"scale of mode times must lie in [-1, 2/(pi - 2)], got {scale}")
    return 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


def _cosmap(u: Tensor) -> Tensor:
    return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


TimeSampler = Callable[..., Tensor]


def _by_quantile(quantile: Callable[..., Tensor], base: Callable[..., Tensor]) -> TimeSampler:
    def sampler(
        n: int, generator: torch.Generator | None, device: torch.device, **parameters: float
    ) -> Tensor:
        return quantile(base(n, generator, device), **parameters)

    given, own = inspect.signature(base), inspect.signature(quantile)
    parameters = [*given.parameters.values(), *list(own.parameters.values())[1:]]
    vars(sampler)["__signature__"] = given.replace(parameters=parameters)
    return sampler


def _beta(
    n: int,
    generator: torch.Generator | None,
    device: torch.device,
    a: float = 1.5,
    b: float = 1.0,
) -> Tensor:
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"a and b of beta times must be positive and finite, got {a} and {b}")
    shape = torch.tensor([[a], [b]], device=device).expand(2, n)
    first, second = torch._standard_gamma(shape, generator=generator)
    return first / (first + second)


#: Densities of the training time, by name. An entry is a function that returns `n` times, with
#: parameters of its own by name:
#:
#:     def late(n, generator, device, power=0.5):  # n times in [0, 1], 0 is noise
#:         return torch.rand(n, generator=generator, device=device) ** power
#:
#:     TIME_SAMPLERS["late"] = late
TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": _by_quantile(lambda u: u, _independent),
    "logit_normal": _by_quantile(_logit_normal, _independent),
    "mode": _by_quantile(_mode, _independent),
    "cosmap": _by_quantile(_cosmap, _independent),
    "beta": _beta,
    "low_discrepancy": _by_quantile(lambda u: u, _stratified),
}


def sample_times(
    n: int,
    sampler: str = "uniform",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    **parameters: float,
) -> Tensor:
    r"""Draw `n` training times in [0, 1], 0 is noise and 1 is data; float32 of shape `(n,)`.

    Samplers and their parameters: `uniform`; `logit_normal` (`mean=0, std=1` of the logit of t);
    `mode` (`scale=1.29`); `cosmap`; `beta` (`a=1.5, b=1`, density
    :math:`t^{a-1}(1-t)^{b-1}`); `low_discrepancy` (uniform, one time in each n-th of the
    interval). The densities of Esser et al. are stated there for the noise time, which is 1 - t.

    Raises:
        ValueError: if the sampler, or a parameter of it, is unknown or out of its range.

    Example:
        >>> t = sample_times(4, "low_discrepancy", torch.Generator().manual_seed(0))
        >>> sorted((4 * t).int().tolist())
        [0, 1, 2, 3]
    """
    look_up("time sampler", TIME_SAMPLERS, sampler)
    given = {"n": n, "generator": generator, "device": torch.device(device)}
    return make("time_sampler", TIME_SAMPLERS, sampler, parameters, **given)
