r"""The Gaussian from which a step draws the next sample, laid open.

A step is one linear combination and noise, so that given the sample, what is remembered and the
model output the next sample is distributed as :math:`N(\mathrm{mean}, \mathrm{std}^2 I)`, exactly:
its log-probability, and the divergence of two networks' steps, are readings of these two.

.. math:: \log p(x') = -\frac{|x' - \mu|^2}{2 s^2} - d \ln s - \frac d2 \ln 2\pi, \qquad
          KL = \frac{|\mu - \mu'|^2 + d s^2}{2 s'^2} - \frac d2 + d \ln\frac{s'}{s}.

References: Black et al., "Training Diffusion Models with Reinforcement Learning",
https://arxiv.org/abs/2305.13301; Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from fm_diffusers.scheduling.checks import check_one_shape
from fm_diffusers.scheduling.noise import Generators, Noise, independent
from fm_diffusers.scheduling.place import Place


@dataclass
class GaussianFlowSchedulerOutput(BaseOutput):
    """Output of `GaussianFlowScheduler.step`.

    Attributes:
        prev_sample: the sample at the next timestep, in the wider of the two dtypes given.
        pred_original_sample: the data that the model output predicts, E[z | sample].
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


#: How a log-probability is brought together over the dimensions of a sample.
REDUCTIONS = {
    "sum": lambda values: values.flatten(1).sum(1),
    "mean": lambda values: values.flatten(1).mean(1),
    "none": lambda values: values,
}


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype, itself if it has it."""
    return x if x.dtype == dtype else x.to(dtype)


@dataclass(frozen=True)
class Transition:
    """The distribution of the next sample; see the module.

    Attributes:
        mean: shape of the sample, in float32 or better.
        std: a number, or a tensor that broadcasts against the mean; 0 is a step without noise.
        pred_original_sample: the data that the model output predicts, E[z | sample].
        place: where the loop is afterwards, to be handed to the next `transition`; None where
            samples are at different times.
        dtype: of samples that are drawn, the wider of the two dtypes given.
        noise: where the noise of the step comes from.
    """

    mean: Tensor
    std: float | Tensor
    pred_original_sample: Tensor
    place: Place | None
    dtype: torch.dtype
    noise: Noise = independent

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Draw the next sample, with one generator or one for each sample.

        With `noise="brownian"` it is read from the paths that the place came with, and always the
        same; see `GaussianFlowScheduler.first_place`.

        Raises:
            ValueError: with `noise="brownian"`, for a step that belongs to no loop.
        """
        return in_dtype(self.draw(generator), self.dtype)

    def draw(self, generator: Generators | None = None) -> Tensor:
        """Draw the next sample in the precision of the mean."""
        if isinstance(self.std, float) and self.std == 0:
            return self.mean
        noise = self.noise(self.mean, generator)
        if isinstance(self.std, float):
            return torch.add(self.mean, noise, alpha=self.std)
        return self.mean + self.std * noise

    def log_prob(self, next_sample: Tensor, reduction: str = "sum") -> Tensor:
        """Return the log-density of a next sample, in nats.

        Args:
            next_sample: shape of the mean, of any dtype.
            reduction: `sum` over the dimensions of each sample, the log-density itself, shape
                `(batch,)`; `mean` over them, as flow_grpo and its kin take it; `none`.

        Raises:
            ValueError: for a step without noise, which has no density, or an unknown reduction.
        """
        std = self._positive_std("log_prob")
        check_one_shape(next_sample=next_sample, mean=self.mean)
        z = (next_sample.to(self.mean.dtype) - self.mean) / std
        return self._reduced(
            -z.square() / 2 - torch.log(std) - math.log(2 * math.pi) / 2, reduction
        )

    def kl(self, other: "Transition", reduction: str = "sum") -> Tensor:
        """Return the divergence KL(this || other) in nats; see `log_prob` for the reduction.

        Raises:
            ValueError: if one of the two has no noise, for an unknown reduction, or for steps of
                samples of other shapes.
        """
        check_one_shape(mean=self.mean, others=other.mean)
        std, std_other = self._positive_std("kl"), other._positive_std("kl")
        ratio = std / std_other
        distance = ((self.mean - other.mean) / std_other).square()
        return self._reduced((distance + ratio.square() - 1) / 2 - torch.log(ratio), reduction)

    def _positive_std(self, method: str) -> Tensor:
        std = torch.as_tensor(self.std, dtype=self.mean.dtype, device=self.mean.device)
        if not (std > 0).all():
            raise ValueError(
                f"{method} needs noise, and this step has none (std = 0): it is one of the ODE, "
                "the last one, or one left out by noisy_steps; take a step with a diffusion"
            )
        return std

    def _reduced(self, values: Tensor, reduction: str) -> Tensor:
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
            )
        return REDUCTIONS[reduction](values)
