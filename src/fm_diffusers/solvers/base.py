r"""What a solver is: a function from times to a plan, and one `update` that carries a plan out.

diffusers' caller owns the model and hands in one output at a time, so a sampler is cut at its
model evaluations. Every solver here is linear in what it has seen, and every method, one-step or
multistep, with a corrector or without, is one row of weights for each evaluation:

.. math:: x_{n+1} = c\, x_n + \sum_{j \ge 0} w_j k_{n-j} + s\, \xi,

where :math:`x_n` is the sample at which the model was asked, :math:`k_n = a\, x_n + b\, q_n` the
slope that its output :math:`q_n` stands for, and :math:`\xi` standard normal noise. All that a
solver remembers are its last slopes. (A stage of a Runge-Kutta method, or a predicted sample that
a corrector moves, differs from the sample before it by a combination of those, so neither need be
kept: what the caller did to the sample meanwhile is respected.) The weights depend on the times
alone and are computed once, in float64; a new solver is a new plan.

**One word makes any ODE solver an SDE solver.** With :math:`K = \int \sigma^2/(2\beta^2) dt` over
the step from t to s, the ODE is carried past s to the time t' of the log signal-to-noise ratio
:math:`\lambda_s + K` and noised back exactly:

.. math:: x_s = \frac{\alpha_s}{\alpha_{t'}} x_{t'} + \beta_s \sqrt{1 - e^{-2K}}\, \xi.

That keeps the marginals as well as the ODE solver does over that longer step, for every path and
coefficient; of order 1 on the signal-to-noise clock it is the exact Ornstein-Uhlenbeck step for a
frozen :math:`\hat z` (DDIM with its eta). The end of the path is reached without noise. An
overshoot longer than the step itself (coefficients above the memoryless one, near the data most of
all) is taken in full by solvers of order 1 only; see `REACH`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion
from fm_diffusers.paths import GaussianPath, as_time, snapped
from fm_diffusers.paths.base import check_path
from fm_diffusers.predictions import CANONICAL, check_prediction, conversion, is_defined
from fm_diffusers.solvers.consistency import check_weights
from fm_diffusers.solvers.steps import Step, normalised

#: How far in log-SNR a step of order above 1 may overshoot, if it is not itself longer: beyond,
#: one evaluation cannot follow. The marginals do not depend on the overshoot, and as steps shrink
#: so does K, so that every finite coefficient is reached.
REACH = 0.1


class Landing(NamedTuple):
    r"""Where the ODE is carried on a step that is noised back, as vectors over the steps.

    Attributes:
        t: the time t' at which the ODE stops.
        log_snr: the log signal-to-noise ratio there.
        gain: :math:`\alpha_s/\alpha_{t'}`.
        std: standard deviation of the noise put back at `s`.
        shift: K, by which every past log-SNR falls behind; infinite for a full refresh.
    """

    t: Tensor
    log_snr: Tensor
    gain: Tensor
    std: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Solver:
    r"""Configuration of a solver: the path, what the model predicts on it, the coefficient of dW.

    Subclasses say which slope they integrate (`slope`) and how they cross the grid (`steps`).

    Attributes:
        path: the Gaussian path on which the samples are.
        prediction: what the model predicts, one of `PREDICTIONS`.
        diffusion: :math:`\sigma_t`, or None for the ODE.
        model_path: the path of the model, where it is another: the model is then asked about the
            sample on its own path that has the same signal-to-noise ratio; see `rescaling`.
        order: order of accuracy, of the endpoint for an ODE, of its distribution for an SDE.
        evaluations: model evaluations for each interval of the grid.
        two_times: whether the model is told where the step leads, beside where it is: a flow map.
    """

    path: GaussianPath
    prediction: str = "velocity"
    diffusion: Diffusion | None = None
    model_path: GaussianPath | None = None

    order: ClassVar[int]
    evaluations: ClassVar[int]
    two_times: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_prediction(self.prediction)
        paths = [self.path, *([] if self.model_path is None else [self.model_path])]
        for path in paths:
            check_path(path)
        paired = [path for path in paths if path.coupled]
        if paired and self.diffusion is not None:
            raise ValueError(
                f"diffusion must be None on {paired[0]}: noise and data were paired in the "
                "training, so that the velocity does not determine the score that an SDE needs; "
                "sample the ODE, or a network that was trained with independent noise"
            )

    @cached_property
    def noisy(self) -> bool:
        """Whether an SDE is solved: there is a diffusion, and it does not vanish."""
        return self.diffusion is not None and self.diffusion.acts(self.path)

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the sample and of the model output in the slope at times `t`."""
        raise NotImplementedError

    def steps(self, grid: Tensor) -> Iterator[Step]:
        """Yield the steps through a float64 grid of valid times."""
        raise NotImplementedError

    def advance(self, t: Tensor, s: Tensor) -> Tensor:
        """Return what a model of two times is told of a step from `t` to `s`."""
        raise NotImplementedError

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the weights of the sample and of a constant slope after steps from `t` to `s`.

        Every plan is checked against them. None: the solver states none.
        """
        return None

    def exists(self, t: float | Tensor) -> Tensor:
        """Whether the model's prediction is defined at `t` and determines a finite slope."""
        t = as_time(t)
        a, b = self.slope(t)
        path, time = self.model_path or self.path, self.model_time(t)
        known = (t >= 0) & (t <= 1) & (time >= 0) & (time <= 1)
        return known & is_defined(path, self.prediction, time) & a.isfinite() & b.isfinite()

    def plan(self, times: Tensor) -> list[Step]:
        """Return the steps through `times`, shape `(n + 1,)`, 0 is noise and 1 is data.

        Raises:
            ValueError: if the times are not strictly increasing (or, for an ODE, decreasing), but
                for a last step that may stand still, if the model says nothing about the slope
                at one of them, or if the weights are not finite or do not carry a constant slope
                exactly.
        """
        grid = torch.as_tensor(times, dtype=torch.float64).cpu()
        self._check_times(grid)
        known = torch.cat([self.exists(grid[:-1]), (grid[-1:] >= 0) & (grid[-1:] <= 1)])
        for t in grid[~known]:
            raise ValueError(f"at t = {t.item()} {self._cause(t)}")
        steps = list(self.steps(grid))
        check_weights(type(self).__name__, steps, self.constant(grid[:-1], grid[1:]))
        return normalised(steps)

    def _cause(self, t: Tensor) -> str:
        """Return why there is no slope at `t`, and the way out."""
        if not 0 <= t <= 1:
            return (
                "the path does not exist: times go from 0 (noise) to 1 (data); give sigmas or "
                "timesteps, a shift and ends of the grid that keep them there"
            )
        if not 0 <= (time := self.model_time(t)) <= 1:
            return (
                "the samples' path has a signal-to-noise ratio that the path of the model never "
                f"reaches (it would be at its time {time.item()}): set t_min and t_max so that "
                "every start of a step lies between its first and last ratio"
            )
        return (
            f"a model that predicts {self.prediction!r} does not determine a finite slope for "
            f"{type(self).__name__} (t = 0 is noise, 1 is data, timestep = num_train_timesteps "
            "(1 - t)): stay strictly inside, as the default grid does"
        )

    def _check_times(self, grid: Tensor) -> None:
        if grid.ndim != 1 or len(grid) < 2:
            raise ValueError(
                "times must be at least two, the start of a step and its end; got "
                f"{grid.tolist()}: give one step or more"
            )
        if not grid.isfinite().all():
            place = int((~grid.isfinite()).nonzero()[0])
            raise ValueError(
                f"times must be finite, got {grid[place].item()} at place {place} of {len(grid)}: "
                "give times from 0 (noise) to 1 (data), and a shift and ends of the grid that "
                "keep them there"
            )
        length = grid.diff()
        descending = bool((length < 0).all())
        if descending and self.diffusion is not None:
            raise ValueError(
                "times must be strictly increasing from noise (0) to data (1) for an SDE, which "
                f"does not run back; got {grid[0].item()} to {grid[-1].item()}: pass "
                "diffusion=None to run back"
            )
        wrong = length <= 0
        wrong[-1] = length[-1] < 0
        if not descending and wrong.any():
            place = int(wrong.nonzero()[0])
            raise ValueError(
                "times must be strictly increasing from noise (0) to data (1), or strictly "
                f"decreasing for an ODE; got t = {grid[place].item()} and then "
                f"{grid[place + 1].item()} at place {place + 1} of {len(grid) - 1}: a grid ends "
                "after its last start (t_max, shift_terminal) and its starts are distinct"
            )

    def nodes(self, times: Tensor) -> list[float]:
        """Return the times at which the model is asked on the way through `times`."""
        return [step.t for step in self.plan(times)]

    def landing(self, t: Tensor, s: Tensor) -> Landing:
        """Return where the steps from times `t` to times `s` are carried; see `Landing`.

        The overshoot stops at the end of the path, where it would leave it, and for solvers of
        order above 1 at the length of the step or `REACH`, whichever is longer.
        """
        path, one = self.path, torch.ones_like(s)
        log_snr, last = path.log_snr(s), path.log_snr(1.0)
        shift = 0 * one
        if self.noisy:
            assert self.diffusion is not None
            inside = log_snr < last
            shift = self.diffusion.integral(path, t, torch.where(inside, s, t))
            shift = torch.where(inside, torch.minimum(shift, last - log_snr), 0.0)
            if self.order > 1:
                length = torch.where(inside, log_snr - path.log_snr(t), 0.0)
                reach = length.clamp(min=REACH)
                self.diffusion.warn_of_reach(shift, reach)
                shift = torch.minimum(shift, reach)
        beyond = log_snr + shift
        moved = torch.where(beyond >= last, one, path.time(beyond).clamp(max=1))
        end = torch.where(shift > 0, moved, s)
        gain = torch.where(shift > 0, path.alpha(s) / path.alpha(end), one)
        std = path.beta(s) * torch.sqrt(-torch.expm1(-2 * shift))
        return Landing(end, torch.where(shift > 0, beyond, log_snr), gain, std, shift)

    def convert(self, target: str, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights that turn the sample and the model output into `target` at `t`."""
        if self.model_path is None:
            return conversion(self.path, self.prediction, target, t)
        t = as_time(t)
        a, b = conversion(self.model_path, self.prediction, CANONICAL, self.model_time(t))
        c, d = conversion(self.path, CANONICAL, target, t)
        return c + d * a * self.rescaling(t), d * b

    def model_time(self, t: Tensor) -> Tensor:
        """Return the time at which the model's path has the signal-to-noise ratio of `t`."""
        if self.model_path is None:
            return t
        return snapped(self.model_path.time(self.path.log_snr(t)))

    def rescaling(self, t: Tensor) -> Tensor:
        """Return by what a sample is multiplied to lie on the model's path."""
        if self.model_path is None:
            return torch.ones_like(t)
        model, own = self.model_path(self.model_time(t)), self.path(t)
        return (model.alpha + model.beta) / (own.alpha + own.beta)
