r"""What a pipeline tells a network of two times: how far the step leads, and a learned guidance.

A network that has learned guidance is asked once. Of one scale it draws with that, whether a call
says so or leaves out `guidance_scale`; of several it is told the one of the call.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fm_diffusers.flow_map_networks import distilled_guidance, is_of_two_times
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.second_time import step_features


def check_learned(network: nn.Module, asked: Any) -> None:
    """Raise a `ValueError` for a guidance that is not the one that a network has learned."""
    learned = distilled_guidance(network)
    if learned is None:
        return
    if asked.guider is not None:
        raise ValueError(
            f"the network has learned guidance_scale={learned}, and {type(asked.guider).__name__} "
            "would guide it once more: set pipe.guider to None, or leave out the guider"
        )
    scale, many = asked.guidance_scale, isinstance(learned, list | tuple)
    if isinstance(learned, list | tuple) and not learned[0] <= asked.scale <= learned[1]:
        raise ValueError(
            f"guidance_scale={asked.scale} is not among those that the network has learned, which "
            f"go from {learned[0]} to {learned[1]}: choose one of these"
        )
    if not many and scale not in (None, learned):
        raise ValueError(
            f"guidance_scale={scale} is not the one that the network has learned, {learned}: "
            "leave it out"
        )


def is_two_timed(scheduler: Any) -> bool:
    """Return whether the steps of a scheduler with timesteps are those of a flow map.

    On the way back from data to noise they are not. diffusers' own is one, too.
    """
    if isinstance(scheduler, GaussianFlowScheduler):
        return scheduler.is_flow_map
    return type(scheduler).__name__ == "FlowMapEulerDiscreteScheduler"


def advance_of(scheduler: Any, network: nn.Module, index: int, t: Tensor) -> Tensor | None:
    """Return how far a step leads on the clock, for flow maps; None elsewhere.

    Args:
        scheduler: after `set_timesteps`.
        network: which must be of two times then.
        index: of the step in its `timesteps`.
        t: its timestep.

    Raises:
        ValueError: for a network of one time.
    """
    if not is_two_timed(scheduler):
        return None
    if not is_of_two_times(network):
        raise ValueError(
            f"the scheduler steps by a flow map, whose network is told where a step leads, but "
            f"{type(network).__name__} is told one time: train it by examples/train_few_steps.py, "
            'or choose another solver, solver="predictor_corrector" for example'
        )
    if isinstance(scheduler, GaussianFlowScheduler):
        return scheduler.advance(t)
    return (scheduler.sigmas[index] - scheduler.sigmas[index + 1]).float()


def advance_option(scheduler: Any, advance: Tensor | None) -> dict[str, Tensor]:
    """Return how a scheduler's `step` is told what a flow map was; those of diffusers are not."""
    ours = isinstance(scheduler, GaussianFlowScheduler)
    return {"advance": advance} if ours and advance is not None else {}


def features_of(
    network: nn.Module, advance: Tensor | None, guidance: Any, x: Tensor
) -> Tensor | None:
    """Return what a network is told beside the time, for every sample; None for nothing."""
    if not is_of_two_times(network):
        return None
    several = isinstance(distilled_guidance(network), list | tuple)
    if advance is None and not several:
        return None
    advance = torch.zeros((), device=x.device) if advance is None else advance.to(x.device)
    advance = advance.expand(len(x))
    return step_features(advance, torch.full_like(advance, guidance) if several else None)
