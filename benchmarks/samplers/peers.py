r"""The samplers of others, driven by their own code the way their users drive them.

A peer is called as `peer(field, x, nfe, grid=None, **options)` and returns its endpoint. `field`
is the exact one: on the linear path the velocity of this package (t = 0 noise, 1 data), on the
variance preserving path :math:`E[\varepsilon|x]`. A peer asks it at most `nfe` times, which is
asserted; methods with several evaluations a step take as many steps as fit.

**Linear path.** diffusers' flow models predict `-velocity` at sigma = 1 - t and are fed
`timestep = 1000 sigma`, so the field is asked at t = 1 - timestep/1000 with whatever timestep the
scheduler gives, truncated to an integer or not: that is how users' networks are fed.

**Variance preserving path.** `trained_betas` are the discretisation of our path,
:math:`\bar\alpha_i = \alpha(1 - (i + 1)/1000)^2`, so that timestep i is t = 1 - (i + 1)/1000 and
999 is t = 0; they are DDPM's linear betas from 1e-4 to 0.02 up to O(1e-3) relative.

**Default** is `set_timesteps(nfe)` and nothing else. **Tuned** is the best, chosen on the test set
itself, of each peer's `native` options and of our `GRIDS` forced in, by overwriting sigmas and
timesteps after `set_timesteps`, with exact float times. Where log-SNR would be infinite
at sigma = 1 they get 1 - 1e-6, as UniPC does by itself. DEIS appends its last sigma in place of
the end of the path, so that its last step stands still; forced grids give it `END` instead, at
which its formulas still exist.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from benchmarks.samplers.spacings import Grid
from fm_diffusers.fields import Field
from fm_diffusers.paths import VariancePreserving

#: The last sigma that is forced on schedulers that do not reach 0.
END = 1e-3


def counted(f: Field, nfe: int) -> Field:
    """Return the field that may be asked `nfe` times."""
    asked = 0

    def ask(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        assert asked <= nfe, f"more than {nfe} evaluations"
        return f(x, t)

    return ask


@dataclass(frozen=True)
class Peer:
    """What all peers have: the options among which tuning chooses, and whether grids fit in.

    Attributes:
        defaults: option sets that users take for granted; the best counts as the default.
        native: further option sets of its own.
        takes_grid: whether a grid can be forced in.
    """

    defaults: tuple[dict[str, Any], ...] = field(default=({},), kw_only=True)
    native: tuple[dict[str, Any], ...] = field(default=(), kw_only=True)
    takes_grid: bool = field(default=True, kw_only=True)

    def settings(self, grids: dict[str, Grid]) -> list[tuple[str, str, Grid | None, dict]]:
        """Return all ways to call the peer: kind, name, grid and options."""
        default = [("default", _name(o), None, o) for o in self.defaults]
        native = [("tuned", _name(o), None, o) for o in self.native]
        forced = [("tuned", name, grid, {}) for name, grid in grids.items()]
        return default + native + (forced if self.takes_grid else [])


def _name(options: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in options.items()) or "own"


@dataclass(frozen=True)
class Flow(Peer):
    """A scheduler of diffusers on the linear path."""

    scheduler: type
    config: dict[str, Any] = field(default_factory=dict)
    end: float = 0.0

    def __call__(
        self,
        velocity: Field,
        x: Tensor,
        nfe: int,
        grid: Grid | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample; `linspace` stands for the pipelines' sigmas from 1 to 1/nfe."""
        linspace = options.pop("linspace", False)
        scheduler = self.scheduler(**self.config | options)
        heun = self.scheduler is diffusers.FlowMatchHeunDiscreteScheduler
        steps = (nfe + 1) // 2 if heun else nfe
        sigmas = {"sigmas": np.linspace(1, 1 / nfe, nfe)} if linspace else {}
        scheduler.set_timesteps(steps, **sigmas)
        if grid is not None:
            _force(scheduler, grid(steps), self.end, repeat=heun)
        scheduler.set_begin_index(0)
        ask = counted(velocity, nfe)
        known = inspect.signature(scheduler.step).parameters
        noise = {"generator": generator} if "generator" in known else {}
        for t in scheduler.timesteps:
            output = -ask(x, 1 - t.double() / 1000)
            x = scheduler.step(output, t, x, return_dict=False, **noise)[0]
        return x


def _force(scheduler: Any, sigmas: Tensor, end: float, repeat: bool = False) -> None:
    """Overwrite what `set_timesteps` chose, with times that are exact in float64."""
    first = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler) or repeat
    sigmas = sigmas if first else sigmas.clamp(max=1 - 1e-6)
    last = sigmas.new_full((1,), end)
    if repeat:
        sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    scheduler.sigmas = torch.cat([sigmas, last]).float()
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1].double()


@dataclass(frozen=True)
class Meta(Peer):
    """A method of `flow_matching.solver.ODESolver`, with so many evaluations a step."""

    method: str
    evaluations: int

    def __call__(self, velocity: Field, x: Tensor, nfe: int, grid: Grid | None = None) -> Tensor:
        """Sample with equal steps or on a grid."""
        from flow_matching.solver import ODESolver

        steps, ask = nfe // self.evaluations, counted(velocity, nfe)
        sigmas = grid(steps) if grid else 1 - torch.arange(steps, dtype=torch.float64) / steps
        times = torch.cat([1 - sigmas, sigmas.new_ones(1)])
        solver = ODESolver(lambda x, t: ask(x, t))
        return solver.sample(x, step_size=None, method=self.method, time_grid=times)


@dataclass(frozen=True)
class Preserving(Peer):
    """A scheduler of diffusers on the variance preserving path, with an epsilon model."""

    scheduler: type
    config: dict[str, Any] = field(default_factory=dict)
    step_options: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        epsilon: Field,
        x: Tensor,
        nfe: int,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample with the most steps that need no more than `nfe` evaluations."""
        scheduler = self.scheduler(trained_betas=BETAS, **self.config | options)
        for steps in range(nfe, 0, -1):
            scheduler.set_timesteps(steps)
            if len(scheduler.timesteps) <= nfe:
                break
        ask, x = counted(epsilon, nfe), x * scheduler.init_noise_sigma
        noise = {"generator": generator} if generator else {}
        for t in scheduler.timesteps:
            output = ask(scheduler.scale_model_input(x, t), 1 - (t.double() + 1) / 1000)
            x = scheduler.step(output, t, x, return_dict=False, **noise, **self.step_options)[0]
        return x


def _betas() -> np.ndarray:
    times = 1 - torch.arange(1001, dtype=torch.float64) / 1000
    products = VariancePreserving().alpha(times) ** 2
    return (1 - products[1:] / products[:-1]).numpy()


BETAS = _betas()
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_SHIFTS = tuple({"flow_shift": shift} for shift in (2.0, 3.0))
_KARRAS = ({"use_karras_sigmas": True},)
_EULER = {"defaults": ({}, {"linspace": True}), "native": ({"shift": 2.0}, {"shift": 3.0})}
_UNIPC, _DPM = diffusers.UniPCMultistepScheduler, diffusers.DPMSolverMultistepScheduler

#: On the linear path, asked for velocity.
FLOW_PEERS: dict[str, Peer] = {
    "FlowMatchEuler": Flow(diffusers.FlowMatchEulerDiscreteScheduler, **_EULER),
    "FlowMatchHeun": Flow(diffusers.FlowMatchHeunDiscreteScheduler, native=_EULER["native"]),
    "UniPC-2": Flow(_UNIPC, _FLOW, native=_SHIFTS + _KARRAS),
    "UniPC-3": Flow(_UNIPC, _FLOW | {"solver_order": 3}, native=_SHIFTS + _KARRAS),
    "DPM++2M": Flow(_DPM, _FLOW, native=_SHIFTS),
    "DPM++3M": Flow(_DPM, _FLOW | {"solver_order": 3}, native=_SHIFTS),
    "DEIS": Flow(diffusers.DEISMultistepScheduler, _FLOW, native=_SHIFTS, end=END),
    "Meta euler": Meta("euler", 1),
    "Meta midpoint": Meta("midpoint", 2),
    "Meta heun2": Meta("heun2", 2),
    "Meta heun3": Meta("heun3", 3),
    "Meta rk4": Meta("rk4", 4),
}

_SPACINGS = tuple({"timestep_spacing": s} for s in ("leading", "linspace", "trailing"))
_SIGMAS = tuple({f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas"))
_LU = ({"use_lu_lambdas": True},)

#: On the variance preserving path, asked for epsilon: scheduler, configuration, native options.
_PRESERVING: dict[str, tuple[type, dict[str, Any], tuple]] = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False}, _SPACINGS),
    "DPM++2M": (_DPM, {}, _SPACINGS + _SIGMAS + _LU),
    "DPM++3M": (_DPM, {"solver_order": 3}, _SPACINGS + _SIGMAS + _LU),
    "UniPC-2": (_UNIPC, {}, _SPACINGS + _SIGMAS),
    "UniPC-3": (_UNIPC, {"solver_order": 3}, _SPACINGS + _SIGMAS),
    "EulerDiscrete": (diffusers.EulerDiscreteScheduler, {}, _SPACINGS + _SIGMAS),
    "HeunDiscrete": (diffusers.HeunDiscreteScheduler, {}, _SPACINGS + _SIGMAS),
    "DEIS": (diffusers.DEISMultistepScheduler, {}, _SPACINGS + _SIGMAS),
    "LMS": (diffusers.LMSDiscreteScheduler, {}, _SPACINGS + _SIGMAS),
    "PNDM": (diffusers.PNDMScheduler, {"skip_prk_steps": True}, _SPACINGS),
}
VP_PEERS: dict[str, Peer] = {
    name: Preserving(scheduler, config, native=native, takes_grid=False)
    for name, (scheduler, config, native) in _PRESERVING.items()
}
