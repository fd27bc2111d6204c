r"""The density of what a model samples: the sampling ODE run back from data to noise.

Along :math:`\dot y = F(y, u)` the log-density of a sample changes at the rate
:math:`-\nabla\cdot F`, the instantaneous change of variables. On the clock
:math:`u = \alpha/(\alpha + \beta)` every Gaussian path is the linear one (see `solvers.adaptive`),
so with :math:`y = x/(\alpha + \beta)` running from :math:`u_0` (noise) to :math:`u_1` (data)

.. math:: \log p(x) = \log N\big(y_{u_0}; 0, (u_0^2 + (1 - u_0)^2) I\big)
          - \int_{u_0}^{u_1} \nabla\cdot F\, du + d \log u_1, \qquad y_{u_1} = u_1 x,

on any path and for any prediction. :math:`p` is the density of the samples that the ODE makes of
the sampler's own noise.

The divergence is exact, or estimated from random vectors (see `divergence`), which are drawn once
and kept along the whole trajectory: drawn anew at each evaluation they would be noise to an
adaptive solver, which would then take ever smaller steps.

**The ends.** At :math:`t = 1` of a path that ends without noise a model that predicts the data
(or the score; or the velocity of the variance-preserving path) does not determine :math:`F`. There
the default stops inside, at :math:`u_1 = 0.999`, and :math:`p` is then the density of the data
with a little noise, of standard deviation :math:`\beta/\alpha = (1 - u_1)/u_1`. Likewise it starts
at :math:`u_0 = 0.01`, the first time of our samplers, where the model says nothing at
:math:`t = 0`.

References: Chen et al., "Neural Ordinary Differential Equations",
https://arxiv.org/abs/1806.07366 (change of variables); Grathwohl et al., "FFJORD",
https://arxiv.org/abs/1810.01367 (fixed random vectors); Song et al., "Score-Based Generative
Modeling through SDEs", https://arxiv.org/abs/2011.13456; Lipman et al., "Flow Matching for
Generative Modeling", https://arxiv.org/abs/2210.02747.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.fields import Field
from fm_diffusers.likelihood.divergence import differentiable, divergence, rademacher
from fm_diffusers.likelihood.integrators import Integrator, adaptive
from fm_diffusers.paths import GaussianPath, Linear
from fm_diffusers.predictions import CANONICAL
from fm_diffusers.solvers import Multistep
from fm_diffusers.solvers.adaptive import check_order

#: The clock at the default ends where a model says nothing at t = 0 or at t = 1.
INSIDE = (0.01, 0.999)


class LogDensity(NamedTuple):
    """Log-densities, how sure they are, and where their samples come from.

    Attributes:
        value: log-density of each sample in nats, shape `(batch,)`, float64 on the CPU.
        standard_error: of the mean over the random vectors, likewise: 0 for exact
            divergences; NaN for one random vector, which does not tell.
        noise: the samples carried back to `t_min`, as `invert` returns them.
    """

    value: Tensor
    standard_error: Tensor
    noise: Tensor


def invert(
    path: GaussianPath,
    field: Field,
    x: Tensor,
    t_min: float | None = None,
    t_max: float | None = None,
    prediction: str = "velocity",
    integrator: Integrator | None = None,
    differentiable: bool = False,
) -> Tensor:
    r"""Return the noise that the sampling ODE carries to the data `x`.

    Args:
        path: the path of the field.
        field: `f(x, t)`, returning what `prediction` names.
        x: data, shape `(batch, ...)`, float32 or float64.
        t_min: where to end, 0 is noise; by default there, or inside (see the module).
        t_max: where to start, 1 is data; by default there, or inside.
        prediction: what the field predicts, one of `PREDICTIONS`.
        integrator: `adaptive(...)`, the default, or `on_grid(...)`.
        differentiable: whether gradients flow through it, to `x` and to what the field is made of.

    Returns:
        The samples at `t_min` on the path: what a pipeline takes as `latents`.

    Raises:
        ValueError: if the model does not determine the slope at an end, `x` is no float32 or
            float64 data, or it requires a gradient that is not given.

    Example:
        >>> from fm_diffusers.fields import GaussianMixture
        >>> data = GaussianMixture(torch.zeros(1, 1), 2.0)  # N(0, 2^2): the flow doubles x
        >>> invert(Linear(), data.field(Linear()), torch.tensor([[2.0], [-4.0]])).round(decimals=3)
        tensor([[ 1.],
                [-2.]])
    """
    _check_data(x, differentiable)
    with torch.set_grad_enabled(differentiable):
        slope, (start, end), scale = _on_clock(path, field, t_min, t_max, prediction)
        return scale * (integrator or adaptive())(slope, end * x, end, start)


def log_prob(
    path: GaussianPath,
    field: Field,
    x: Tensor,
    t_min: float | None = None,
    t_max: float | None = None,
    prediction: str = "velocity",
    num_probes: int | None = None,
    generator: torch.Generator | None = None,
    integrator: Integrator | None = None,
    differentiable: bool = False,
) -> LogDensity:
    r"""Return :math:`\log p(x)` in nats, of the density that the sampling ODE makes of noise.

    Args:
        path: the path of the field.
        field: `f(x, t)`, differentiable, each sample on its own, returning what `prediction`
            names.
        x: data, shape `(batch, ...)`, float32 or float64.
        t_min: where the noise is, 0; by default there, or inside (see the module).
        t_max: where the data is, 1; by default there, or inside.
        prediction: what the field predicts, one of `PREDICTIONS`.
        num_probes: number K of random vectors for the divergence, with which the cost grows; None
            for exact divergences, whose cost grows with the dimension.
        generator: of these vectors.
        integrator: `adaptive(...)`, the default, or `on_grid(...)`.
        differentiable: whether gradients flow through the result, to `x` and to what the field is
            made of, by back-propagation through every evaluation: all are kept in memory.

    Raises:
        ValueError: if the model does not determine the slope at an end, the field cannot be
            differentiated, `x` is no float32 or float64 data or requires a gradient that is not
            given, or there is no random vector.

    Example:
        >>> from fm_diffusers.fields import GaussianMixture
        >>> data, x = GaussianMixture(torch.zeros(1, 1), 2.0), torch.tensor([[3.0]])
        >>> exact = torch.distributions.Normal(0, 2).log_prob(x)[:, 0]
        >>> found = log_prob(Linear(), data.field(Linear()), x)
        >>> bool((found.value - exact).abs() < 1e-3), found.standard_error.item()
        (True, 0.0)
    """
    if num_probes is not None and num_probes < 1:
        raise ValueError(
            f"num_probes must be at least 1, or None for exact divergences, got {num_probes}"
        )
    _check_data(x, differentiable)
    probes = None if num_probes is None else rademacher(x, num_probes, generator)
    with torch.set_grad_enabled(differentiable):
        slope, (start, end), scale = _on_clock(path, field, t_min, t_max, prediction)
        flat, count = x.flatten(1), num_probes or 1
        dim = flat.shape[1]
        state = torch.cat([end * flat, flat.new_zeros(len(x), count)], 1)
        with_density = _with_density(slope, x.shape, probes)
        state = (integrator or adaptive())(with_density, state, end, start)
        y, change = state.cpu().double().split([dim, count], 1)
        variance = start**2 + (1 - start) ** 2
        prior = -(y.square().sum(1) / variance + dim * math.log(2 * math.pi * variance)) / 2
        each = prior[:, None] + dim * (change + math.log(end))
        value = each.mean(1, keepdim=True)
        error = standard_error(each.detach()) if num_probes else torch.zeros_like(prior)
        return LogDensity(value[:, 0], error.detach(), scale * state[:, :dim].reshape(x.shape))


def standard_error(each: Tensor) -> Tensor:
    """Return that of the mean over estimates of shape `(batch, K)`; NaN for one."""
    count = each.shape[1]
    squares = (each - each.mean(1, keepdim=True)).square().sum(1)
    return (squares / (count * (count - 1))).sqrt()  # 0/0 for one


def _check_data(x: Tensor, differentiable: bool) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(
            f"x must be a tensor of data, got {type(x).__name__}: arguments are (path, field, x)"
        )
    if x.requires_grad and torch.is_grad_enabled() and not differentiable:
        raise ValueError(
            "x requires a gradient, which is not computed unless asked for: pass "
            "differentiable=True, or x.detach()"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x must be float32 or float64, got {x.dtype}: 8-bit images become points of a "
            "density by dequantize()"
        )
    if not x.isfinite().all() or not x.numel():
        raise ValueError(
            f"x must be finite and not empty, got shape {tuple(x.shape)} with "
            f"{(~x.isfinite()).sum().item()} values that are not finite: remove these samples"
        )


def _on_clock(
    path: GaussianPath, field: Field, t_min: float | None, t_max: float | None, prediction: str
) -> tuple[Field, tuple[float, float], float]:
    r"""Return :math:`F(y, u)`, the clock at both ends, and :math:`\alpha + \beta` at the noise."""
    check_order(path, t_min, t_max)
    on_path = Multistep(path, prediction)
    inside = path.time(torch.logit(torch.tensor(INSIDE, dtype=torch.float64))).tolist()
    times = [
        (t if on_path.exists(t) else other) if given is None else given
        for given, t, other in zip((t_min, t_max), (0.0, 1.0), inside, strict=True)
    ]
    if not times[0] < times[1]:
        raise ValueError(f"t_min (noise) must be less than t_max (data), got {times}")
    for t in times:
        if not on_path.exists(t):
            raise ValueError(
                f"at t = {t} a model that predicts {prediction!r} does not determine a finite "
                "slope (t = 0 is noise, 1 is data): set t_min and t_max strictly inside, or leave "
                "them out"
            )
    c = path(torch.tensor(times, dtype=torch.float64))
    clock = (c.alpha / (c.alpha + c.beta)).tolist()
    model = Multistep(Linear(), prediction, model_path=path)

    def slope(y: Tensor, u: Tensor) -> Tensor:
        a, b = model.convert(CANONICAL, u)
        q = field(model.rescaling(u) * y, model.model_time(u))
        return a * y + b * (differentiable(q) if y.requires_grad else q)

    return slope, (clock[0], clock[1]), (c.alpha + c.beta)[0].item()


def _with_density(slope: Field, shape: torch.Size, probes: Tensor | None) -> Field:
    """Return the field of samples and, per dimension, of the integrals of their divergences."""
    dim = math.prod(shape[1:])

    def field(state: Tensor, u: Tensor) -> Tensor:
        x, wanted = state[:, :dim].reshape(shape), torch.is_grad_enabled()
        value, estimates = divergence(slope, x, u, probes, wanted)
        return torch.cat([value.flatten(1), estimates.T / dim], 1)

    return field
