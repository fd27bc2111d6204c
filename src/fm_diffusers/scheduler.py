r"""`GaussianFlowScheduler`: every Gaussian path and solver in diffusers' scheduler API.

Time runs as diffusers users expect it: `timesteps` descend from `num_train_timesteps` (noise) to 0
(data), `timestep = num_train_timesteps (1 - t)` with the `t` of the theory (0 noise, 1 data), and
`sigmas = 1 - t`. The network is fed `timesteps`. Its output is what `config.prediction_type` says.

The scheduler only keeps the place in a solver's plan; the mathematics is in
`fm_diffusers.solvers`, and a sampling loop equals `fm_diffusers.solvers.integrate` bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.diffusions import Diffusion, get_diffusion
from fm_diffusers.grids import GRIDS, default_parameters
from fm_diffusers.paths import PATHS, GaussianPath
from fm_diffusers.predictions import check_prediction, target
from fm_diffusers.solvers import (
    SOLVERS,
    Calibrated,
    Solver,
    Step,
    combine,
    memory_size,
    update,
)
from fm_diffusers.tables import make

#: Where a default grid starts if the model says nothing at t = 0: alpha/(alpha + beta) there.
INSIDE = 0.01


@dataclass
class GaussianFlowSchedulerOutput(BaseOutput):
    """Output of `GaussianFlowScheduler.step`.

    Attributes:
        prev_sample: the sample at the next timestep, in the wider of the two dtypes given.
        pred_original_sample: the data that the model output predicts, E[z | sample].
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class GaussianFlowScheduler(SchedulerMixin, ConfigMixin):
    r"""Samples a flow or diffusion model as an ODE or as an SDE, on any Gaussian path.

    .. math:: dX = \Big[u_t + \tfrac{\sigma_t^2}{2} \nabla\log p_t\Big] dt + \sigma_t\, dW

    Args:
        num_train_timesteps: scale of the time that the network is fed.
        path: the path of the training, a name in `PATHS`.
        path_kwargs: its parameters.
        prediction_type: what the network predicts, a name in `PREDICTIONS`. `velocity` is dx/dt
            from noise to data; diffusers' flow models predict its negative, `flow_prediction`.
        solver: a name in `SOLVERS`.
        solver_kwargs: its parameters.
        diffusion: the coefficient :math:`\sigma_t` of dW, a name in `DIFFUSIONS`; None is the ODE.
        diffusion_kwargs: its parameters, `{"scale": c}`; they rest while `diffusion` is None.
        grid: spacing of the timesteps, a name in `GRIDS`; None is `logistic` with parameters
            chosen by the number of steps and by whether there is a diffusion.
        grid_kwargs: its parameters.
        t_min: first time of the grid (0 is noise). None is 0, or, where the prediction does not
            determine velocity and data there (noise and score models on paths with alpha = 0, the
            velocity of the polynomial path), the time at which alpha/(alpha + beta) = 0.01.
        t_max: last time of the grid (1 is data). None is 1.
        calibration: what `fm_diffusers.calibration.calibrate` has fitted, by the number of steps.

    Example:
        >>> scheduler = GaussianFlowScheduler(solver="heun")
        >>> scheduler.set_timesteps(2)
        >>> scheduler.timesteps
        tensor([1000.,  500.,  500.,    0.])
        >>> sde = GaussianFlowScheduler.from_config(scheduler.config, diffusion="memoryless")

    References: Lipman et al., https://arxiv.org/abs/2210.02747; Song et al.,
    https://arxiv.org/abs/2011.13456; Ma et al., https://arxiv.org/abs/2401.08740.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        path: str = "linear",
        path_kwargs: dict[str, float] | None = None,
        prediction_type: str = "velocity",
        solver: str = "predictor_corrector",
        solver_kwargs: dict[str, Any] | None = None,
        diffusion: str | None = None,
        diffusion_kwargs: dict[str, float] | None = None,
        grid: str | None = None,
        grid_kwargs: dict[str, float] | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        calibration: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= (t_min or 0) < (1 if t_max is None else t_max) <= 1:
            raise ValueError(f"0 <= t_min < t_max <= 1 must hold, got {t_min} and {t_max}")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}")
        check_prediction(prediction_type)
        self.path: GaussianPath = make("path", PATHS, path, path_kwargs)
        self.order = self._solver().evaluations
        self._grid(num_inference_steps=2, first=0.0, last=1.0)  # raises now, not when sampling
        self.sigmas = torch.arange(num_train_timesteps, 0, -1) / num_train_timesteps
        self.timesteps = num_train_timesteps * self.sigmas
        self.num_inference_steps: int | None = None
        self._plan: list[Step] = []
        self._to_sample: list[tuple[float, float]] = []
        self._reset(None)

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any] | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Make a scheduler from a configuration, with `kwargs` in place of what it says.

        Raises:
            ValueError: if another scheduler's configuration comes without `path` and
                `prediction_type`: which sign its network has is not guessed.
        """
        foreign = "num_train_timesteps" in (config or {}) and "path" not in config
        if foreign and not {"path", "prediction_type"} <= set(kwargs):
            raise ValueError(
                "this is the configuration of another scheduler: say what its network predicts on "
                'which path, for diffusers\' flow models from_config(config, path="linear", '
                'prediction_type="flow_prediction")'
            )
        return super().from_config(config, return_unused_kwargs, **kwargs)

    # --- time ------------------------------------------------------------------------------------

    def to_time(self, timesteps: Tensor) -> Tensor:
        """Return the time `t = 1 - timesteps/num_train_timesteps` (0 noise, 1 data)."""
        return 1 - timesteps / self.config.num_train_timesteps

    def to_timestep(self, t: Tensor) -> Tensor:
        """Return `num_train_timesteps (1 - t)`, what the network is fed at time `t`."""
        return self.config.num_train_timesteps * (1 - t)

    @property
    def diffusion(self) -> Diffusion | None:
        """The coefficient of dW, or None for the ODE."""
        name, parameters = self.config.diffusion, self.config.diffusion_kwargs
        if name is None:
            return None
        return make("diffusion", {name: partial(get_diffusion, name)}, name, parameters)

    def _solver(self) -> Solver:
        model = {"path": self.path, "prediction": self.config.prediction_type}
        name, parameters = self.config.solver, self.config.solver_kwargs
        return make("solver", SOLVERS, name, parameters, **model, diffusion=self.diffusion)

    def _grid(self, num_inference_steps: int, first: float, last: float) -> Tensor:
        given = {"n": num_inference_steps, "path": self.path, "t_min": first, "t_max": last}
        name, parameters = self.config.grid, self.config.grid_kwargs
        if name is None:
            chosen = default_parameters(num_inference_steps, self._solver().noisy)
            name, parameters = "logistic", chosen | (parameters or {})
        return make("grid", GRIDS, name, parameters, **given)

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
            sigmas: noise times `1 - t` at which the intervals start, descending; the end of the
                grid is added.
            mu: passed by diffusers' flow pipelines; this grid does not depend on it.
            timesteps: the same starts, on the scale of the network.

        Raises:
            ValueError: if not exactly one of the three says where to go, or the model says nothing
                at one of the times.
        """
        solver, last = self._solver(), 1.0 if self.config.t_max is None else self.config.t_max
        if sigmas is not None and timesteps is not None:
            raise ValueError("give sigmas or timesteps, not both")
        if sigmas is not None or timesteps is not None:
            scale = 1 if sigmas is None else self.config.num_train_timesteps
            starts = torch.as_tensor(timesteps if sigmas is None else sigmas, dtype=torch.float64)
            times = self.to_time(scale * starts.reshape(-1).cpu())
            times = torch.cat([times, torch.tensor([last], dtype=torch.float64)])
            if not (times.diff() > 0).all():
                raise ValueError(
                    "sigmas or timesteps must descend strictly and stop before the end of the "
                    f"grid, {self.to_timestep(last):g} as a timestep, which is added to them; "
                    f"got {starts.tolist()}"
                )
        elif (found := self._calibrated(num_inference_steps)) is not None:
            solver, times = found
        elif not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be an integer of at least 1, got {num_inference_steps};"
                " or give sigmas or timesteps"
            )
        else:
            times = self._grid(num_inference_steps, *self.ends(solver))
        # the times that float32 timesteps stand for, so that model and solver agree on them
        times = self.to_time(self.to_timestep(times).float().double())
        self.num_inference_steps = len(times) - 1
        self._plan = solver.plan(times)
        self._memory_size = memory_size(self._plan)
        nodes = torch.tensor([step.t for step in self._plan] + [times[-1]], dtype=torch.float64)
        self._to_sample = torch.stack(solver.convert("sample", nodes[:-1]), 1).tolist()
        self._table = _tabulated(self._plan, self._to_sample, self._memory_size)
        self.timesteps = self.to_timestep(nodes[:-1]).to(device, torch.float32)
        self.sigmas = (1 - nodes).to(device, torch.float32)
        self._reset(None)

    def ends(self, solver: Solver) -> tuple[float, float]:
        """Return the first and the last time of a grid."""
        c = self.config
        first = self._first_time(solver) if c.t_min is None else c.t_min
        return first, 1.0 if c.t_max is None else c.t_max

    @property
    def calibrated_for(self) -> dict[str, Any]:
        """The part of the configuration under which a calibration holds."""
        names = ("solver", "solver_kwargs", "grid", "grid_kwargs", "t_min", "t_max")
        return {name: self.config[name] for name in names}

    def calibrated_times(self, log_snr: list[float]) -> Tensor:
        """Return the grid with these log-SNRs between its ends."""
        first, last = self.ends(self._solver())
        inner = self.path.time(torch.tensor(log_snr, dtype=torch.float64))
        return torch.tensor([first, *inner.tolist(), last], dtype=torch.float64)

    def _calibrated(self, num_inference_steps: int | None) -> tuple[Solver, Tensor] | None:
        """Return the solver and grid fitted for so many steps, if there are, and if they hold."""
        calibration = self.config.calibration or {}
        found = calibration.get("steps", {}).get(str(num_inference_steps))
        if found is None or calibration["for"] != self.calibrated_for or self._solver().noisy:
            return None
        model = {"path": self.path, "prediction": self.config.prediction_type}
        solver = Calibrated(**model, **found["method"], readout=tuple(found["readout"]))
        return solver, self.calibrated_times(found["log_snr"])

    def _first_time(self, solver: Solver) -> float:
        if solver.exists(0.0) and all(map(math.isfinite, solver.convert("sample", 0.0))):
            return 0.0
        return self.path.time(torch.logit(torch.tensor(INSIDE, dtype=torch.float64))).item()

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from, beta at the first time."""
        first = self._plan[0].t if self._plan else 0.0
        return self.path.beta(first).item()

    # --- the place in the plan -------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Index of the next `step` in `timesteps`; None before the first."""
        return self._step_index

    @property
    def _step_index(self) -> int | None:
        return int(self._index) if self._begun else None

    @_step_index.setter
    def _step_index(self, index: int) -> None:
        self._index = torch.tensor(index)

    @property
    def begin_index(self) -> int | None:
        """Index at which the loop begins, as set by `set_begin_index`."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the loop at `timesteps[begin_index]`, which must be the start of an interval."""
        self._reset(begin_index)

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Return the index of the nearest timestep at which an interval starts.

        Solvers with several evaluations ask at an interval's end and again at the start of the
        next; a loop begins at the latter. In another schedule it is the nearest of all.
        """
        if schedule_timesteps is not None or not self._plan:
            schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
            return (schedule - torch.as_tensor(timestep).to(schedule)).abs().argmin().item()
        return self._nearest_start(timestep).item()

    def _nearest_start(self, timestep: float | Tensor) -> Tensor:
        distance = (self.timesteps - torch.as_tensor(timestep).to(self.timesteps)).abs()
        starts = torch.tensor(self._starts, device=distance.device)
        return starts.take(distance[starts].argmin())

    @property
    def _starts(self) -> list[int]:
        """Indices of the timesteps at which an interval starts."""
        ends = [i + 1 for i, step in enumerate(self._plan) if step.ends_interval]
        return [0, *ends[:-1]]

    def _reset(self, begin_index: int | None) -> None:
        self._begin_index, self._begun = begin_index, False
        # on the CPU, so that reading them never waits for an accelerator
        self._index = self._first = torch.tensor(0)
        self._memory: tuple[Tensor, ...] = ()
        self._kept: tuple[Tensor, int, Tensor] | None = None

    def _begin(self, timestep: float | Tensor) -> None:
        if not self._plan:
            raise ValueError("call set_timesteps before step: there is no grid to step on yet")
        index, starts = self._begin_index, self._starts
        if index is not None and index not in starts:
            raise ValueError(
                f"a loop begins at the start of an interval, one of the indices {starts}, "
                f"got index {index}"
            )
        if index is not None:
            self._index = torch.tensor(index)
        elif not torch.compiler.is_compiling() and _is_element(timestep, self.timesteps):
            # an element of `timesteps` knows its place, without asking the device
            place = timestep.storage_offset()
            self._index = torch.tensor(max(start for start in starts if start <= place))
        else:
            self._index = self._nearest_start(timestep).cpu()
        self._first, self._begun = self._index, True

    # --- sampling --------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return the sample as it is: the network is fed what the path says."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> GaussianFlowSchedulerOutput | tuple[Tensor, Tensor]:
        """Take one model output and return the sample at which the model is asked next.

        Computed in float32 or better. A sample that was handed out in a lower precision and comes
        back as it was goes on from its float32 value.

        Args:
            model_output: what the network predicted, shape `(batch, ...)`.
            timestep: the current one of `timesteps`; it decides where a loop begins.
            sample: the current sample.
            generator: of the noise of an SDE, or one for each sample.
            return_dict: whether to return a `GaussianFlowSchedulerOutput` or a tuple.
            **kwargs: what diffusers' pipelines pass to other schedulers; not used.

        Raises:
            ValueError: before `set_timesteps`, past the last timestep, or for unequal shapes.
        """
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output and sample must have one shape, got {tuple(model_output.shape)} "
                f"and {tuple(sample.shape)}"
            )
        if not self._begun:
            self._begin(timestep)
        out_dtype = torch.promote_types(model_output.dtype, sample.dtype)
        dtype = torch.promote_types(out_dtype, torch.float32)
        x, q = self._exact(sample).to(dtype), model_output.to(dtype)
        advance = self._advance_traced if torch.compiler.is_compiling() else self._advance
        moved, original = advance(x, q, generator)
        self._index = self._index + 1
        x, original = moved.to(out_dtype), original.to(out_dtype)
        self._keep(x, moved)
        return GaussianFlowSchedulerOutput(x, original) if return_dict else (x, original)

    def _advance(self, x: Tensor, q: Tensor, generator: Any) -> tuple[Tensor, Tensor]:
        """Return the next sample and the data prediction, by the weights of the plan."""
        index, past = int(self._index), int(self._index - self._first)
        if index >= len(self._plan):
            raise ValueError(
                f"all {len(self._plan)} timesteps are done: call set_timesteps to sample again"
            )
        step, noise = self._plan[index], None
        if step.std:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        original = combine(self._to_sample[index], (x, q))
        x, self._memory = update(step, self._memory[:past], x, q, noise, self._memory_size)
        return x, original

    def _advance_traced(self, x: Tensor, q: Tensor, generator: Any) -> tuple[Tensor, Tensor]:
        """Do the same with weights as tensors: one graph for the steps of a compiled loop."""
        depth = self._table.shape[1]
        past = (self._index - self._first).clamp(max=depth - 1)
        row = self._table.flatten(0, 1).index_select(0, (self._index * depth + past).reshape(1))
        a, b, z_x, z_q, std, c, *w = row[0].unbind()
        k = a * x + b * q
        missing = range(self._memory_size - len(self._memory))
        slopes = (k, *self._memory, *(torch.zeros_like(k) for _ in missing))
        moved = c * x
        for weight, slope in zip(w, slopes, strict=True):
            moved = moved + weight * slope
        if any(step.std for step in self._plan):
            shape = {"device": x.device, "dtype": x.dtype}
            moved = moved + std * randn_tensor(x.shape, generator=generator, **shape)
        self._memory = slopes[: self._memory_size]
        return moved, z_x * x + z_q * q

    def _keep(self, given: Tensor, exact: Tensor) -> None:
        """Remember the float32 value of a sample that is handed out in a lower precision."""
        if given is not exact and not torch.compiler.is_compiling() and not given.is_inference():
            self._kept = given, given._version, exact

    def _exact(self, sample: Tensor) -> Tensor:
        """Return the float32 value of a sample that was handed out and not changed since."""
        if self._kept is None:
            return sample
        given, version, exact = self._kept
        return exact if sample is given and sample._version == version else sample

    # --- training --------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Return :math:`x_t = \alpha_t z + \beta_t \varepsilon` at `timesteps`, of any value.

        Args:
            original_samples: data, shape `(batch, ...)`.
            noise: standard normal noise of that shape.
            timesteps: shape `(batch,)` or one for all.
        """
        return self.path.flow_map(original_samples, noise, self._times_of(timesteps, noise))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return `add_noise(sample, noise, timestep)`, in the order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Return :math:`\alpha_t \varepsilon - \beta_t z`, the target of `v_prediction` models.

        That is diffusers' meaning of the name. The velocity dx/dt of the path is
        `target(scheduler.path, "velocity", ...)` in `fm_diffusers.predictions`.
        """
        t = self._times_of(timesteps, noise)
        return target(self.path, "v_prediction", sample, noise, t)

    def _times_of(self, timesteps: Tensor, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        t = self.to_time(torch.as_tensor(timesteps).to(like.device, dtype))
        return t[0] if t.shape == (1,) else t

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _is_element(timestep: float | Tensor, timesteps: Tensor) -> bool:
    return isinstance(timestep, Tensor) and timestep._base is timesteps


def _tabulated(plan: list[Step], to_sample: list, memory_size: int) -> Tensor:
    """Return the weights of a plan as one tensor `(steps, past slopes, weights)`."""
    pasts = range(max(len(step.rows) for step in plan))
    width = memory_size + 2
    return torch.tensor(
        [
            [
                [*step.slope, *z, step.std, *row, *[0.0] * (width - len(row))]
                for row in map(step.row, pasts)
            ]
            for step, z in zip(plan, to_sample, strict=True)
        ],
        dtype=torch.float64,
    )
