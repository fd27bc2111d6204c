r"""The plan of a sampling run: where the network is asked, and the weights of every step.

A plan follows from a configuration and the arguments of `set_timesteps`. It is made once, in
float64, and never changes: copies of a scheduler and threads share it. Its times t are those of
the path on which the samples are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.paths import as_time
from fm_diffusers.scheduling.brownian import BrownianClock, Span
from fm_diffusers.scheduling.clock import Clock
from fm_diffusers.scheduling.noise import check_torchsde
from fm_diffusers.scheduling.rows import Bounds, check_data, rows_of
from fm_diffusers.solvers import SOLVERS, Solver, Step, memory_size

#: Where the way back begins if the model says nothing at the data: log(0.999/0.001).
LAST_LOG_SNR = 6.906755


@dataclass(frozen=True, eq=False)
class Plan:
    """A run of steps from noise to data; see the module.

    Attributes:
        clock: the clock of the configuration.
        solver: the solver.
        steps: one for each model evaluation.
        times: where the intervals start, and the end, float64.
        fed: what the network is fed, float32.
        bounds: of data predictions.
        device: of what follows.
        noise: where the noise of the steps comes from, a name in `NOISES`.
        timesteps: `fed` on the device.
        sigmas: noise levels at the evaluations and at the end, on the device.
        starts: the indices at which intervals start.
        rows: the weights of every step by the number of past slopes; see `rows_of`.
        table: the same as one float64 tensor, on the CPU.
        memory_size: number of past slopes that the steps look back at.
        noisy: whether any step draws noise.
        values: `fed` as numbers.
        largest: the largest magnitude of these.
        node_rows: the weights of every step with nothing remembered, on the device.
        node_times: `times` on the device.
        advances: by how much every step moves the clock, for networks of two times; else None.
        one_step: the solver of first order for the same process, DDIM's step with its eta.
        brownian: the clock of Brownian paths, None where noise is independent or there is none.
        spans: what every step reads of such a path.
    """

    clock: Clock
    solver: Solver
    steps: tuple[Step, ...]
    times: Tensor
    fed: Tensor
    bounds: Bounds = Bounds()
    device: torch.device | str | None = None
    noise: str = "independent"
    timesteps: Tensor = field(init=False)
    sigmas: Tensor = field(init=False)
    starts: tuple[int, ...] = field(init=False)
    start_indices: Tensor = field(init=False)
    rows: tuple[tuple[tuple[float, ...], ...], ...] = field(init=False)
    table: Tensor = field(init=False)
    memory_size: int = field(init=False)
    noisy: bool = field(init=False)
    values: list[float] = field(init=False)
    largest: float = field(init=False)
    node_rows: Tensor = field(init=False)
    node_times: Tensor = field(init=False)
    advances: Tensor | None = field(init=False)
    one_step: Solver = field(init=False)
    brownian: BrownianClock | None = field(init=False)
    spans: tuple[Span, ...] = field(init=False)

    def __post_init__(self) -> None:
        size, values = memory_size(self.steps), self.fed.tolist()
        check_data(self.solver, self.steps)
        rows = rows_of(self.solver, self.steps, size)
        stops = [i + 1 for i, step in enumerate(self.steps) if step.ends_interval]
        nodes = torch.tensor([step.t for step in self.steps], dtype=torch.float64)
        sigmas = self.clock.sigma(torch.cat([nodes, self.times[-1:]])).float()
        table = torch.tensor(rows, dtype=torch.float64)
        timesteps = self.fed.to(self.device, copy=True)
        there: dict[str, Any] = {"device": timesteps.device}
        if timesteps.device.type != "cpu":  # float64 stays on the CPU
            there["dtype"] = torch.float32
        noisy = any(step.std for step in self.steps)
        brownian = self._brownian() if noisy and self.noise == "brownian" else None
        derived = {
            "timesteps": timesteps,
            "sigmas": sigmas.to(self.device),
            "starts": (0, *stops[:-1]),
            "start_indices": torch.tensor([0, *stops[:-1]]),
            "rows": rows,
            "table": table,
            "node_rows": table[:, 0, :8].to(**there),
            "node_times": self.times.to(**there),
            "advances": self._advances(),
            "one_step": first_order(self.solver),
            "memory_size": size,
            "noisy": noisy,
            "brownian": brownian,
            "spans": brownian.spans([step.interval for step in self.steps]) if brownian else (),
            "values": values,
            "largest": max(map(abs, values)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _advances(self) -> Tensor | None:
        if not self.solver.two_times:
            return None
        ends = torch.tensor([step.interval for step in self.steps], dtype=torch.float64)
        return self.solver.advance(*ends.T).float().to(self.device)

    def _brownian(self) -> BrownianClock:
        check_torchsde()
        assert self.solver.diffusion is not None
        return BrownianClock(self.solver.path, self.solver.diffusion)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        made_with = [f.name for f in fields(self) if f.init]
        return Plan, tuple(getattr(self, name) for name in made_with)

    def row(self, index: int, past: int) -> tuple[float, ...]:
        """Return the weights of a step with so many past slopes."""
        rows = self.rows[index]
        return rows[min(past, len(rows) - 1)]


def steps_through(clock: Clock, solver: Solver, times: Tensor) -> tuple[Step, ...]:
    """Return the steps of a solver through times.

    A network that is fed ln(sigma) is not asked about sigma = 0: before it comes one step of first
    order on to the data.
    """
    steps = solver.plan(times)
    if clock.to_timestep(as_time(steps[-1].t)).isfinite():
        return tuple(steps)
    before = solver.plan(times[:-1]) if len(times) > 2 else []
    return (*before, *first_order(solver).plan(times[-2:]))


def first_order(solver: Solver) -> Solver:
    """Return the solver of first order for the same process: DDIM's step, with its eta."""
    return SOLVERS["ddim"](
        path=solver.path,
        prediction=solver.prediction,
        diffusion=solver.diffusion,
        model_path=solver.model_path,
    )


@lru_cache(maxsize=64)
def at_noise_level(plan: Plan, level: float) -> Plan:
    """Return a plan with another scale of its diffusion.

    Raises:
        ValueError: for a plan of the ODE.
    """
    diffusion = plan.solver.diffusion
    if diffusion is None:
        raise ValueError(
            f"noise_level={level} is the scale of a diffusion, and the scheduler has none: make "
            'it with a diffusion, diffusion="flow_grpo" for example'
        )
    solver = replace(plan.solver, diffusion=replace(diffusion, scale=level))
    return replace(plan, solver=solver, steps=steps_through(plan.clock, solver, plan.times))


def backwards(plan: Plan) -> tuple[Plan, float]:
    r"""Return the plan of the ODE from data to noise, through the times of another, and a factor.

    It begins inside where the model does not determine a slope at the data, at the time of
    :math:`\alpha/(\alpha + \beta) = 0.999`, and the factor is the weight of the data there. A
    solver that cannot start where there is no noise is replaced by the general one, and so is a
    flow map, which was learned towards the data only.
    """
    clock, solver, times = plan.clock, replace(plan.solver, diffusion=None), plan.times.flip(0)
    last, factor = times[0], 1.0
    if not solver.exists(last.item()):
        last = solver.path.time(torch.tensor(LAST_LOG_SNR, dtype=torch.float64))
        if not last > times[1]:
            raise ValueError(
                f"the way back begins at t = {last.item():.6g}, since a model that predicts "
                f"{solver.prediction!r} says nothing at the data, but the last step begins at "
                f"{times[1].item():.6g}: take fewer steps"
            )
        factor = (solver.path.alpha(last) / solver.path.alpha(times[0])).item()
    times = clock.as_fed(torch.cat([last[None], times[1:]]))
    try:
        steps = () if solver.two_times else solver.plan(times)
    except ValueError:
        steps = ()
    if not steps:
        kept = ("path", "prediction", "model_path")
        solver = SOLVERS["predictor_corrector"](**{name: getattr(solver, name) for name in kept})
        steps = solver.plan(times)
    fed = clock.to_timestep(evaluation_times(steps)).float()
    return Plan(clock, solver, tuple(steps), times, fed, plan.bounds, plan.device), factor


def evaluation_times(steps: Sequence[Step]) -> Tensor:
    """Return the times at which the network is asked, float64."""
    return torch.tensor([step.t for step in steps], dtype=torch.float64)
