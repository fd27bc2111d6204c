r"""Fields `f(x, t)`: networks, guidance, conversions, and exact fields as oracles.

A field maps samples `x` of shape `(batch, ...)` and a time `t` (0 is noise, 1 is data) to a
prediction of one kind. Fields compose as functions: guidance is a field made of two fields.

The exact fields are those of a mixture of Gaussians :math:`\sum_k w_k N(m_k, s_k^2 I)`, a finite
data set with a bandwidth being the special case of equal weights. With
:math:`v_k = \alpha^2 s_k^2 + \beta^2` the posterior weights, "which component might this be", are

.. math:: p(k | x) \propto w_k N(x; \alpha m_k, v_k I),

and the marginal score and denoised sample are the posterior means of the conditional ones,

.. math:: \nabla\log p_t(x) = -\sum_k p(k|x) \frac{x - \alpha m_k}{v_k}, \qquad
          E[z|x] = \sum_k p(k|x) \Big(m_k + \alpha s_k^2 \frac{x - \alpha m_k}{v_k}\Big),

from which every other kind follows without a division by :math:`\alpha` or :math:`\beta`.

References: Lipman et al., "Flow Matching for Generative Modeling",
https://arxiv.org/abs/2210.02747 (marginal and conditional fields); Ho, Salimans, "Classifier-Free
Diffusion Guidance", https://arxiv.org/abs/2207.12598.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath
from fm_diffusers.predictions import check_prediction, convert, target

Field = Callable[[Tensor, Tensor], Tensor]


def from_model(
    model: Callable[..., Tensor | tuple[Tensor, ...]],
    num_train_timesteps: int = 1000,
    **conditions: Tensor,
) -> Field:
    """Return the field of a network that is called as diffusers calls it.

    Args:
        model: called as `model(x, timestep, **conditions)` with
            `timestep = num_train_timesteps (1 - t)`; returns the prediction, or an output or tuple
            with the prediction first.
        num_train_timesteps: the network's time scale.
        **conditions: passed on, for example `class_labels`.
    """

    def field(x: Tensor, t: Tensor) -> Tensor:
        timestep = (num_train_timesteps * (1 - t)).to(x.device, torch.float32)
        output = model(x, timestep, **conditions)
        return output if isinstance(output, Tensor) else output[0]

    return field


def guided(conditional: Field, unconditional: Field, guidance_scale: float) -> Field:
    """Return classifier-free guidance, `unconditional + scale (conditional - unconditional)`.

    A scale of 1 is the conditional field, 0 the unconditional one. Both fields must predict the
    same kind; which one does not matter, since conversions are affine.
    """

    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(unconditional(x, t), conditional(x, t), guidance_scale)

    return field


def converted(field: Field, path: GaussianPath, source: str, target: str) -> Field:
    """Return the field that predicts `target`, from one that predicts `source`."""
    check_prediction(source)
    check_prediction(target)
    return lambda x, t: convert(path, source, target, x, field(x, t), t)


@dataclass(frozen=True)
class GaussianMixture:
    r"""Data distributed as :math:`\sum_k w_k N(m_k, s_k^2 I)`, with its exact fields on any path.

    Attributes:
        means: :math:`m_k`, shape `(components, ...)`, floating point (float64 for an oracle).
        stds: :math:`s_k > 0`, shape `(components,)` or one number for all: the bandwidth.
        weights: :math:`w_k > 0`, shape `(components,)`, normalised here; by default equal.

    Raises:
        ValueError: if shapes do not agree, or a deviation or weight is not positive.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> data = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1)
        >>> data.field(Linear(), "sample")(torch.tensor([[0.0], [0.9]]), torch.tensor(0.9))
        tensor([[0.],
                [1.]])
    """

    means: Tensor
    stds: Tensor | float
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.means)
        for name, value in (("stds", self.stds), ("weights", self.weights)):
            value = torch.as_tensor(1.0 if value is None else value).to(self.means)
            if value.ndim > 1 or (value.ndim == 1 and len(value) != count):
                raise ValueError(
                    f"{name} must be one number or one for each of the {count} components, "
                    f"got shape {tuple(value.shape)}"
                )
            if not (value > 0).all():
                raise ValueError(f"{name} must be positive, got a minimum of {value.min().item()}")
            object.__setattr__(self, name, value.expand(count))
        weights, _ = self._numbers
        object.__setattr__(self, "weights", weights / weights.sum())

    @property
    def _numbers(self) -> tuple[Tensor, Tensor]:
        """The weights and the deviations, one for each component since `__post_init__`."""
        assert isinstance(self.weights, Tensor) and isinstance(self.stds, Tensor)
        return self.weights, self.stds

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` data points."""
        weights, stds = self._numbers
        k = torch.multinomial(weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, *self.means.shape[1:], generator=generator, dtype=self.means.dtype
        ).to(self.means.device)
        return self.means[k] + self._shaped(stds[k]) * noise

    def log_joint(self, path: GaussianPath, x: Tensor, t: float | Tensor) -> Tensor:
        r"""Return :math:`\log w_k N(x; \alpha m_k, v_k I)`, shape `(batch, components)`.

        Its `logsumexp` over the components is the exact log-density of the marginal at time `t`.
        """
        c, x, m = path(t), x.flatten(1), self.means.flatten(1)
        v = c.alpha**2 * self.stds**2 + c.beta**2
        cross = c.alpha * (x @ m.T)
        distance = x.square().sum(1, keepdim=True) - 2 * cross + c.alpha**2 * m.square().sum(1)
        return self._numbers[0].log() - (distance / v + x.shape[1] * (2 * torch.pi * v).log()) / 2

    def posterior_weights(self, path: GaussianPath, x: Tensor, t: float | Tensor) -> Tensor:
        """Return `p(k | x)`, shape `(batch, components)`: which component might `x` come from."""
        return self.log_joint(path, x, t).softmax(1)

    def sample_and_score(
        self, path: GaussianPath, x: Tensor, t: float | Tensor, block: int = 2**24
    ) -> tuple[Tensor, Tensor]:
        r"""Return :math:`E[z|x]` and the score; `t` is a scalar, `block` bounds the memory."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"samples must have the shape (batch, {', '.join(map(str, self.means.shape[1:]))})"
                f" of the mixture, got {tuple(x.shape)}"
            )
        c, means = path(t), self.means.flatten(1)
        v = c.alpha**2 * self.stds**2 + c.beta**2
        z, score = [], []
        for part in x.split(max(1, block // len(means))):
            p, flat = self.posterior_weights(path, part, t), part.flatten(1)
            s = c.alpha * ((p / v) @ means) - (p / v).sum(1, keepdim=True) * flat
            gain = c.alpha * p * self.stds**2 / v
            z.append((p - c.alpha * gain) @ means + gain.sum(1, keepdim=True) * flat)
            score.append(s)
        return torch.cat(z).view_as(x), torch.cat(score).view_as(x)

    def field(self, path: GaussianPath, prediction: str = "velocity") -> Field:
        """Return the exact marginal field of one kind on `path`, finite for every t in [0, 1].

        (Of a user's own kind it is finite where its row is.)
        """
        check_prediction(prediction)

        def field(x: Tensor, t: Tensor) -> Tensor:
            z, score = self.sample_and_score(path, x, t)
            c = path(t)
            exact: tuple[Any, Any] | None = {
                "velocity": (c.d_alpha, -path.half_d_variance(t)),
                "flow_prediction": (-c.d_alpha, path.half_d_variance(t)),
                "sample": (1.0, 0.0),
                "epsilon": (0.0, -c.beta),
                "score": (0.0, 1.0),
                "v_prediction": (-c.beta, -c.alpha * c.beta),
                "edm": (2 / math.pi * c.d_alpha, -2 / math.pi * path.half_d_variance(t)),
            }.get(prediction)
            if exact is None:  # a user's row, from the noise
                return target(path, prediction, z, -c.beta * score, t)
            return exact[0] * z + exact[1] * score

        return field

    def _shaped(self, c: Tensor) -> Tensor:
        return c.reshape(-1, *[1] * (self.means.ndim - 1))
