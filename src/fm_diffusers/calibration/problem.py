r"""What is calibrated: a model, noises, the trajectories that converge from them, and trials.

Samples are kept as :math:`y = x/(\alpha + \beta)`, which does not depend on the path.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.calibration.fitting import fit, gram, square_errors
from fm_diffusers.grids import logistic
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.parts import calibrated_times, model_kwargs
from fm_diffusers.solvers import Multistep, Step, trajectory
from fm_diffusers.solvers.interpolation import lagrange
from fm_diffusers.solvers.steps import Weights, combine

#: The method of the converged trajectories, and the first that is tried.
CONVERGED = {"form": "velocity", "variable": "arctan", "corrector": True, "solver_order": 2}

#: How many states of a converged trajectory the one at a time between them is interpolated from.
NEIGHBOURS = 4

#: A field of a part of all samples, whose conditions it knows.
PartialField = Callable[[Tensor, Tensor, slice], Tensor]

#: A time and a sample at which the model was asked, and its output.
Asked = tuple[float, Tensor, Tensor]


@dataclass(frozen=True)
class Trial:
    """A grid, a method and which steps are fitted; then the rows, and how good they are.

    Attributes:
        log_snr: log-SNRs between the ends.
        method: arguments of `Multistep`.
        every: whether every step is fitted, or the last alone.
        rows: the fitted rows, see `Calibrated`.
        rms: root mean square distance to the converged samples, from noises that were not fitted.
        median: the median distance.
        seen: what the model was asked on the way.
    """

    log_snr: list[float]
    method: dict[str, Any]
    every: bool = False
    rows: tuple[Weights, ...] = ()
    rms: float = math.inf
    median: float = math.inf
    seen: tuple[Asked, ...] = field(default=(), repr=False)

    @property
    def score(self) -> float:
        """The root mean square error is ruled by few samples: the median counts twice."""
        product = self.rms * self.median**2
        return math.log(product) if product else -math.inf


class Problem:
    """A model, noises of which one half is fitted, and the trajectories that converge from them.

    Args:
        scheduler: the scheduler of the ODE.
        field: the model.
        noise: standard normal noise `(n, ...)`.
        batch_size: samples a model evaluation.
        reference_steps: steps of the converged trajectories.
    """

    def __init__(
        self,
        scheduler: GaussianFlowScheduler,
        field: PartialField,
        noise: Tensor,
        batch_size: int,
        reference_steps: int,
    ) -> None:
        self.config, self.clock = scheduler.config, scheduler.clock
        self.path, self.partial = scheduler.sampling_path, field
        self.parts = [slice(i, i + batch_size) for i in range(0, len(noise), batch_size)]
        self.half = len(noise) // 2
        times = self.grid(reference_steps, scale=1.4)
        first = self.path(times[0])
        self.start = (torch.hypot(*first[:2]) / sum(first[:2])).item() * noise
        self.clocks, self.states = torch.sigmoid(self.path.log_snr(times)), self._states(times)

    def field(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the model's output for all samples, in batches."""
        return torch.cat([self.partial(x[part], t, part) for part in self.parts])

    def solver(self, method: dict[str, Any]) -> Multistep:
        """Return a method for the model."""
        return Multistep(**model_kwargs(self.config, self.clock), **method)

    def times(self, log_snr: list[float]) -> Tensor:
        """Return the grid with these log-SNRs between its ends."""
        return calibrated_times(self.config, self.clock, log_snr)

    def grid(self, n: int, **kwargs: float) -> Tensor:
        """Return a grid of `n` steps; for arguments see `logistic`."""
        return logistic(n, self.path, *self.times([]).tolist(), **kwargs)

    def log_snr(self, n: int, **kwargs: float) -> list[float]:
        """Return the log-SNRs between the ends of such a grid."""
        return self.path.log_snr(self.grid(n, **kwargs)[1:-1]).tolist()

    def sizes(self, times: Tensor) -> list[float]:
        """Return alpha + beta."""
        c = self.path(times)
        return (c.alpha + c.beta).tolist()

    @torch.no_grad()
    def _states(self, times: Tensor) -> list[Tensor]:
        """Return the states of the converged trajectories: many, so that they are on the CPU."""
        start, *sizes = self.sizes(times)
        run = trajectory(self.solver(CONVERGED), self.field, start * self.start, times)
        states = [self.start.cpu(), *((x / s).cpu() for x, s in zip(run, sizes, strict=True))]
        if not states[-1].isfinite().all():
            raise ValueError(
                f"the samples of {len(sizes)} steps are not finite, so that there is nothing to "
                "fit to: look at the model's outputs (weights in half precision, a guidance scale "
                "that is too large), or keep times inside with t_min and t_max"
            )
        return states

    def target(self, t: Tensor) -> Tensor:
        """Return the state of the converged trajectories at a time."""
        u = torch.sigmoid(self.path.log_snr(t))
        if u >= self.clocks[-1]:
            return self.states[-1]
        first = int(torch.searchsorted(self.clocks, u)) - NEIGHBOURS // 2
        first = max(0, min(first, len(self.clocks) - NEIGHBOURS))
        near = slice(first, first + NEIGHBOURS)
        weights = lagrange(self.clocks[None, near], u[None, None]).flatten()
        return combine(tuple(weights.tolist()), tuple(self.states[near]))

    @torch.no_grad()
    def judged(self, trial: Trial, seen: tuple[Asked, ...] = ()) -> Trial:
        """Return the trial with rows fitted to one half of the noises and judged on the other.

        The model is not asked again what is among the `seen`: trials begin alike.
        """
        times = self.times(trial.log_snr)
        if not (times.diff() > 0).all():
            return replace(trial, rms=math.inf, median=math.inf)
        steps, sizes = list(self.solver(trial.method).steps(times)), self.sizes(times)
        slopes: list[Tensor] = []
        y, asked, rows = self.start, [], []
        for n, step in enumerate(steps):
            x = sizes[n] * y
            asked.append((step.t, x, self._output(step.t, x, seen[n : n + 1])))
            slopes.insert(0, combine(step.slope, asked[-1][1:]))
            row = own_row(step, n, sizes)
            if trial.every or n == len(steps) - 1:
                products = gram([y, *slopes, self.target(times[n + 1])])
                row = fit(products[: self.half], row)
                rows.append(row)
            y = combine(row, (y, *slopes))
        error = square_errors(products[self.half :], rows[-1])
        return replace(
            trial,
            rows=tuple(rows),
            rms=error.mean().sqrt().item(),
            median=error.sqrt().median().item(),
            seen=tuple(asked),
        )

    def _output(self, t: float, x: Tensor, seen: tuple[Asked, ...]) -> Tensor:
        for time, sample, output in seen:
            if time == t and torch.equal(sample, x):
                return output
        return self.field(x, torch.tensor(t, dtype=torch.float64))


def own_row(step: Step, n: int, sizes: list[float]) -> Weights:
    """Return a method's weights of the sample over alpha + beta and of all slopes in step `n`."""
    c, *weights = step.row(n)
    weights += [0.0] * (n + 1 - len(weights))
    return (c * sizes[n] / sizes[n + 1], *(w / sizes[n + 1] for w in weights))
