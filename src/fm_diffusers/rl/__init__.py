r"""Reinforcement learning of a flow: its sampler is the policy, a step of it an action.

A reward :math:`R(x)` of samples is raised by the policy gradient. With the transitions
:math:`p_\theta(x_{t'}|x_t) = N(\mu_\theta, s^2 I)` of a stochastic sampler,

.. math:: \nabla_\theta E[R] = E\Big[R \sum_t \nabla_\theta \log p_\theta(x_{t'}|x_t)\Big],

so that all that is needed of a scheduler is the Gaussian of a step. Which one it is is a name in
`DYNAMICS`; `transition` returns it, from its arguments alone; `sde_step_with_logprob`,
`verl_omni_step` and `flow_factory_step` read it in the way of three trainers; the objectives are
functions of what they return. `examples/finetune_reward.py` puts them together.

References: Black et al., "Training Diffusion Models with Reinforcement Learning",
https://arxiv.org/abs/2305.13301; Liu et al., "Flow-GRPO: Training Flow Matching Models via Online
RL", https://arxiv.org/abs/2505.05470.
"""

from fm_diffusers.rl.dynamics import ALIASES, DYNAMICS, Dynamics, transition
from fm_diffusers.rl.objectives import (
    clipped_surrogate,
    group_advantages,
    group_relative_loss,
    guarded_ratio,
    importance_ratio,
)
from fm_diffusers.rl.trainers import (
    FlowFactoryOutput,
    VerlOmniOutput,
    flow_factory_step,
    sde_step_with_logprob,
    verl_omni_step,
)

__all__ = [
    "ALIASES",
    "DYNAMICS",
    "Dynamics",
    "FlowFactoryOutput",
    "VerlOmniOutput",
    "clipped_surrogate",
    "flow_factory_step",
    "group_advantages",
    "group_relative_loss",
    "guarded_ratio",
    "importance_ratio",
    "sde_step_with_logprob",
    "transition",
    "verl_omni_step",
]
