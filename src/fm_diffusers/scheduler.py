r"""`GaussianFlowScheduler`: every Gaussian path and solver in diffusers' scheduler API.

Time runs as diffusers users expect it: `timesteps` descend from `num_train_timesteps` (noise) to 0
(data), `timestep = num_train_timesteps (1 - t)` with the `t` of the theory (0 noise, 1 data), and
`sigmas = 1 - t`; networks that are fed something else have another `time_convention`. The network
is fed `timesteps`. Its output is what `config.prediction_type` says.

A `Clock` says what the network is fed at a time, a `Plan` holds the weights of every step, a
`Place` what a loop remembers (`fm_diffusers.scheduling`); the mathematics is in
`fm_diffusers.solvers`, and a sampling loop equals `fm_diffusers.solvers.integrate` bit for bit.
"""

import inspect
from dataclasses import replace
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from fm_diffusers.paths.base import is_number
from fm_diffusers.scheduling.brownian import BrownianPaths
from fm_diffusers.scheduling.checks import check_return_dict, check_samples
from fm_diffusers.scheduling.contract import Contract
from fm_diffusers.scheduling.noise import Generators
from fm_diffusers.scheduling.output import prepare, without_variance
from fm_diffusers.scheduling.place import Place, Timestep, place_at
from fm_diffusers.scheduling.plan import Plan, at_noise_level
from fm_diffusers.scheduling.step import advance_from, begun, transition_from
from fm_diffusers.scheduling.transition import (
    GaussianFlowSchedulerOutput,
    Transition,
    in_dtype,
)
from fm_diffusers.scheduling.translation import translate


class GaussianFlowScheduler(Contract, SchedulerMixin, ConfigMixin):
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
        noise: where the noise of an SDE comes from. `independent`: the generator, at every step.
            `brownian`: one Brownian path for each sample, whose seed is drawn from the generator
            when a loop begins, and nothing after that. With a generator for each sample an image
            then depends neither on its batch nor on the number of steps, but for their error: more
            steps refine the same image. Needs torchsde, `pip install fm_diffusers[sde]`; the paths
            are drawn on the CPU and copied, which costs time at every step.
        grid: spacing of the timesteps, a name in `GRIDS`; None is `logistic` with parameters
            chosen by the number of steps and by whether there is a diffusion.
        grid_kwargs: its parameters.
        t_min: first time of the grid (0 is noise). None is 0, or, where the prediction does not
            determine velocity and data there (noise and score models on paths with alpha = 0, the
            velocity of the polynomial path), the time at which alpha/(alpha + beta) = 0.01.
        t_max: last time of the grid (1 is data). None is 1.
        calibration: what `fm_diffusers.calibration.calibrate` has fitted, by the number of steps.
        sampling_path: the path on which the samples are, where it is not that of the training;
            the network is asked about `scale_model_input(sample, timestep)`, the point of its own
            path with the same signal-to-noise ratio. Noise is added on this path too.
        sampling_path_kwargs: its parameters.
        time_convention: what the network is fed, a name in `TIME_CONVENTIONS`.
        shift: the signal-to-noise ratios of a grid, or of given `sigmas`, are divided by it.
        use_dynamic_shifting: whether `set_timesteps` is told the shift, as `mu`, instead.
        base_shift: for pipelines that compute `mu` from an image's size, as `max_shift`,
            `base_image_seq_len` and `max_image_seq_len`.
        shift_terminal: the last noise level before the end, to which grids are stretched.
        time_shift_type: `exponential`, a shift of exp(mu), or `linear`, of mu.
        invert_sigmas: whether `sigmas` are the time t, as for Mochi.
        use_karras_sigmas: whether noise levels are spaced anew between the ends of a grid, or of a
            table, or `sigma_max` and `sigma_min`: in equal steps of their 7th root; with
            `use_exponential_sigmas` in equal ratios, `use_beta_sigmas` at beta's quantiles.
        beta_start: with `beta_end`, `beta_schedule`, `trained_betas`, `rescale_betas_zero_snr` and
            `snr_shift_scale` the table of `path="discrete"`; see `Discrete`.
        timestep_spacing: where `grid="ddim"`, `"euler_discrete"` or `"multistep"` stops:
            `leading` (plus `steps_offset`), `trailing` or `linspace`.
        variance_type: `learned` and `learned_range` networks return a variance beside the
            prediction, which is not used.
        clip_sample: whether data predictions are clipped to `clip_sample_range`.
        thresholding: whether they are clipped to the quantile `dynamic_thresholding_ratio` of
            their own magnitudes instead, at most `sample_max_value`.
        carry_rounding: whether what a sample loses where `step` hands it out in half precision is
            added to it at the next step, as in compensated sums. Off, a sample is what it says:
            stored and replayed it gives the same step.

    It remembers the place of one loop: threads that call `step` themselves take one each,
    `copy.deepcopy(scheduler)`. (Calls of one pipeline do so by themselves.)

    Example:
        >>> scheduler = GaussianFlowScheduler(solver="heun", grid="uniform")
        >>> scheduler.set_timesteps(2)
        >>> scheduler.timesteps
        tensor([1000.,  500.,  500.,    0.])
        >>> sde = GaussianFlowScheduler.from_config(scheduler.config, diffusion="memoryless")

    References: Lipman et al., https://arxiv.org/abs/2210.02747; Song et al.,
    https://arxiv.org/abs/2011.13456; Ma et al., https://arxiv.org/abs/2401.08740.
    """

    order = 1
    _compatibles = [  # noqa: RUF012
        *(member.name for member in KarrasDiffusionSchedulers),
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMapEulerDiscreteScheduler",
        "EDMDPMSolverMultistepScheduler",
        "LTXEulerAncestralRFScheduler",
        "RePaintScheduler",
        "SASolverScheduler",
    ]

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
        noise: str = "independent",
        grid: str | None = None,
        grid_kwargs: dict[str, float] | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        calibration: dict[str, Any] | None = None,
        sampling_path: str | None = None,
        sampling_path_kwargs: dict[str, float] | None = None,
        time_convention: str = "descending",
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        invert_sigmas: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        variance_type: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        carry_rounding: bool = False,
    ) -> None:
        self._keep_defaults()
        self._configure()

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any] | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Make a scheduler from any configuration, with `kwargs` in place of what it says.

        A configuration of diffusers' own schedulers keeps the path, the prediction, the grid and
        every value that it had by default; solver and diffusion become ours, unless a key of it
        asks for an SDE. A keyword that replaces a value leaves nothing that depended on it.

        Raises:
            ValueError: if it is of another scheduler and its family cannot be told, so that which
                sign its network has would be a guess; `path` and `prediction_type` say it. If it
                is of a consistency model or another that cannot be replaced, has a setting that
                cannot be kept, or a keyword is no argument.
        """
        config = kwargs.pop("pretrained_model_name_or_path", config)
        if config is not None and not isinstance(config, dict):  # a folder, as diffusers takes it
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        if config is not None:
            own = {*inspect.signature(cls).parameters}
            config = translate(config, own, return_unused_kwargs, **kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    # --- sampling --------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        generator: Generators | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> GaussianFlowSchedulerOutput | tuple[Tensor, Tensor]:
        """Take one model output and return the sample at which the model is asked next.

        It is `transition(...).sample(generator)` from the place that the loop has reached.
        Computed in float32 or better, and returned in the wider of the two dtypes: pipelines that
        start in float32 cast for their network at every step, and stay in float32.

        Args:
            model_output: what the network predicted, shape `(batch, ...)`.
            timestep: the current one of `timesteps`. Another one of them goes there, with nothing
                remembered; any other time steps from there to the next of `timesteps`, to first
                order. With one for each sample, shape `(batch,)`, each steps from its own; see
                `transition`. (A compiled step takes them in their order, unseen.)
            sample: the current sample.
            generator: of the noise of an SDE, or one for each sample; without it that of
                `set_generator`. With `noise="brownian"` only the first step of a loop asks it.
            return_dict: whether to return a `GaussianFlowSchedulerOutput` or a tuple.
            **kwargs: `noise_level` and what diffusers' pipelines pass; see `transition`.

        Raises:
            ValueError: before `set_timesteps`, for unequal shapes, or an index in place of its
                timestep; with `noise="brownian"` for times of their own, or a batch that is not
                that with which the loop began.
        """
        check_return_dict(return_dict)
        plan = self._plan_at(kwargs.pop("noise_level", None))
        tokens = kwargs.get("per_token_timesteps")
        at = place_at(plan, timestep if tokens is None else tokens, self._place, self._begin_index)
        generator = self._generator if generator is None else generator
        paths = begun(plan, at, sample, generator)
        at = at._replace(paths=paths) if isinstance(at, Place) else at
        transition = self._transition(plan, at, model_output, sample, paths, **kwargs)
        exact, place = transition.draw(generator), transition.place
        x, z = in_dtype(exact, transition.dtype), transition.pred_original_sample
        if self.config.carry_rounding and place is not None and x is not exact:
            place = place._replace(rounding=(exact - x).detach())
        self._place_before, self._place = at if isinstance(at, Place) else None, place
        return GaussianFlowSchedulerOutput(x, z) if return_dict else (x, z)

    def transition(
        self,
        model_output: Tensor,
        timestep: Timestep,
        sample: Tensor,
        place: Place | None = None,
        noise_level: float | None = None,
        **kwargs: Any,
    ) -> Transition:
        """Return the Gaussian from which `step` would draw the next sample; nothing is changed.

        Args:
            model_output: see `step`.
            timestep: see `step`. With one for each sample, shape `(batch,)`, each has the mean and
                the deviation of its own step, ODE or SDE, with nothing remembered; solvers with
                several evaluations take these to first order.
            sample: see `step`.
            place: the `place` of the transition before, for solvers that remember slopes, or
                `first_place`; None begins at the timestep. With `noise="brownian"` a sample can
                be drawn only from where a place has led.
            noise_level: the scale of the diffusion in place of the configuration's, with solvers
                that remember slopes as if all steps had it.
            **kwargs: what diffusers' pipelines pass to other schedulers, not used, but for
                `advance`, what a flow map's network was told; and
                `per_token_timesteps`, shape `(batch, tokens)`: a timestep for each token, with a
                `flow_prediction` of the opposite sign, as LTX passes it;
                `use_clipped_model_output`, whether DDIM computes the noise from clipped data; and
                `pred_original_sample`, the data prediction to step with instead of the one that
                follows from `model_output`, as Cosmos passes it.

        Raises:
            ValueError: see `step`; or for a timestep that is not the one of `place`.
        """
        plan = self._plan_at(noise_level)
        if not isinstance(place, Place | None):
            raise ValueError(
                f"place must be that of the transition before, got a {type(place).__name__}: pass "
                "transition.place or first_place(batch_size), or None to begin at the timestep"
            )
        tokens = kwargs.get("per_token_timesteps")
        at = place_at(plan, timestep if tokens is None else tokens, place)
        if place is not None and at is not place:
            raise ValueError(
                f"the place is at timestep {plan.timesteps[int(place.index) :][:1].tolist()}, but "
                f"timestep is {timestep}: pass that one, or place=None to begin there"
            )
        return self._transition(plan, at, model_output, sample, **kwargs)

    def advance(self, timestep: Timestep, noise_level: float | None = None) -> Tensor:
        r"""Return what a flow map's network is told beside the timestep: how far the step leads.

        It is :math:`v - u` on the clock :math:`u = \alpha/(\alpha + \beta)`, from 0 to 1, up to
        the landing of a noisy step, which lies beyond the next timestep. `step` is handed it as
        `advance` where it draws noise, so that no network is told another time than the step has.

        Args:
            timestep: of the step, or one for each sample; see `step`.
            noise_level: of the step.

        Returns:
            A number, 0-dim, or one for each sample; float32.

        Raises:
            ValueError: before `set_timesteps`, or for a solver other than `flow_map`.
        """
        plan = self._plan_at(noise_level)
        return advance_from(plan, place_at(plan, timestep, self._place, self._begin_index))

    @property
    def is_flow_map(self) -> bool:
        """Whether the steps that are planned are those of a flow map; the way back has none."""
        return self._planned().solver.two_times

    def _plan_at(self, noise_level: float | None) -> Plan:
        plan = self._planned()
        if noise_level is None:
            return plan
        if not is_number(noise_level):
            raise ValueError(
                f"noise_level must be a number, got {noise_level!r}: it is the scale of the "
                "diffusion in this step; leave it out for that of the configuration"
            )
        return at_noise_level(plan, noise_level)

    def _transition(
        self,
        plan: Plan,
        at: Any,
        model_output: Tensor,
        sample: Tensor,
        paths: BrownianPaths | None = None,
        **kwargs: Any,
    ) -> Transition:
        if plan.noisy and plan.solver.two_times and kwargs.get("advance") is None:
            raise ValueError(
                "a noisy step of a flow map leads beyond the next timestep, and step does not "
                "know whether the network was told so: feed it scheduler.advance(timestep) and "
                "pass that as advance=..., or sample the ODE with diffusion=None"
            )
        if kwargs.get("r_timestep") is not None:
            raise ValueError(
                "r_timestep is not taken: a step leads to the next of timesteps, which "
                "set_timesteps(timesteps=[...]) sets"
            )
        if (self.config.variance_type or "").startswith("learned"):
            model_output = without_variance(model_output, sample)
        signed = kwargs.get("per_token_timesteps") is not None
        if signed and self.config.prediction_type == "flow_prediction":
            check_samples(model_output=model_output)
            model_output = -model_output
        asked = prepare(model_output, sample, kwargs.get("pred_original_sample"))
        bounds = plan.bounds
        if kwargs.get("use_clipped_model_output"):
            bounds = replace(bounds, keep_noise=False)
        return transition_from(plan, at, asked, bounds, paths)
