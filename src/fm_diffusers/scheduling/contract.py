r"""What diffusers' pipelines and scripts read and write on a scheduler beside its methods.

The plan and the place in it, by diffusers' names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fm_diffusers.paths.base import is_number
from fm_diffusers.scheduling.checks import as_numbers
from fm_diffusers.scheduling.configured import Configured
from fm_diffusers.scheduling.noise import NOISES, Generators, check_generators
from fm_diffusers.scheduling.place import Place, begin, locate, nearest_start
from fm_diffusers.scheduling.plan import Plan, backwards
from fm_diffusers.scheduling.timetable import make_plan


class Contract(Configured):
    """Holds a plan, and the place of a loop in it."""

    _plan: Plan | None
    _place: Place | None
    _place_before: Place | None
    _begin_index: int | None
    _generator: Generators | None = None

    def _forget(self) -> None:
        self._plan = None
        self._begin(None)

    # --- the timesteps ---------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        noisy_steps: Sequence[int] | None = None,
    ) -> None:
        """Choose the grid and compute the weights of every step, in float64.

        Args:
            num_inference_steps: number of intervals; each costs `order` model evaluations, one
                where the model's prediction type is singular at the interval's end.
            device: where `timesteps` live.
            sigmas: noise levels `1 - t` (`beta/alpha` for a table and where the network is fed its
                logarithm) at which the intervals start, descending; they are shifted and spaced
                as the configuration says, and the end of the grid is added. A last one of 0, as
                in `AysSchedules`, is this end. Lists that diffusers' flow pipelines pass for any
                n steps, equal ones from 1 to 1/n above all (`fm_diffusers.scheduling.habits`), say
                only how many: a calibration of n steps or the grid goes before them, unless it is
                one of diffusers' own. With the 0 at their end they are taken as they are.
            mu: the shift, where `use_dynamic_shifting` is on; else not used.
            timesteps: the starts on the scale of the network, as they are (but for those that LTX
                passes for n steps). Beside `sigmas` they are what the network is fed there.
            noisy_steps: the intervals, counted from 0, on which the diffusion acts, the others
                being steps of the ODE; None is all of them. The last one is never noisy.

        Raises:
            ValueError: if nothing says where to go, `mu` is missing, or the model says nothing at
                one of the times.

        Warns:
            UserWarning: if a list goes before a calibration of as many steps, or before a grid
                that was named.

        Example:
            >>> from fm_diffusers import GaussianFlowScheduler
            >>> scheduler = GaussianFlowScheduler()
            >>> scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
            >>> scheduler.sigmas
            tensor([1.0000, 0.7895, 0.5556, 0.2941, 0.0000])
            >>> scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25, 0.0])
            >>> scheduler.sigmas
            tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
        """
        self._plan = make_plan(
            self.config,
            self.clock,
            num_inference_steps,
            device,
            sigmas,
            mu,
            timesteps,
            noisy_steps,
        )
        self._begin(None)

    def reverse_timesteps(self) -> float:
        """Turn the timesteps round, to step by the ODE from data to noise.

        The loop stays the same: the network is asked at `timesteps`, `step` leads towards noise.

        Returns:
            The factor of the data with which the loop begins: 1, or a little less where the model
            says nothing at the data itself.

        Raises:
            ValueError: before `set_timesteps`.
        """
        self._plan, factor = backwards(self._planned())
        self._begin(None)
        return factor

    def set_generator(self, generator: Generators | None) -> None:
        """Draw the noise of an SDE from `generator` wherever `step` is given none.

        Most of diffusers' flow pipelines hand no generator to `step`.
        """
        check_generators(generator)
        self._generator = generator

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
            numbers = as_numbers("timestep", timestep)
            return (timestep if is_number(timestep) else numbers) + -1  # of truth values too
        index = locate(self._plan, timestep, -1)
        if index is None:
            raise ValueError(
                f"timestep {timestep} is none of the scheduler's: pass one of {self.timesteps}"
            )
        end = self.to_timestep(self._plan.times[-1:]).to(self.timesteps)
        return torch.cat([self.timesteps, end])[index + 1]

    # --- the place in the plan -------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Index of the next `step` in `timesteps`; None before the first. It can be set."""
        return None if self._place is None else int(self._place.index)

    @step_index.setter
    def step_index(self, index: int | None) -> None:
        before = self._place_before
        if index == self.step_index:
            return
        if index is None:
            self._place = None
        elif before is not None and index == int(before.index):
            self._place = before  # the last step is taken back, to be taken again
        else:
            self._place = begin(self._planned(), index)  # what is remembered lies elsewhere
        self._place_before = None

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

    def first_place(
        self, batch_size: int, generator: Generators | None = None, index: int | None = None
    ) -> Place:
        """Return the place at which a loop begins, for `transition`; nothing is changed.

        Args:
            batch_size: number of samples.
            generator: from which, with `noise="brownian"`, a seed is drawn for each sample;
                without it that of `set_generator`.
            index: in `timesteps`; None is `begin_index`, or the first.

        Raises:
            ValueError: before `set_timesteps`, or if no interval starts at the index.
        """
        plan = self._planned()
        place = begin(plan, (self._begin_index or 0) if index is None else index)
        if plan.brownian is None:
            return place
        generator = self._generator if generator is None else generator
        return place._replace(paths=NOISES[plan.noise](batch_size, generator))

    def _begin(self, index: int | None) -> None:
        if index is not None and self._plan is not None:
            index = int(begin(self._plan, index).index)
        self._begin_index, self._place, self._place_before = index, None, None

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Return the index of the nearest timestep at which an interval starts.

        Solvers with several evaluations ask at an interval's end and again at the start of the
        next; a loop begins at the latter. In another schedule it is the nearest of all.
        """
        timestep = as_numbers("timestep", timestep)
        if timestep.numel() != 1:
            raise ValueError(
                f"timestep must be one number, got {timestep.tolist()}: ask for each on its own"
            )
        if schedule_timesteps is not None or self._plan is None:
            schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
            return int((schedule - timestep.to(schedule)).abs().argmin())
        return int(nearest_start(self._plan, timestep))

    def _planned(self) -> Plan:
        if self._plan is None:
            raise ValueError("call set_timesteps before step: there is no grid to step on yet")
        return self._plan
