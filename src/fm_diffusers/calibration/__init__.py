r"""Calibration: fit the grid and the steps of a few-step sampler to one model.

A model's trajectories from noises :math:`\varepsilon_i` converge in many evaluations, once, to
states :math:`y_i(\rho)` at every signal-to-noise ratio, with :math:`y = x/(\alpha + \beta)`. A
few-step method from the same noises gives :math:`y_n` and the slopes :math:`k_0, \dots, k_n`; the
row of its step that is right for this model solves

.. math:: \min_{c, w} \sum_i \omega_i \Big\| y_i(\rho_{n+1}) - c\, y^{(i)}_n
          - \sum_j w_j k^{(i)}_{n-j} \Big\|^2, \qquad \omega_i = \frac{1}{e_i^2 + \delta},

with a small ridge towards the method's own weights; the weights :math:`\omega` (iteratively
reweighted least squares) keep the few samples that end in another mode from ruling the fit. There
is no back-propagation. The last step is fitted, or every one in turn, each to the states that the
fitted ones before it lead to. Grids and methods are tried in turn, then the rows of every step,
and the steps of the best are moved one by one; each trial is fitted on one half of the noises and
judged on the other.

The result is part of the scheduler's configuration: `save_pretrained` ships it, `from_pretrained`
uses it. It is kept relative to signal-to-noise ratios, so that it does not depend on the path.

Reference for rows of a few steps that are fitted to a model: Shaul et al., "Bespoke
Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models",
https://arxiv.org/abs/2403.01329 (by back-propagation).
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fm_diffusers.calibration.problem import Problem
from fm_diffusers.calibration.searching import search, trials
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.scheduling.checks import check_steps
from fm_diffusers.scheduling.parts import calibrated_for


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
        reference_steps: steps of the converged trajectories, whose states are kept on the CPU.
        batch_size: samples a model evaluation.
        generator: of the noise for a pipeline.
        progress: whether to show a progress bar.
        **conditions: for a network, passed on, tensors with a value for each noise cut to the
            batch; for a pipeline, `class_labels` (by default all in
            turn) and `guidance_scale`: a calibration holds for one guidance scale.

    Returns:
        The scheduler.

    Raises:
        ValueError: for a network without noise, too little noise or too few steps, samples that
            are not finite, or a flow map, whose steps have no error that weights could mend.
    """
    if scheduler.solver.two_times:
        raise ValueError(
            "a flow map has nothing to calibrate, its network has learned whole steps: calibrate "
            'the scheduler of its teacher, or one with solver="predictor_corrector"'
        )
    several = isinstance(num_inference_steps, Sequence | Tensor)
    given: Any = num_inference_steps if several else [num_inference_steps]
    steps = [check_steps(n) for n in given]
    if min(steps, default=0) < 2:
        raise ValueError(f"num_inference_steps must be at least 2 to be calibrated, got {steps}")
    for name, value in (("reference_steps", reference_steps), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if hasattr(model, "calibration_field"):
        field, noise = model.calibration_field(num_samples, generator, noise, **conditions)
    else:
        field = _in_parts(model, scheduler, noise, conditions)
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or len(noise) < 4:
        raise ValueError(
            "pass noise=torch.randn(n, ...) of the shape of the samples, n at least 4 (128 is a "
            f"good number), got {tuple(noise.shape) if isinstance(noise, Tensor) else noise}"
        )
    ode = type(scheduler).from_config(scheduler.config, diffusion=None)
    total = reference_steps + sum(n * trials(n) for n in steps)
    table = {}
    with tqdm(total=total, desc="calibrating", unit="step", disable=not progress) as bar:
        problem = Problem(ode, field, noise, batch_size, reference_steps)
        bar.update(reference_steps)
        for n in steps:
            best = search(problem, n, bar.update)
            table[str(n)] = {
                "log_snr": best.log_snr,
                "method": best.method,
                "rows": [list(row) for row in best.rows],
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
    if not callable(model):
        raise ValueError(f"model must be a network or a pipeline, got {model!r}")
    count = len(noise) if isinstance(noise, Tensor) else None

    def field(x: Tensor, t: Tensor, part: slice) -> Tensor:
        own = {
            name: value[part]
            if isinstance(value, Tensor) and value.shape[:1] == (count,)
            else value
            for name, value in conditions.items()
        }
        timestep = scheduler.to_timestep(t).to(x.device, torch.float32)
        output = model(scheduler.scale_model_input(x, timestep), timestep, **own)
        first = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(first, Tensor) or first.shape != x.shape:
            raise ValueError(
                f"the network must return its prediction, of the shape {tuple(x.shape)}, alone or "
                f"first in a tuple, got {getattr(first, 'shape', type(first).__name__)!s}"
            )
        return first

    return field
