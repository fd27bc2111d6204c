r"""Calibration: fit the grid and the last step of a few-step sampler to one model.

A model's converged samples :math:`z_i` from noises :math:`\varepsilon_i` cost many evaluations,
once. A few-step method from the same noises gives :math:`x_{N-1}` and the slopes
:math:`k_0, \dots, k_{N-1}`; the read-out of its last step that is right for this model solves

.. math:: \min_{c, w} \sum_i \omega_i \Big\| z_i - c\, x^{(i)}_{N-1}
          - \sum_j w_j k^{(i)}_{N-1-j} \Big\|^2, \qquad \omega_i = \frac{1}{e_i^2 + \delta},

with a small ridge towards the method's own weights; the weights :math:`\omega` (iteratively
reweighted least squares) keep the few samples that end in another mode from ruling the fit. There
is no back-propagation. Grids and orders are tried in turn, and the steps of the best are then
moved one by one; each trial is fitted on one half of the noises and judged on the other.

The result is part of the scheduler's configuration: `save_pretrained` ships it, `from_pretrained`
uses it. It is kept relative to signal-to-noise ratios, so that it does not depend on the path.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fm_diffusers.fields import Field
from fm_diffusers.grids import logistic
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.parts import calibrated_for, calibrated_times, model_kwargs
from fm_diffusers.solvers import Multistep, Solver, integrate, update

#: The grids and methods that are tried, in this order, the best grid being kept for the methods.
GRIDS = [
    {"shift": shift, "scale": scale}
    for shift in (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
    for scale in (1.0, 1.2, 1.4)
]
METHODS = [
    {"form": "velocity", "variable": "arctan", "corrector": True, "solver_order": order}
    for order in (2, 1, 3)
] + [
    {"form": "data", "variable": "arctan", "corrector": True, "solver_order": 2},
    {"form": "velocity", "variable": "arctan", "corrector": False, "solver_order": 2},
]

#: By how much a step is moved in log-SNR, in turn.
MOVES = (0.25, -0.25, 0.1, -0.1)


@dataclass(frozen=True)
class _Trial:
    """A grid, a method and a read-out, and the score on noises that it was not fitted to."""

    log_snr: list[float]
    method: dict[str, Any]
    readout: tuple[float, ...] = ()
    rms: float = float("inf")
    median: float = float("inf")

    @property
    def score(self) -> float:
        """The root mean square error is ruled by few samples: the median counts twice."""
        return self.rms * self.median**2


def calibrate(
    scheduler: GaussianFlowScheduler,
    model: Any,
    num_inference_steps: int | Sequence[int] = (4, 6, 8, 10),
    noise: Tensor | None = None,
    num_samples: int = 128,
    reference_steps: int = 100,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **conditions: Any,
) -> GaussianFlowScheduler:
    """Fit the few-step ODE samplers of a scheduler to a model; the configuration takes them up.

    From then on `set_timesteps(n)` uses what was fitted for n steps, as long as solver, grid and
    ends of the time are the ones that the scheduler has now and no diffusion is asked for. So do
    the pipelines of diffusers that ask for n steps by a list.

    Args:
        scheduler: the scheduler of the model; it is changed.
        model: a network called as `model(x, timestep, **conditions)`, or a pipeline.
        num_inference_steps: the numbers of steps to calibrate, at least 2 each.
        noise: standard normal noise of the samples' shape `(n, ...)`: needed for a network. One
            half is fitted, the other judges.
        num_samples: how much noise is drawn for a pipeline.
        reference_steps: steps of the converged samples.
        batch_size: samples a model evaluation.
        generator: of the noise for a pipeline.
        progress: whether to show a progress bar.
        **conditions: for a network, passed on, tensors with a value for each noise cut to the
            batch; for a pipeline, `class_labels` (by default all in
            turn) and `guidance_scale`: a calibration holds for one guidance scale.

    Returns:
        The scheduler.

    Raises:
        ValueError: for a network without noise, too little noise or too few steps, or for a flow
            map, whose steps have no error that weights could mend.
    """
    if scheduler.solver.two_times:
        raise ValueError(
            "a flow map has nothing to calibrate, its network has learned whole steps: calibrate "
            'the scheduler of its teacher, or one with solver="predictor_corrector"'
        )
    one = isinstance(num_inference_steps, Integral)
    steps = [int(n) for n in ([num_inference_steps] if one else num_inference_steps)]
    if min(steps, default=0) < 2:
        raise ValueError(f"num_inference_steps must be at least 2 to be calibrated, got {steps}")
    for name, value in (("reference_steps", reference_steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if hasattr(model, "calibration_field"):
        field, noise = model.calibration_field(num_samples, generator, noise, **conditions)
    else:
        field = _in_parts(model, scheduler, noise, conditions)
    if noise is None or len(noise) < 4:
        raise ValueError(
            "pass noise=torch.randn(n, ...) of the shape of the samples, n at least 4 (128 is a "
            f"good number), got {None if noise is None else tuple(noise.shape)}"
        )
    ode = type(scheduler).from_config(scheduler.config, diffusion=None)
    problem = _Problem(ode, field, noise, batch_size, reference_steps)
    total = reference_steps + sum(n * _trials(n) for n in steps)
    table = {}
    with tqdm(total=total, desc="calibrating", unit="evaluation", disable=not progress) as bar:
        problem.converge(bar.update)
        for n in steps:
            best = problem.search(n, bar.update)
            table[str(n)] = {
                "log_snr": best.log_snr,
                "method": best.method,
                "readout": list(best.readout),
                "rms": best.rms,
                "median": best.median,
            }
    old, now = scheduler.config.calibration or {}, calibrated_for(scheduler.config)
    kept = old.get("steps", {}) if now | old.get("for", {}) == now else {}
    calibration = {"for": now, "steps": kept | table}
    # diffusers' from_config passes over what was left at its default when the scheduler was made
    defaults = set(scheduler.config.get("_use_default_values", [])) - {"calibration"}
    scheduler.register_to_config(calibration=calibration, _use_default_values=sorted(defaults))
    return scheduler


def _in_parts(
    model: Any,
    scheduler: GaussianFlowScheduler,
    noise: Tensor | None,
    conditions: dict[str, Any],
) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """Return the network, fed as `scheduler` feeds it, as a field of parts of a batch.

    Conditions with a value for each noise are cut too.
    """
    count = None if noise is None else len(noise)

    def field(x: Tensor, t: Tensor, part: slice) -> Tensor:
        own = {
            name: value[part]
            if isinstance(value, Tensor) and value.shape[:1] == (count,)
            else value
            for name, value in conditions.items()
        }
        timestep = scheduler.to_timestep(t).to(x.device, torch.float32)
        output = model(scheduler.scale_model_input(x, timestep), timestep, **own)
        return output if isinstance(output, Tensor) else output[0]

    return field


def _trials(n: int) -> int:
    return len(GRIDS) + len(METHODS) + len(MOVES) * (n - 1)


@dataclass
class _Problem:
    """A model, noises and the samples that they converge to."""

    scheduler: GaussianFlowScheduler
    field: Callable[[Tensor, Tensor, slice], Tensor]
    noise: Tensor
    batch_size: int
    reference_steps: int

    def solver(self, method: dict[str, Any]) -> Multistep:
        return Multistep(**model_kwargs(self.scheduler.config, self.scheduler.clock), **method)

    def times(self, log_snr: list[float]) -> Tensor:
        """Return the grid with these log-SNRs between its ends."""
        return calibrated_times(self.scheduler.config, self.scheduler.clock, log_snr)

    def parts(self) -> Iterator[tuple[slice, Field]]:
        for i in range(0, len(self.noise), self.batch_size):
            part = slice(i, i + self.batch_size)
            yield part, lambda x, t, part=part: self.field(x, t, part)

    def grid(self, n: int, **kwargs: Any) -> Tensor:
        ends = self.times([]).tolist()
        return logistic(n, self.scheduler.sampling_path, *ends, **kwargs)

    @torch.no_grad()
    def converge(self, advance: Callable[[int], Any]) -> None:
        """Compute the converged samples from all noises."""
        solver = self.solver(METHODS[0])
        times = self.grid(self.reference_steps, scale=1.4)
        first = self.scheduler.sampling_path(times[0])
        self.start = torch.hypot(first.alpha, first.beta).item() * self.noise
        ends = [integrate(solver, f, self.start[part], times) for part, f in self.parts()]
        # the read-out is that of x/(alpha + beta), solved for on the CPU in float64
        self.end_scale = sum(self.scheduler.sampling_path(times[-1])[:2]).item()
        self.target = _flat(torch.cat(ends)) / self.end_scale
        advance(self.reference_steps)

    def search(self, n: int, advance: Callable[[int], Any]) -> _Trial:
        """Return the best trial of `n` steps."""
        path = self.scheduler.sampling_path

        def judged(trial: _Trial) -> _Trial:
            advance(n)
            return self.fit(trial)

        def nodes(**kwargs: Any) -> list[float]:
            return path.log_snr(self.grid(n, **kwargs)[1:-1]).tolist()

        def better(trial: _Trial, other: _Trial) -> _Trial:
            return min(trial, other, key=lambda one: one.score)

        best = _Trial([], METHODS[0])
        for kwargs in GRIDS:
            best = better(best, judged(_Trial(nodes(**kwargs), METHODS[0])))
        for method in METHODS:
            best = better(best, judged(replace(best, method=method)))
        for i in range(n - 1):
            for move in MOVES:
                moved = [value + move * (i == j) for j, value in enumerate(best.log_snr)]
                if (self.times(moved).diff() > 0).all():
                    best = better(best, judged(replace(best, log_snr=moved)))
                else:
                    advance(n)
        return best

    @torch.no_grad()
    def fit(self, trial: _Trial) -> _Trial:
        """Return the trial with the read-out fitted to one half, judged on the other."""
        times = self.times(trial.log_snr)
        solver = self.solver(trial.method)
        features, own = self.features(solver, times)
        half = len(features) // 2
        readout = _fit(features[:half], self.target[:half], own)
        error = (features[half:] @ readout - self.target[half:]).square().mean(1)
        return replace(
            trial,
            readout=tuple(readout.tolist()),
            rms=error.mean().sqrt().item(),
            median=error.sqrt().median().item(),
        )

    def features(self, solver: Solver, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the last step can combine, `(n, dims, steps + 1)`, and its own weights."""
        plan = solver.plan(times)
        scale = 1 / sum(self.scheduler.sampling_path(plan[-1].t)[:2]).item()
        gains = [solver.slope(torch.tensor(step.t).double())[1].item() for step in plan]
        features = []
        for part, field in self.parts():
            x, memory, slopes = self.start[part], (), []
            for step, gain in zip(plan, gains, strict=True):
                before, q = x, field(x, torch.tensor(step.t, dtype=torch.float64))
                x, memory = update(step, memory, x, q)
                slopes.append(gain * memory[0])
            columns = [scale * before, *slopes[::-1]]
            features.append(torch.stack([_flat(c) for c in columns], -1))
        row = list(plan[-1].row(len(plan)))
        own = [row[0] / scale] + [w / g for w, g in zip(row[1:], gains[::-1], strict=False)]
        own += [0.0] * (len(plan) + 1 - len(own))
        return torch.cat(features), torch.tensor(own, dtype=torch.float64) / self.end_scale


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).cpu().double()


def _fit(features: Tensor, target: Tensor, own: Tensor, ridge: float = 1e-6) -> Tensor:
    """Return the weights of reweighted least squares, drawn a little towards the method's own."""
    gram = torch.einsum("ndi,ndj->nij", features, features)
    moment = torch.einsum("ndi,nd->ni", features, target)
    weights = own
    for _ in range(20):
        error = (features @ weights - target).square().mean(1)
        omega = 1 / (error + 0.1 * error.median() + 1e-30)
        omega = omega / omega.sum()
        a = torch.einsum("n,nij->ij", omega, gram)
        pull = torch.diag(ridge * a.diagonal() + 1e-12 * a.diagonal().mean())  # of 0 columns too
        weights = torch.linalg.solve(a + pull, omega @ moment + pull @ own)
    return weights
