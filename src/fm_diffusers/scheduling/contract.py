r"""What diffusers' pipelines and scripts read and write on a scheduler beside its methods.

The configuration and what follows from it; the plan and the place in it, by diffusers' names.
"""

from typing import Any

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion
from fm_diffusers.paths import GaussianPath
from fm_diffusers.scheduling.checks import check
from fm_diffusers.scheduling.clock import Clock
from fm_diffusers.scheduling.frozen import FrozenConfig, public
from fm_diffusers.scheduling.parts import check_parts, make_clock
from fm_diffusers.scheduling.place import Place, begin, locate, nearest_start
from fm_diffusers.scheduling.plan import Plan
from fm_diffusers.scheduling.training import TrainingTable, make_training_table
from fm_diffusers.scheduling.transition import Generators
from fm_diffusers.solvers import Solver


class Contract:
    """Holds a configuration with its clock, a plan, and the place of a loop in it."""

    config: Any
    clock: Clock
    solver: Solver
    order: int
    _training: TrainingTable
    _plan: Plan | None
    _place: Place | None
    _place_before: Place | None
    _begin_index: int | None
    _generator: Generators | None = None

    # --- the configuration -----------------------------------------------------------------------

    @property
    def _internal_dict(self) -> FrozenConfig:
        try:
            return self.__dict__["_internal_dict"]
        except KeyError:
            raise AttributeError("no configuration was registered yet") from None

    @_internal_dict.setter
    def _internal_dict(self, config: dict[str, Any]) -> None:
        """Take a configuration; what follows from it, plan and place included, is made anew."""
        old = self.__dict__.get("_internal_dict")
        self.__dict__["_internal_dict"] = FrozenConfig(config)
        if "clock" in self.__dict__ and public(old) != public(config):
            self._configure()

    def _configure(self) -> None:
        check(self.config)
        self.clock = make_clock(self.config)
        self.solver = check_parts(self.config, self.clock)
        self.order = self.solver.evaluations
        self._training = make_training_table(self.config, self.clock)
        self._plan = None
        self._begin(None)

    @property
    def path(self) -> GaussianPath:
        """The path of the training."""
        return self.clock.path

    @property
    def sampling_path(self) -> GaussianPath:
        """The path on which the samples are."""
        return self.clock.sampling_path

    @property
    def diffusion(self) -> Diffusion | None:
        """The coefficient of dW, or None for the ODE."""
        return self.solver.diffusion

    def to_time(self, timesteps: Tensor) -> Tensor:
        """Return the time t (0 noise, 1 data) at which the network is fed `timesteps`."""
        return self.clock.to_time(timesteps)

    def to_timestep(self, t: Tensor) -> Tensor:
        """Return what the network is fed at time `t`."""
        return self.clock.to_timestep(t)

    def set_shift(self, shift: float) -> None:
        """Set `shift` in the configuration, for the next `set_timesteps`."""
        self.register_to_config(shift=shift)

    # --- the timesteps ---------------------------------------------------------------------------

    @property
    def timesteps(self) -> Tensor:
        """What the network is fed at every evaluation; before `set_timesteps`, in the training."""
        return (self._plan or self._training).timesteps

    @timesteps.setter
    def timesteps(self, timesteps: Tensor) -> None:
        plan = self._plan
        if plan is None or any(locate(plan, t, -1) is None for t in timesteps):
            raise ValueError(
                "timesteps follow from set_timesteps, others would not be stepped between: pass "
                f"set_timesteps(timesteps=...), got {timesteps}"
            )

    @property
    def sigmas(self) -> Tensor:
        """Noise levels at the timesteps, and at the end: see `time_convention`."""
        return (self._plan or self._training).sigmas

    @property
    def num_inference_steps(self) -> int | None:
        """Number of intervals of the plan; None before `set_timesteps`."""
        return None if self._plan is None else len(self._plan.starts)

    @property
    def init_noise_sigma(self) -> float:
        r"""Standard deviation :math:`\sqrt{\alpha^2 + \beta^2}` of the noise to start from.

        It is that of samples at the first time for data of variance one, as diffusers has it for
        its diffusion models; 1 on paths that start at pure noise.
        """
        first = self.sampling_path(0.0 if self._plan is None else self._plan.steps[0].t)
        return torch.hypot(first.alpha, first.beta).item()

    def previous_timestep(self, timestep: float | Tensor) -> float | Tensor:
        """Return the timestep that follows on the way to the data, as DDPM names it."""
        if self._plan is None:
            return timestep - 1
        index = locate(self._plan, timestep, -1)
        if index is None:
            raise ValueError(f"timestep {timestep} is none of the scheduler's: {self.timesteps}")
        end = self.to_timestep(self._plan.times[-1:]).to(self.timesteps)
        return torch.cat([self.timesteps, end])[index + 1]

    # --- the table of the training ---------------------------------------------------------------

    @property
    def betas(self) -> Tensor:
        """The table of DDPM's betas with the path's signal-to-noise ratios."""
        return self._training.betas

    @property
    def alphas(self) -> Tensor:
        """One minus `betas`."""
        return 1 - self.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        r"""The products of `alphas`, :math:`\alpha^2/(\alpha^2 + \beta^2)` by timestep."""
        return self._training.alphas_cumprod

    @property
    def final_alpha_cumprod(self) -> Tensor:
        r""":math:`\alpha^2/(\alpha^2 + \beta^2)` at the end of the grid."""
        last = self.config.t_max
        end = self.path.log_snr(1.0 if last is None else last)
        return torch.sigmoid(2 * end).float()

    @property
    def sigma_min(self) -> float:
        """The last noise level of the training."""
        return self._training.sigmas[-1].item()

    @property
    def sigma_max(self) -> float:
        """The first noise level of the training."""
        return self._training.sigmas[0].item()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # --- the place in the plan -------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Index of the next `step` in `timesteps`; None before the first. It can be set."""
        return None if self._place is None else int(self._place.index)

    @step_index.setter
    def step_index(self, index: int | None) -> None:
        at = self.step_index
        if index is None:
            self._place = None
        elif at is not None and index == at - 1 and self._place_before is not None:
            self._place = self._place_before  # the last step is taken back, to be taken again
        elif index != at:
            self._place = begin(self._planned(), index)  # what is remembered lies elsewhere

    _step_index = step_index

    @property
    def begin_index(self) -> int | None:
        """Index at which the loop begins, as set by `set_begin_index`."""
        return self._begin_index

    @begin_index.setter
    def begin_index(self, index: int | None) -> None:
        self._begin(index)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the loop at `timesteps[begin_index]`, which must be the start of an interval."""
        self._begin(begin_index)

    def _begin(self, index: int | None) -> None:
        if index is not None and self._plan is not None:
            begin(self._plan, index)
        self._begin_index, self._place, self._place_before = index, None, None

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Return the index of the nearest timestep at which an interval starts.

        Solvers with several evaluations ask at an interval's end and again at the start of the
        next; a loop begins at the latter. In another schedule it is the nearest of all.
        """
        if schedule_timesteps is not None or self._plan is None:
            schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
            return (schedule - torch.as_tensor(timestep).to(schedule)).abs().argmin().item()
        return nearest_start(self._plan, timestep).item()

    def _planned(self) -> Plan:
        if self._plan is None:
            raise ValueError("call set_timesteps before step: there is no grid to step on yet")
        return self._plan
