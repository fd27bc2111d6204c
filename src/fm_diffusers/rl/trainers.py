r"""Steps with the signatures of today's trainers, read off the `transition` of `dynamics`.

All three return or take the next sample x', give its log-probability, and replay a stored one when
they are given it. Where trainers differ is what they call things and how they read the Gaussian
:math:`N(\mu, s^2 I)` over d dimensions:

.. math:: \mathrm{sum} = -\frac{|x' - \mu|^2}{2 s^2} - d \ln s - \frac d2 \ln 2\pi, \qquad
          \mathrm{mean} = \frac{\mathrm{sum}}{d}, \qquad
          \mathrm{squared} = -\frac{|x' - \mu|^2}{d},

of which the first is the log-density, the second what Flow-GRPO and its kin take, and the third
what they take for CPS. Each row of `DYNAMICS` has its own, and `log_prob_type` says another.

The next sample has the dtype in which it is handed out *before* its log-probability is taken, so
that a stored one that is replayed with equal weights has the same one, and their ratio is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from fm_diffusers.rl.dynamics import get_dynamics, intervals, transition_between
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.noise import Generators
from fm_diffusers.scheduling.place import Timestep
from fm_diffusers.scheduling.transition import Transition
from fm_diffusers.tables import look_up


def _density(reduction: str) -> Callable[[Transition, Tensor], Tensor | None]:
    """Return a reading of the log-density, which a step without noise for all has not."""

    def read(step: Transition, following: Tensor) -> Tensor | None:
        return (
            step.log_prob(following, reduction)
            if bool(torch.as_tensor(step.std > 0).any())
            else None
        )

    return read


#: How log-probabilities are read; see the module. `none` leaves them out.
LOG_PROBS = {
    "sum": _density("sum"),
    "mean": _density("mean"),
    "squared": lambda step, x: -(x.to(step.mean) - step.mean).square().flatten(1).mean(1),
    "none": lambda step, x: None,
}


@dataclass
class VerlOmniOutput(BaseOutput):
    """Output of `verl_omni_step`; see there."""

    prev_sample: Tensor
    log_prob: Tensor | None
    prev_sample_mean: Tensor
    std_dev_t: Tensor


@dataclass
class FlowFactoryOutput(BaseOutput):
    """Output of `flow_factory_step`; see there."""

    next_latents: Tensor | None = None
    next_latents_mean: Tensor | None = None
    std_dev_t: Tensor | None = None
    dt: Tensor | None = None
    log_prob: Tensor | None = None
    noise_pred: Tensor | None = None


def sde_step_with_logprob(
    scheduler: GaussianFlowScheduler,
    model_output: Tensor,
    timestep: Timestep,
    sample: Tensor,
    noise_level: float = 0.7,
    prev_sample: Tensor | None = None,
    generator: Generators | None = None,
    sde_type: str = "flow_grpo",
    return_sqrt_dt: bool = False,
    log_prob_type: str | None = None,
) -> tuple[Tensor | None, ...]:
    """Step as flow_grpo, DanceGRPO and Precise do; the signature is flow_grpo's.

    Args:
        scheduler: see `rl.transition`.
        model_output: what the network predicted, shape `(batch, ...)`.
        timestep: one of `scheduler.timesteps`, or one for each sample, shape `(batch,)`.
        sample: the samples at which the network was asked.
        noise_level: the strength of the noise.
        prev_sample: a next sample whose log-probability is wanted; None draws one.
        generator: of the noise.
        sde_type: a name in `DYNAMICS` or `ALIASES`.
        return_sqrt_dt: whether to return the root of the steps' lengths too.
        log_prob_type: a name in `LOG_PROBS`; None is that of the row.

    Returns:
        `(prev_sample, log_prob, prev_sample_mean, std_dev_t)`: the next sample, its
        log-probability, shape `(batch,)`, None for a step without noise, the mean, and, as in
        flow_grpo, the standard deviation, divided by the root of the step's length where there is
        a rate (`flow_grpo`, `dance`). `rl.transition` has the plain standard deviation.

    Raises:
        ValueError: see `rl.transition`; or where some of the samples have noise and others none,
            so that not all have a log-probability.

    Reference: Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470.
    """
    ends = intervals(scheduler, timestep)
    step = transition_between(scheduler, model_output, ends, sample, sde_type, noise_level)
    *out, sqrt_dt = read_step(step, ends, sde_type, log_prob_type, prev_sample, generator)
    return (*out, sqrt_dt) if return_sqrt_dt else tuple(out)


def verl_omni_step(
    scheduler: GaussianFlowScheduler,
    model_output: Tensor,
    timestep: Timestep,
    sample: Tensor,
    generator: Generators | None = None,
    return_dict: bool = True,
    noise_level: float = 0.7,
    prev_sample: Tensor | None = None,
    sde_type: str = "sde",
    return_logprobs: bool = True,
    log_prob_type: str | None = None,
) -> VerlOmniOutput | tuple[Tensor | None, ...]:
    """Step as `FlowMatchSDEDiscreteScheduler.step` of verl-omni does, without a state.

    Arguments, output and errors are those of `sde_step_with_logprob`, but that a next sample which
    is drawn has the dtype of the model output, and that `return_logprobs=False` leaves out
    log-probabilities.
    """
    ends = intervals(scheduler, timestep)
    step = transition_between(scheduler, model_output, ends, sample, sde_type, noise_level)
    step = replace(step, dtype=model_output.dtype)
    wanted = log_prob_type if return_logprobs else "none"
    *out, _ = read_step(step, ends, sde_type, wanted, prev_sample, generator)
    return VerlOmniOutput(*out) if return_dict else tuple(out)


def flow_factory_step(
    scheduler: GaussianFlowScheduler,
    noise_pred: Tensor,
    timestep: Timestep,
    latents: Tensor,
    next_latents: Tensor | None = None,
    timestep_next: Timestep | None = None,
    generator: Generators | None = None,
    noise_level: float | None = None,
    compute_log_prob: bool = True,
    return_dict: bool = True,
    return_kwargs: list[str] | None = None,
    dynamics_type: str = "Flow-SDE",
    log_prob_type: str | None = None,
) -> FlowFactoryOutput | tuple[Any, ...]:
    """Step as `FlowMatchEulerDiscreteSDEScheduler.step` of Flow-Factory does, without a state.

    Args:
        scheduler: see `rl.transition`.
        noise_pred: what the network predicted.
        timestep: one of `scheduler.timesteps`, or one for each sample; any, with `timestep_next`.
        latents: the samples at which the network was asked.
        next_latents: next samples whose log-probability is wanted; None draws them.
        timestep_next: where the steps go; None is the next of the scheduler's.
        generator: of the noise.
        noise_level: the strength of the noise; None is that of the row in `DIFFUSIONS`.
        compute_log_prob: whether log-probabilities are wanted.
        return_dict: whether to return a `FlowFactoryOutput`, or the tuple
            `(next_latents, next_latents_mean, noise_pred, log_prob, std_dev_t, dt)`.
        return_kwargs: the fields of the former that are wanted; None is all.
        dynamics_type: a name in `DYNAMICS` or `ALIASES`.
        log_prob_type: a name in `LOG_PROBS`; None is that of the row.

    Returns:
        Next samples, of the dtype of `latents`, their mean and log-probability (None without
        noise), `std_dev_t` as in `sde_step_with_logprob`, and `dt`, minus the length of the steps.

    Raises:
        ValueError: see `sde_step_with_logprob`, or for an unknown field.
    """
    unknown = set(return_kwargs or ()) - set(FlowFactoryOutput.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"return_kwargs must be among {[*FlowFactoryOutput.__dataclass_fields__]}, got "
            f"{sorted(unknown)}"
        )
    ends = intervals(scheduler, timestep, timestep_next)
    step = transition_between(scheduler, noise_pred, ends, latents, dynamics_type, noise_level)
    wanted = log_prob_type if compute_log_prob else "none"
    taken = read_step(step, ends, dynamics_type, wanted, next_latents, generator)
    out = {
        "next_latents": taken.following,
        "next_latents_mean": taken.mean,
        "noise_pred": noise_pred,
        "log_prob": taken.log_prob,
        "std_dev_t": taken.std_dev_t,
        "dt": -taken.sqrt_dt.square(),
    }
    if not return_dict:
        return tuple(out.values())
    return FlowFactoryOutput(**{k: v for k, v in out.items() if k in (return_kwargs or out)})


class Taken(NamedTuple):
    """What trainers want to know of a step, in flow_grpo's order; see `sde_step_with_logprob`."""

    following: Tensor
    log_prob: Tensor | None
    mean: Tensor
    std_dev_t: Tensor
    sqrt_dt: Tensor


def read_step(
    step: Transition,
    ends: Tensor,
    dynamics: str,
    log_prob_type: str | None = None,
    following: Tensor | None = None,
    generator: Generators | None = None,
) -> Taken:
    """Return a step as trainers read it, to a given next sample or to one that is drawn."""
    row = get_dynamics(dynamics)
    read = look_up("log_prob_type", LOG_PROBS, log_prob_type or row.log_prob)
    if following is None:
        following = step.sample(generator)
    std = torch.as_tensor(step.std)
    sqrt_dt = (ends[:, 1] - ends[:, 0]).sqrt().to(std).reshape(std.shape)
    std_dev_t = std / sqrt_dt if row.rate else std
    return Taken(following, read(step, following.detach()), step.mean, std_dev_t, sqrt_dt)
