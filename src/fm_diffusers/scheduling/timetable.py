r"""From a configuration to a plan: the grid, the solver and its weights.

The half of `GaussianFlowScheduler` that runs before the loop. Its times t are those of the path on
which the samples are.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion, get_diffusion
from fm_diffusers.grids import GRIDS, default_parameters
from fm_diffusers.paths import GaussianPath, as_time
from fm_diffusers.scheduling.clock import RESPACINGS, Clock
from fm_diffusers.scheduling.stepping import Stepping
from fm_diffusers.solvers import SOLVERS, Calibrated, Solver, Step
from fm_diffusers.tables import make

#: Where a default grid starts if the model says nothing at t = 0: alpha/(alpha + beta) there.
INSIDE = 0.01

#: Rows of PATHS and GRIDS whose parameters are keys of the configuration by diffusers' names.
CONFIGURED = {"discrete", "flow_match", "flow_multistep", "ddim", "euler_discrete", "multistep"}

#: Rows of GRIDS whose times are those of a table.
ON_TABLES = {"ddim", "euler_discrete", "multistep"}


class Timetable(Clock, Stepping):
    """Makes plans from `config`, the path of the training and that of the samples."""

    @property
    def diffusion(self) -> Diffusion | None:
        """The coefficient of dW, or None for the ODE."""
        name, parameters = self.config.diffusion, self.config.diffusion_kwargs
        if name is None:
            return None
        return make("diffusion", {name: partial(get_diffusion, name)}, name, parameters)

    def _make(
        self, kind: str, table: dict[str, Callable], name: str, parameters: Any, **given: Any
    ) -> Any:
        """Make an entry of a table, with parameters of the configuration for some; see `make`."""
        if name in CONFIGURED:
            known = inspect.signature(table[name]).parameters
            given |= {k: self.config[k] for k in known if k in self.config and k not in given}
        return make(kind, table, name, parameters, **given)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """What a solver is told about the model."""
        other = None if self.sampling_path is self.path else self.path
        prediction = self.config.prediction_type
        return {"path": self.sampling_path, "prediction": prediction, "model_path": other}

    def _solver(self) -> Solver:
        name, parameters = self.config.solver, self.config.solver_kwargs
        return make(
            "solver", SOLVERS, name, parameters, **self.model_kwargs, diffusion=self.diffusion
        )

    def _grid(self, n: int, first: float, last: float, path: GaussianPath) -> Tensor:
        given = {"n": n, "path": path}
        name, parameters = self.config.grid, self.config.grid_kwargs
        if name is None:
            chosen = default_parameters(n, self._solver().noisy)
            name, parameters = "logistic", chosen | (parameters or {})
        return self._make("grid", GRIDS, name, parameters, **given, t_min=first, t_max=last)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the grid and compute the weights of every step, in float64.

        Args:
            num_inference_steps: number of intervals; each costs `order` model evaluations, one
                where the model's prediction type is singular at the interval's end.
            device: where `timesteps` live.
            sigmas: noise levels `1 - t` (`beta/alpha` for a table and where the network is fed its
                logarithm) at which the intervals start, descending; they are shifted and spaced
                as the configuration says, and the end of the grid is added. A last one of 0, as
                in `AysSchedules`, is this end.
            mu: the shift, where `use_dynamic_shifting` is on; else not used.
            timesteps: the starts on the scale of the network, as they are. Beside `sigmas` they
                are what the network is fed there.

        Raises:
            ValueError: if nothing says where to go, `mu` is missing, or the model says nothing at
                one of the times.
        """
        if sigmas is not None and len(sigmas) > 1 and sigmas[-1] == 0 and timesteps is None:
            sigmas = sigmas[:-1]
        given = timesteps if sigmas is None else sigmas
        if given is not None and num_inference_steps not in (None, len(given)):
            raise ValueError(
                f"num_inference_steps={num_inference_steps} contradicts {len(given)} sigmas or "
                "timesteps: leave it out"
            )
        if given is None:
            solver, starts = self._laid_out(num_inference_steps, mu)
        else:
            solver, starts = self._solver(), self._as_given(sigmas, mu, timesteps)
        # the times that float32 timesteps stand for, so that model and solver agree on them
        fed_to = self.to_time(self.to_timestep(starts).float().double())
        starts = torch.where((starts >= 0) & (starts <= 1), fed_to.clamp(0, 1), fed_to)
        self.num_inference_steps, last = len(starts), self.ends(solver)[1]
        nodes = self._take(self._planned(solver, starts, last, given is None), solver, last)
        self.timesteps = self.to_timestep(nodes[:-1]).to(device, torch.float32)
        if sigmas is not None and timesteps is not None:
            self.timesteps = self._between(starts, timesteps, last).to(device, torch.float32)
        self.sigmas = self._sigmas(nodes).to(device, torch.float32)

    def _laid_out(self, n: int | None, mu: float | None) -> tuple[Solver, Tensor]:
        """Return the solver and where `n` steps start, as calibrated or as the grid says."""
        if (found := self._calibrated(n)) is not None:
            return found[0], found[1][:-1]
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(
                f"num_inference_steps must be an integer of at least 1, got {n}; or give sigmas "
                "or timesteps"
            )
        n, solver = int(n), self._solver()
        starts = self._grid(n, *self.ends(solver), self.sampling_path)[:-1]
        if self.sampling_path is not self.path and self.config.grid in ON_TABLES:
            starts = self.sampling_path.time(self.path.log_snr(starts))
        return solver, self._warped(starts, mu)

    def _as_given(
        self,
        sigmas: Sequence[float] | Tensor | None,
        mu: float | None,
        timesteps: Sequence[float] | Tensor | None,
    ) -> Tensor:
        """Return where steps start by the user's sigmas, or else timesteps."""
        given = timesteps if sigmas is None else sigmas
        values = torch.as_tensor(given, dtype=torch.float64).reshape(-1).cpu()
        if sigmas is None:
            starts = self.to_time(values)
        else:
            n = self.config.num_train_timesteps
            starts = self._convention.time_of_sigma(self.sampling_path, n, values)
            starts = self._warped(starts, mu)
        last = self.ends(self._solver())[1]
        if not (_with_end(starts, last).diff() > 0).all():
            raise ValueError(
                "sigmas or timesteps must descend strictly and stop before the end of the "
                f"grid, {self.to_timestep(torch.tensor(last)):g} as a timestep, which is added to "
                f"them; got {list(given)}"
            )
        return starts

    def _planned(self, solver: Solver, starts: Tensor, last: float, own: bool) -> list[Step]:
        """Return the plan through times that start the intervals and the last time.

        DDIM steps by `num_train_timesteps // n` whatever the spacing, so that its steps do not end
        where the next one starts if they are spaced by something else. `solver="ddim"` on
        `grid="ddim"` as it is does the same.
        """
        like_ddim = self.config.solver == self.config.grid == "ddim" and not self._warps
        if not (own and like_ddim and self.config.diffusion is None):
            times = _with_end(starts, last)
            plan = solver.plan(times)
            if self.to_timestep(as_time(plan[-1].t)).isfinite():
                return plan
            # a network that is fed ln(sigma) is not asked about sigma = 0: on to the data
            final = SOLVERS["ddim"](**self.model_kwargs, diffusion=solver.diffusion).plan(
                times[-2:]
            )
            return (solver.plan(times[:-1]) if len(starts) > 1 else []) + final
        count = self.config.num_train_timesteps
        stops = starts + (count // len(starts)) / count
        stops = torch.where(stops > 1 - 0.5 / count, last, stops)
        return [step for pair in torch.stack([starts, stops], 1) for step in solver.plan(pair)]

    def _between(self, starts: Tensor, fed: Sequence[float] | Tensor, last: float) -> Tensor:
        """Return what the network is fed at the nodes, linear between what is given for starts."""
        fed = torch.as_tensor(fed, dtype=torch.float64).reshape(-1).cpu()
        if len(fed) != len(starts):
            raise ValueError(f"sigmas and timesteps differ in length: {len(starts)}, {len(fed)}")
        times = _with_end(starts, last)
        fed = torch.cat([fed, self.to_timestep(times[-1:])])
        nodes = self._nodes[:-1]
        cell = (torch.searchsorted(times, nodes, right=True) - 1).clamp(0, len(starts) - 1)
        share = (nodes - times[cell]) / (times[cell + 1] - times[cell])
        return torch.lerp(fed[cell], fed[cell + 1], share)

    def ends(self, solver: Solver) -> tuple[float, float]:
        """Return the first and the last time of a grid."""
        c = self.config
        first = self._first_time(solver) if c.t_min is None else c.t_min
        return first, 1.0 if c.t_max is None else c.t_max

    def _first_time(self, solver: Solver) -> float:
        begin = solver.path.time(self.path.log_snr(0.0)).item()
        for t in (0.0, begin):
            if solver.exists(t) and all(map(math.isfinite, solver.convert("sample", t))):
                return t
        return solver.path.time(torch.logit(torch.tensor(INSIDE, dtype=torch.float64))).item()

    @property
    def calibrated_for(self) -> dict[str, Any]:
        """The part of the configuration under which a calibration holds."""
        names = ["solver", "solver_kwargs", "grid", "grid_kwargs", "t_min", "t_max", "shift"]
        names += ["shift_terminal", "use_dynamic_shifting"]
        names += [f"use_{kind}_sigmas" for kind in RESPACINGS]
        return {name: self.config[name] for name in names}

    def calibrated_times(self, log_snr: list[float]) -> Tensor:
        """Return the grid with these log-SNRs between its ends."""
        first, last = self.ends(self._solver())
        inner = self.sampling_path.time(torch.tensor(log_snr, dtype=torch.float64))
        return torch.tensor([first, *inner.tolist(), last], dtype=torch.float64)

    def _calibrated(self, num_inference_steps: int | None) -> tuple[Solver, Tensor] | None:
        """Return the solver and grid fitted for so many steps, if there are, and if they hold."""
        calibration = self.config.calibration or {}
        found = calibration.get("steps", {}).get(str(num_inference_steps))
        now = self.calibrated_for
        if found is None or now | calibration["for"] != now or self._solver().noisy:
            return None
        solver = Calibrated(
            **self.model_kwargs, **found["method"], readout=tuple(found["readout"])
        )
        return solver, self.calibrated_times(found["log_snr"])

    @property
    def init_noise_sigma(self) -> float:
        r"""Standard deviation :math:`\sqrt{\alpha^2 + \beta^2}` of the noise to start from.

        It is that of samples at the first time for data of variance one, as diffusers has it for
        its diffusion models; 1 on paths that start at pure noise.
        """
        first = self.sampling_path(self._plan[0].t if self._plan else 0.0)
        return torch.hypot(first.alpha, first.beta).item()


def _with_end(starts: Tensor, last: float) -> Tensor:
    return torch.cat([starts, starts.new_tensor([last])])
