r"""What a solver is: a function from times to a plan, and one `update` that carries a plan out.

diffusers' caller owns the model and hands in one output at a time, so a sampler is cut at its
model evaluations. Every solver here is linear in what it has seen, hence one evaluation is a few
rows of weights over

.. math:: (\text{memory}\dots, x, k, n),

where :math:`x` is the sample at which the model was asked, :math:`k = c_x x + c_q q` the slope
that its output :math:`q` stands for, and :math:`n` standard normal noise. The first row is the
next sample; the others are what the solver remembers. The weights depend on the times alone and
are computed once, in float64; a step is then a linear combination, and a new solver is a new plan.

**One word makes any ODE solver an SDE solver.** With :math:`K = \int \sigma^2/(2\beta^2) dt` over
the step from t to s, the ODE is carried past s to the time t' of the log signal-to-noise ratio
:math:`\lambda_s + K` and noised back exactly:

.. math:: x_s = \frac{\alpha_s}{\alpha_{t'}} x_{t'} + \beta_s \sqrt{1 - e^{-2K}}\, n.

That keeps the marginals as well as the ODE solver does, for every path and every coefficient; with
a solver of order 1 on the signal-to-noise clock it is the exact Ornstein-Uhlenbeck step for a
frozen :math:`\hat z` (DDIM with its eta). The end of the path is reached without noise. An
overshoot longer than the step itself (coefficients above the memoryless one, near the data most of
all) is taken in full by solvers of order 1 only; see `REACH`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion
from fm_diffusers.paths import GaussianPath
from fm_diffusers.predictions import check_prediction, conversion, is_defined

#: How far in log-SNR a step of order above 1 may overshoot, if it is not itself longer: beyond,
#: one evaluation cannot follow. The marginals do not depend on the overshoot, and as steps shrink
#: so does K, so that every finite coefficient is reached.
REACH = 0.1

Weights = tuple[float, ...]
Memory = tuple[Tensor, ...]
Noise = Callable[[float, float], Tensor]


class Step(NamedTuple):
    """One model evaluation: where, and the weights of what follows from it.

    Attributes:
        t: the time at which the model is asked.
        interval: the two times of the grid that it helps to connect.
        slope: weights of the sample and of the model output in the slope.
        rows: weights of the next sample, then of each tensor to remember.
        ends_interval: whether the next sample lies on the grid, not at a stage inside an interval.
    """

    t: float
    interval: tuple[float, float]
    slope: tuple[float, float]
    rows: tuple[Weights, ...]
    ends_interval: bool = True

    @property
    def draws(self) -> bool:
        """Whether the step takes fresh noise."""
        return any(row[-1] != 0 for row in self.rows)


def combine(weights: Weights, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Return the linear combination; a tensor of weight one on its own is passed on uncopied."""
    terms = [(w, v) for w, v in zip(weights, tensors, strict=True) if w != 0]
    (w, total), *rest = terms or [(0.0, tensors[0])]
    if w != 1:
        total = w * total
    for w, v in rest:
        total = torch.add(total, v, alpha=w)
    return total


def update(
    step: Step, memory: Memory, x: Tensor, q: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """Carry out one step of a plan; consumes one model output.

    Args:
        step: a step of `Solver.plan`.
        memory: what the step before returned; `()` at the start.
        x: the sample at which the model was asked.
        q: the model's output there, of the same shape and dtype.
        noise: standard normal noise of that shape, where `step.draws`.

    Returns:
        The next sample and the memory for the next step.
    """
    k = combine(step.slope, (x, q))
    x, *memory = (combine(row, (*memory, x, k, noise)) for row in step.rows)
    return x, tuple(memory)


@dataclass(frozen=True)
class Solver:
    r"""Configuration of a solver: the path, what the model predicts on it, the coefficient of dW.

    Subclasses say which slope they integrate (`slope`) and how they cross an interval (`cross`).

    Attributes:
        path: the Gaussian path.
        prediction: what the model predicts, one of `PREDICTIONS`.
        diffusion: :math:`\sigma_t`, or None for the ODE.
        order: order of accuracy, of the endpoint for an ODE, of its distribution for an SDE.
        evaluations: model evaluations for each interval of the grid.
    """

    path: GaussianPath
    prediction: str = "velocity"
    diffusion: Diffusion | None = None

    order: ClassVar[int]
    evaluations: ClassVar[int]

    def __post_init__(self) -> None:
        check_prediction(self.prediction)

    def slope(self, t: float) -> tuple[float, float]:
        """Return the weights of the sample and of the model output in the slope at `t`."""
        raise NotImplementedError

    def cross(self, t: float, s: float) -> Iterator[Step]:
        """Yield the steps from time `t` to time `s`."""
        raise NotImplementedError

    def exists(self, t: float) -> bool:
        """Whether the model's prediction is defined at `t` and determines a finite slope."""
        inside = 0 <= t <= 1 and is_defined(self.path, self.prediction, t)
        return inside and all(map(math.isfinite, self.slope(t)))

    def plan(self, times: Tensor) -> list[Step]:
        """Return the steps through `times`, shape `(n + 1,)`, 0 is noise and 1 is data.

        Raises:
            ValueError: if the times are not strictly increasing (or, for an ODE, decreasing), or
                if the model says nothing about the slope at one of them.
        """
        grid = torch.as_tensor(times, dtype=torch.float64).tolist()
        ascending, descending = (
            all(sign * (s - t) > 0 for t, s in pairwise(grid)) for sign in (1, -1)
        )
        if len(grid) < 2 or not (ascending or (descending and self.diffusion is None)):
            raise ValueError(
                "times must be at least two and strictly increasing from noise (0) to data (1), "
                f"or strictly decreasing for an ODE; got {grid}"
            )
        for t in grid[:-1]:
            if not self.exists(t):
                raise ValueError(
                    f"at t = {t} a model that predicts {self.prediction!r} does not determine a "
                    f"finite slope for {type(self).__name__} (t = 0 is noise, 1 is data, timestep "
                    "= num_train_timesteps (1 - t)): stay strictly inside, as the default grid "
                    "does"
                )
        return list(self.steps(grid))

    def steps(self, grid: list[float]) -> Iterator[Step]:
        """Yield the steps through a grid of valid times."""
        for t, s in pairwise(grid):
            yield from self.cross(t, s)

    def nodes(self, times: Tensor) -> list[float]:
        """Return the times at which the model is asked on the way through `times`."""
        return [step.t for step in self.plan(times)]

    def landing(self, t: float, s: float) -> tuple[float, float, float]:
        r"""Return t', the gain :math:`\alpha_s/\alpha_{t'}` and the noise put back at `s`.

        The overshoot stops at the end of the path, where it would leave it, and for solvers of
        order above 1 at the length of the step or `REACH`, whichever is longer.
        """
        if self.diffusion is None:
            return s, 1.0, 0.0
        path = self.path
        log_snr, last = path.log_snr(s), path.log_snr(1.0)
        if log_snr >= last:
            return s, 1.0, 0.0
        overshoot = torch.minimum(self.diffusion.integral(path, t, s), last - log_snr)
        if self.order > 1:
            furthest = torch.clamp(log_snr - path.log_snr(t), min=REACH)
            overshoot = torch.minimum(overshoot, furthest)
        if overshoot == 0:
            return s, 1.0, 0.0
        beyond = log_snr + overshoot
        end = 1.0 if beyond >= last else min(path.time(beyond).item(), 1.0)
        gain = path.alpha(s) / path.alpha(end)
        std = path.beta(s) * torch.sqrt(-torch.expm1(-2 * overshoot))
        return end, gain.item(), std.item()

    def convert(self, target: str, t: float) -> tuple[float, float]:
        """Return the weights that turn the sample and the model output into `target` at `t`."""
        c_x, c_q = conversion(self.path, self.prediction, target, t)
        return c_x.item(), c_q.item()


def trajectory(
    solver: Solver,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
) -> Iterator[Tensor]:
    """Yield the sample at every time of the grid after the first; see `integrate`."""
    plan = solver.plan(times)
    if noise is None and any(step.draws for step in plan):
        raise ValueError(
            "an SDE needs noise: pass noise=lambda t, s: torch.randn(x.shape, generator=...)"
        )
    memory: Memory = ()
    for step in plan:
        q = field(x, torch.tensor(step.t, dtype=torch.float64))
        x, memory = update(step, memory, x, q, noise(*step.interval) if step.draws else None)
        if step.ends_interval:
            yield x


def integrate(
    solver: Solver,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
) -> Tensor:
    r"""Carry samples along a field, from the first of `times` to the last.

    Args:
        solver: a solver of `SOLVERS`, made with the path and what `field` predicts.
        field: `f(x, t)` with `t` a 0-dim float64 tensor, returning what `solver.prediction` names.
        x: samples at the first time, shape `(batch, ...)`.
        times: shape `(n + 1,)`, increasing from noise (0) to data (1); an ODE also runs back.
        noise: `noise(t, s)` draws standard normal noise like `x` for the step from t to s.

    Returns:
        The samples at the last time.

    Raises:
        ValueError: for times that the solver cannot take, or an SDE without `noise`.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> from fm_diffusers.solvers import SOLVERS
        >>> x = torch.tensor([2.0], dtype=torch.float64)
        >>> to_zero = lambda x, t: -x / (1 - t)  # all data at 0: u = (0 - x)/(1 - t)
        >>> integrate(SOLVERS["euler"](Linear()), to_zero, x, torch.linspace(0, 1, 5))
        tensor([0.], dtype=torch.float64)
    """
    for sample in trajectory(solver, field, x, times, noise):  # noqa: B007
        pass
    return sample
