r"""Multistep methods on the signal-to-noise clock: Adams, exponential, predictor-corrector.

With :math:`\rho = \alpha/\beta`, :math:`u = \alpha/(\alpha + \beta)`, :math:`D = E[z|x]` and
:math:`F = E[z - \varepsilon|x]` the sampling ODE of every Gaussian path takes two exact forms,

.. math:: d\frac{x}{\alpha + \beta} = F\, du \quad(\text{velocity}), \qquad
          d\frac{x}{\beta} = D\, d\rho \quad(\text{data, exponential integrators}).

A multistep method replaces the slope by the polynomial through its last values, in some variable
of the signal-to-noise ratio (`VARIABLES`), and integrates it exactly; the weights are integrals of
Lagrange polynomials, by Gauss-Legendre quadrature in float64. Form, variable and number of values
are all that tells the methods apart:

- velocity, the clock :math:`u`: Adams-Bashforth;
- data, :math:`\log \rho`: DPM-Solver++, UniPC, RES; in :math:`-\log(1 - u)` as k-diffusion and
  ComfyUI take them on flow models, where :math:`1 - u` is the noise level;
- velocity, :math:`\arctan c\rho`, which unlike the logarithm is finite and smooth at the noise and
  at the data, so that neither the first nor the last step needs special treatment: our default.

**Corrector.** The slope found at the predicted sample is also the missing value at the end of the
step before: the same formula with one value more says where that step should have ended. The
difference moves the sample without a further evaluation (PEC), and costs one more past slope.

**SDE.** A step overshoots and is noised back (`fm_diffusers.solvers.base`), and the history moves
along: on the sample's new trajectory a past slope belongs to the signal-to-noise ratio
:math:`e^{-K} \rho`, which makes the marginals second-order accurate. No corrector is applied to a
step that was noised. Our default then fits its weights to Gaussian data (`fitting`).

Where a polynomial lacks values (at the start, or where the variable is infinite) or must not use
them (the last step in :math:`\log \rho`, a step much longer than the one before) its order falls
by itself.

References: Lu et al., "DPM-Solver++", https://arxiv.org/abs/2211.01095; Zhao et al., "UniPC",
https://arxiv.org/abs/2302.04867; Zhang et al., "RES", https://arxiv.org/abs/2308.02157; Zhang,
Chen, "Fast Sampling of Diffusion Models with Exponential Integrator",
https://arxiv.org/abs/2204.13902; Hairer, Norsett, Wanner, "Solving Ordinary Differential
Equations I", section III.1 (Adams methods, PEC).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from fm_diffusers.solvers.base import Landing, Solver
from fm_diffusers.solvers.fitting import fitted
from fm_diffusers.solvers.interpolation import (
    FORMS,
    RULES,
    VARIABLES,
    finite,
    history,
    integrals,
)
from fm_diffusers.solvers.steps import Step
from fm_diffusers.tables import look_up

#: What a method does that leaves it open, by the number of steps up to which it holds. On very
#: long steps corrections and the last step overshoot (measured on networks, under guidance most of
#: all), and weights that are right for Gaussians (measured on mixtures).
ON_ODES: dict[float, dict[str, bool]] = {
    6: {"corrector": False, "lower_order_final": False},
    math.inf: {"corrector": True, "lower_order_final": True},
}
ON_SDES: dict[float, dict[str, bool]] = {
    6: {"corrector": True, "lower_order_final": False, "fitted": False},
    math.inf: {"corrector": True, "lower_order_final": False, "fitted": True},
}

#: How many times longer than the one before a step may be for slopes to be extrapolated over it,
#: and how many times shorter for its slope to correct the one before: a velocity found where
#: hardly any noise is left says little about a long step before. Our default grids stay well
#: inside; diffusers' end on a long step (`shift_terminal`, karras) or a very short one
#: (FlowMatchEuler's). Methods in a logarithm are exempt, as diffusers' own take such steps.
LONGEST = 3.0


@dataclass(frozen=True)
class Multistep(Solver):
    r"""A multistep method with one evaluation a step; see the module.

    Attributes:
        form: the slope that is interpolated, one of `FORMS`.
        variable: in which variable, one of `VARIABLES`.
        solver_order: number of slopes in the predictor, 1 to 4 (diffusers' word: a corrector makes
            the method more accurate by one order).
        corrector: whether steps are corrected, with one slope more than the predictor has; None
            is as `ON_ODES` and `ON_SDES` say.
        solver_type: the rule for two values, one of `RULES`.
        lower_order_final: whether slopes fall to one over the last steps; None likewise.
        fitted: whether the weights of noised steps are fitted to Gaussian data; None likewise.
    """

    form: str = "velocity"
    variable: str = "arctan"
    solver_order: int = 2
    corrector: bool | None = False
    solver_type: str = "exact"
    lower_order_final: bool | None = False
    fitted: bool | None = False
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        tables: dict[str, dict[str, Any]] = {
            "form": FORMS,
            "variable": VARIABLES,
            "solver_type": RULES,
        }
        for name, table in tables.items():
            look_up(name, table, getattr(self, name))
        if not isinstance(self.solver_order, int) or not 1 <= self.solver_order <= 4:
            raise ValueError(f"solver_order must be 1, 2, 3 or 4, got {self.solver_order!r}")
        for name in ("corrector", "lower_order_final", "fitted"):
            if getattr(self, name) not in (True, False, None):
                raise ValueError(
                    f"{name} must be True, False or None (chosen by the number of steps), got "
                    f"{getattr(self, name)!r}"
                )

    @property
    def order(self) -> int:  # type: ignore[override]  # as in `runge_kutta`
        """Order of the endpoint: more slopes lower the error, but the first step knows one.

        Of an SDE's distribution: its steps are not corrected.
        """
        if self.noisy:
            return min(self.solver_order, 2)
        order = min(self.solver_order, 2) + (self.corrector is not False)
        return order if self.lower_order_final is False else min(order, 2)

    @property
    def _form(self) -> str:
        return "data" if self.noisy else self.form

    def plan(self, times: Tensor) -> list[Step]:  # noqa: D102
        table = ON_SDES if self.noisy else ON_ODES
        chosen = next(row for most, row in table.items() if len(times) - 1 <= most)
        left_open: dict[str, Any] = {k: v for k, v in chosen.items() if getattr(self, k) is None}
        if left_open:
            return replace(self, **left_open).plan(times)
        return super().plan(times)

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.convert(FORMS[self._form][0], t)

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        landing = self.landing(grid[:-1], grid[1:])
        factor, rows = self._rows(grid[:-1], landing)
        if self.fitted and self.noisy and len(rows) > 1:
            rows = fitted(self.path, grid, landing.std, factor, rows)
        slopes = torch.stack(self.slope(grid[:-1]), 1).tolist()
        for i, interval in enumerate(pairwise(grid.tolist())):
            # no more slopes lie behind than steps
            weights = tuple((factor[i].item(), *row[i].tolist()) for row in rows[: i + 1])
            yield Step(interval[0], interval, tuple(slopes[i]), weights, landing.std[i].item())

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        landing = self.landing(t, s)
        start, stop = self.path(t), self.path(landing.t)
        size, size_end = (c.alpha + c.beta for c in (start, stop))
        if self._form == "velocity":
            factor, weight = (
                size_end / size,
                size_end * (stop.alpha / size_end - start.alpha / size),
            )
        else:
            factor = torch.where(landing.t == t, 1.0, stop.beta / start.beta)
            weight = stop.alpha - factor * start.alpha
        return landing.gain * factor, landing.gain * weight

    def _rows(self, t: Tensor, landing: Landing) -> tuple[Tensor, list[Tensor]]:
        """Return the weights of the sample, and those of the slopes for each number of past ones.

        A slope has weights from the prediction, and, if the step before was not noised, from the
        correction: the end of that step with this slope less its end without.
        """
        scale = FORMS[self._form][1]
        size, size_end = (c.alpha + c.beta for c in (self.path(t), self.path(landing.t)))
        log_snr, end = self.path.log_snr(t), landing.log_snr
        factor = landing.gain * (size_end * scale(end)) / (size * scale(log_snr))
        factor = torch.where(end == log_snr, 1.0, factor)
        places = history(log_snr, landing.shift, self.solver_order)
        allowed = finite(VARIABLES[self.variable](places))
        allowed = torch.where(self._bends(log_snr, end), allowed, 1)
        growth = self._growth(log_snr, end, landing.shift)
        allowed = torch.where(growth > LONGEST, 1, allowed)
        if self.lower_order_final:
            # a last step that hardly moves the sample does not count
            left = torch.arange(len(t), 0, -1) - int(growth[-1] < 1 / LONGEST)
            allowed = torch.minimum(allowed, left.clamp(min=1))
        rows, before = [], None
        for past in range(self.solver_order + bool(self.corrector)):
            count = allowed.clamp(max=past + 1)
            predicted = self._weights(log_snr, end, places, count)
            row = (landing.gain * size_end)[:, None] * predicted
            if self.corrector and before is not None:
                change = self._correction(log_snr, places, *before)
                change[(torch.roll(landing.shift, 1) > 0) | (growth < 1 / LONGEST)] = 0
                row = torch.nn.functional.pad(row, (0, 1)) + (factor * size)[:, None] * change
            rows.append(row[:, : past + 1])
            before = predicted, count
        return factor, rows

    def _bends(self, start: Tensor, stop: Tensor) -> Tensor:
        """Whether steps in log-SNR are finite where the rule for their slope measures them."""
        finite = VARIABLES[self.variable](stop).isfinite()
        return finite & ((stop - start).isfinite() | (RULES[self.solver_type] != "half_log"))

    def _growth(self, log_snr: Tensor, end: Tensor, shift: Tensor) -> Tensor:
        """Return how many times longer every step is than the one before, 1 in a logarithm."""
        if self.variable in ("log_snr", "log_noise"):
            return torch.ones_like(end)
        places = history(log_snr, shift, 2)
        nodes = VARIABLES[self.variable](torch.cat([end[:, None], places], 1))
        step, before = nodes.diff(dim=1).abs().unbind(1)
        growth = step / before
        growth[0] = 1
        return growth

    def _correction(
        self, log_snr: Tensor, places: Tensor, predicted: Tensor, count: Tensor
    ) -> Tensor:
        """Return the weights of the end of the steps before with this slope, less those without.

        `predicted` and `count` are the weights and numbers of slopes that these were taken with.
        """
        start, places = torch.roll(log_snr, 1), torch.roll(places, 1, 0)
        places = torch.cat([log_snr[:, None], places], 1)
        found = finite(VARIABLES[self.variable](places))
        used = torch.minimum(torch.roll(count, 1) + 1, found)
        used = torch.where(self._bends(start, log_snr), used, 1)
        used[0] = 1
        change = self._weights(start, log_snr, places, used)
        change[:, 1:] -= torch.roll(predicted, 1, 0)
        change[used == 1] = 0
        return change

    def _weights(self, start: Tensor, stop: Tensor, places: Tensor, count: Tensor) -> Tensor:
        r"""Return :math:`S \int l_j` over steps in log-SNR, with the first `count` places each."""
        weights = torch.zeros_like(places)
        for p in count.unique().tolist():
            at = (count == p) & (start != stop)
            weights[at, :p] = integrals(
                self._form,
                self.variable,
                RULES[self.solver_type],
                start[at],
                stop[at],
                places[at, :p],
            )
        return weights
