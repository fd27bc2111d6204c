r"""The stochastic steps of trainers by their names, each a solver with a diffusion coefficient.

A step from the noise level :math:`\sigma = 1 - t` to :math:`\sigma'` draws from a Gaussian. There
are two kinds of mean,

.. math:: \mu = x + (t' - t) \Big[u - \frac{s_t^2}{2\sigma} \hat\varepsilon\Big], \qquad
          \mu = (1 - \sigma') \hat z + \sqrt{\sigma'^2 - s^2}\, \hat\varepsilon,

the Euler-Maruyama step, with the standard deviation :math:`s = s_t \sqrt{t' - t}`, and the step
that re-noises the data prediction, which keeps the noise level whatever s is. The formulas are
those of the linear path; on any other the steps are those of the same solver and coefficient.

Everything follows from the arguments: the scheduler says what the network predicts, on which path,
and, where `timestep_next` does not, to where a timestep steps. Its own solver and diffusion do not
matter. The same weights are used however many timesteps a call has, so that a sample replayed in
another batch has the same transition bit for bit, if the network's output is the same.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fm_diffusers.diffusions import get_diffusion
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.clock import Clock
from fm_diffusers.scheduling.output import prepare
from fm_diffusers.scheduling.parts import model_kwargs
from fm_diffusers.scheduling.place import Timestep, locate
from fm_diffusers.scheduling.plan import Plan, steps_through
from fm_diffusers.scheduling.rows import carry_out, read, rows_of
from fm_diffusers.scheduling.timetable import bounds_of
from fm_diffusers.scheduling.transition import Transition, in_dtype
from fm_diffusers.solvers import SOLVERS, Solver
from fm_diffusers.tables import look_up


@dataclass(frozen=True)
class Dynamics:
    """How a trainer steps.

    Attributes:
        solver: a name in `SOLVERS`, one of order 1.
        diffusion: a name in `DIFFUSIONS`, whose scale is the trainer's noise level; None is the
            ODE.
        log_prob: how the trainer reads a log-probability, a name in `LOG_PROBS`.
        rate: whether the trainer's `std_dev_t` is the rate of the noise, which is the standard
            deviation divided by the root of the step's length.
    """

    solver: str
    diffusion: str | None
    log_prob: str = "mean"
    rate: bool = False


#: The steps by name; the comment is the standard deviation s of a step at noise level `eta`, with
#: `r = sigma' (1 - sigma) / (sigma (1 - sigma'))`, the signal-to-noise ratio before over after.
DYNAMICS = {
    # eta sqrt(sigma/(1 - sigma)) sqrt(sigma - sigma'), with 1 - sigma' in place of 1 - sigma = 0
    "flow_grpo": Dynamics("euler_maruyama", "flow_grpo", rate=True),
    "dance": Dynamics("euler_maruyama", "dance", rate=True),  # eta sqrt(sigma - sigma')
    "cps": Dynamics("ddim", "cps", log_prob="squared"),  # sigma' sin(eta pi/2)
    "precise": Dynamics("ddim", "precise"),  # sigma' sqrt(1 - r^(eta^2))
    # sigma' sqrt(1 - exp(-eta^2 (1/sigma' - 1/sigma)))
    "dance_precise": Dynamics("ddim", "dance_precise"),
    "nft": Dynamics("ddim", "nft"),  # eta sigma' sqrt(1 - r^2)
    "ode": Dynamics("euler", None),  # 0
}
#: What trainers write for them, beside these names.
ALIASES = {
    "sde": "flow_grpo",
    "Flow-SDE": "flow_grpo",
    "Dance-SDE": "dance",
    "dance_grpo": "dance",
    "CPS": "cps",
    "ODE": "ode",
}


def get_dynamics(name: str) -> Dynamics:
    """Return the row of a name or an alias.

    Raises:
        ValueError: if there is none.
    """
    return look_up("sde_type", DYNAMICS | {k: DYNAMICS[v] for k, v in ALIASES.items()}, name)


def transition(
    scheduler: GaussianFlowScheduler,
    model_output: Tensor,
    timestep: Timestep,
    sample: Tensor,
    dynamics: str = "flow_grpo",
    noise_level: float | None = None,
    timestep_next: Timestep | None = None,
) -> Transition:
    """Return the Gaussian from which a trainer's step draws the next sample.

    Args:
        scheduler: says what the network predicts, on which path, and the timesteps; a window of
            `set_timesteps(noisy_steps=...)` holds if the scheduler has a diffusion. It is not
            changed.
        model_output: what the network predicted, shape `(batch, ...)`.
        timestep: one of `scheduler.timesteps`, or one for each sample, shape `(batch,)`.
        sample: the samples at which the network was asked.
        dynamics: a name in `DYNAMICS` or `ALIASES`.
        noise_level: the trainer's strength of the noise; None is that of the row in `DIFFUSIONS`.
        timestep_next: where the steps go, likewise; then `timestep` may be any, and the scheduler
            needs no `set_timesteps`.

    Returns:
        The transition, whose `std` broadcasts against the samples and whose samples have the dtype
        of `sample`: stored in it, they give the same log-probability when they are replayed.

    Raises:
        ValueError: for a scheduler of another kind, timesteps that are none of the scheduler's,
            do not lead towards the data, or are neither one nor one for each sample.

    Example:
        >>> scheduler = GaussianFlowScheduler()
        >>> scheduler.set_timesteps(timesteps=[1000, 500])
        >>> step = transition(
        ...     scheduler, torch.ones(2, 3), scheduler.timesteps[0], torch.zeros(2, 3), "cps", 1.0
        ... )
        >>> step.std
        tensor([[0.5000]])
    """
    ends = intervals(scheduler, timestep, timestep_next)
    return transition_between(scheduler, model_output, ends, sample, dynamics, noise_level)


def intervals(
    scheduler: GaussianFlowScheduler, timestep: Timestep, timestep_next: Timestep | None = None
) -> Tensor:
    """Return the times between which steps go, float64, shape `(1, 2)` or `(batch, 2)`.

    Arguments and errors are those of `transition`.
    """
    if not isinstance(scheduler, GaussianFlowScheduler):
        raise ValueError(
            f"scheduler must be a GaussianFlowScheduler, got {type(scheduler).__name__}: make one "
            "by GaussianFlowScheduler.from_config(scheduler.config)"
        )
    timesteps = torch.as_tensor(timestep).reshape(-1).cpu()
    if timestep_next is None:
        plan = scheduler._planned()
        found = {t.item(): _interval(plan, t) for t in timesteps}
        return torch.tensor([found[t] for t in timesteps.tolist()], dtype=torch.float64)
    following = torch.as_tensor(timestep_next).reshape(-1).cpu()
    both = torch.broadcast_tensors(timesteps.double(), following.double())
    ends = scheduler.clock.to_time(torch.stack(both, 1))
    if not ((ends[:, 0] >= 0) & (ends[:, 0] < ends[:, 1]) & (ends[:, 1] <= 1)).all():
        raise ValueError(
            "timestep and timestep_next must lead from noise towards the data, got "
            f"{timesteps.tolist()} and {following.tolist()}"
        )
    return ends


def _interval(plan: Plan, timestep: Tensor) -> tuple[float, float]:
    index = locate(plan, timestep, -1)
    if index not in plan.starts:
        raise ValueError(
            "timestep must be one of scheduler.timesteps at which a step starts, "
            f"{[plan.values[i] for i in plan.starts]}, got {timestep.item():g}: pass one of "
            "these, not its index, or timestep_next as well"
        )
    k = plan.starts.index(index)
    return plan.times[k].item(), plan.times[k + 1].item()


def transition_between(
    scheduler: GaussianFlowScheduler,
    model_output: Tensor,
    ends: Tensor,
    sample: Tensor,
    dynamics: str,
    noise_level: float | None,
) -> Transition:
    """Return the transition of steps from and to times; see `transition` and `intervals`."""
    if len(ends) not in (1, len(sample)):
        raise ValueError(
            f"timestep must be one, or one for each of the {len(sample)} samples, got {len(ends)}"
        )
    solver = solver_of(scheduler, dynamics, noise_level)
    asked = prepare(model_output, sample)
    rows = [weights(scheduler.clock, solver, t, s) for t, s in ends.tolist()]
    shape = (-1, *[1] * (sample.ndim - 1))
    columns = torch.tensor(rows, dtype=asked.x.dtype, device=asked.x.device).unbind(-1)
    row = read([column.reshape(shape) for column in columns])
    bounds = replace(bounds_of(scheduler.config), keep_noise=False)
    mean, original, _ = carry_out(row, bounds, (), asked.x, asked.q)
    return Transition(mean, row.std, in_dtype(original, asked.dtype), None, sample.dtype)


def solver_of(
    scheduler: GaussianFlowScheduler, dynamics: str, noise_level: float | None
) -> Solver:
    """Return the solver of a trainer's steps for what the scheduler's network predicts."""
    row, plan, diffusion = get_dynamics(dynamics), scheduler._plan, None
    if row.diffusion is not None:
        level = None if noise_level is None else float(noise_level)
        diffusion = get_diffusion(row.diffusion, level)
        if plan is not None and plan.solver.diffusion is not None:
            diffusion = replace(diffusion, windows=plan.solver.diffusion.windows)
    return SOLVERS[row.solver](
        **model_kwargs(scheduler.config, scheduler.clock), diffusion=diffusion
    )


@lru_cache(maxsize=1024)
def weights(clock: Clock, solver: Solver, t: float, s: float) -> tuple[float, ...]:
    """Return the weights of a step of first order from a time to another; see `rows.read`."""
    steps = steps_through(clock, solver, torch.tensor([t, s], dtype=torch.float64))
    return rows_of(solver, steps, 0)[0][0]
