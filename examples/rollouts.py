"""Samples of a flow that is tuned by what it draws, with the probability of their noisy steps."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.rl import transition
from fm_diffusers.rl.dynamics import get_dynamics
from fm_diffusers.scheduling.transition import Transition


@dataclass(frozen=True)
class Rollout:
    """Samples, and what the network that has drawn them knew of their noisy steps.

    Attributes:
        samples: at the end, shape `(n, ...)`.
        x: before the noisy steps, one step after the other, shape `(steps n, ...)`.
        timesteps: of these, shape `(steps n,)`.
        following: after them.
        log_prob: of `following`, the mean over the dimensions.
    """

    samples: Tensor
    x: Tensor
    timesteps: Tensor
    following: Tensor
    log_prob: Tensor


class Sampler:
    """Draws with a network on a window of noisy steps, and says how probable the steps were.

    Args:
        pipe: whose network is asked, or another of its kind.
        dynamics: name of the noisy step, see `fm_diffusers.rl.dynamics`.
        noise_level: of this step.
        num_inference_steps: of all steps.
        window_every: how many batches have one window, before it moves on by a step.
    """

    def __init__(
        self,
        pipe: FlowMatchingPipeline,
        dynamics: str,
        noise_level: float,
        num_inference_steps: int,
        window_every: int,
    ) -> None:
        row, self.pipe, self.kind = get_dynamics(dynamics), pipe, (dynamics, noise_level)
        self.count, self.every = num_inference_steps, window_every
        self.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config,
            solver=row.solver,
            solver_kwargs=None,
            diffusion=row.diffusion,
            diffusion_kwargs=None,
        )
        self.noisy: list[int] = []
        self.set_window(0, None)

    def set_window(self, batches: int, size: int | None) -> None:
        """Let `size` steps be noisy, the first at first; all but the last if that is None."""
        last, size = self.count - 1, size or self.count
        first = batches // self.every % max(1, last - size + 1)
        if (noisy := [*range(first, min(first + size, last))]) != self.noisy:
            self.noisy = noisy
            self.scheduler.set_timesteps(last + 1, self.pipe.device, noisy_steps=noisy)

    def step(
        self, network: nn.Module, x: Tensor, t: Tensor, condition: Tensor | None
    ) -> Transition:
        """Return the transitions of samples at timesteps of their own."""
        fed = self.scheduler.scale_model_input(x, t)
        output = network(fed, t, condition, return_dict=False)[0][:, : x.shape[1]].float()
        return transition(self.scheduler, output, t, x, *self.kind)

    @torch.no_grad()
    def draw(self, network: nn.Module, condition: Tensor | None, count: int) -> Rollout:
        """Return samples from the noise to the end, and their noisy steps."""
        x, kept = self.pipe.prepare_latents(count, None, None), []
        for i, t in enumerate(self.scheduler.timesteps):
            t = t.repeat(count)
            step = self.step(network, x, t, condition)
            following = step.sample()
            if i in self.noisy:
                kept.append((x, t, following, step.log_prob(following, "mean")))
            x = following
        return Rollout(x, *(torch.cat(column) for column in zip(*kept, strict=True)))
