r"""`GaussianFlowScheduler`: every Gaussian path and solver in diffusers' scheduler API.

Time runs as diffusers users expect it: `timesteps` descend from `num_train_timesteps` (noise) to 0
(data), `timestep = num_train_timesteps (1 - t)` with the `t` of the theory (0 noise, 1 data), and
`sigmas = 1 - t`; networks that are fed something else have another `time_convention`. The network
is fed `timesteps`. Its output is what `config.prediction_type` says.

`fm_diffusers.scheduling` makes a plan of the configuration and carries it out, the mathematics is in
`fm_diffusers.solvers`, and a sampling loop equals `fm_diffusers.solvers.integrate` bit for bit.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from fm_diffusers.paths import PATHS, Discrete, GaussianPath, Linear
from fm_diffusers.predictions import check_prediction, target
from fm_diffusers.scheduling.clock import RESPACINGS
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS
from fm_diffusers.scheduling.families import translate
from fm_diffusers.scheduling.stepping import Generators, dynamic_threshold
from fm_diffusers.scheduling.timetable import CONFIGURED, Timetable
from fm_diffusers.tables import look_up


@dataclass
class GaussianFlowSchedulerOutput(BaseOutput):
    """Output of `GaussianFlowScheduler.step`.

    Attributes:
        prev_sample: the sample at the next timestep, in the wider of the two dtypes given.
        pred_original_sample: the data that the model output predicts, E[z | sample].
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class GaussianFlowScheduler(Timetable, SchedulerMixin, ConfigMixin):
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
        sampling_path: the path on which the samples are, where it is not that of the training;
            the network is asked about `scale_model_input(sample, timestep)`, the point of its own
            path with the same signal-to-noise ratio. Noise is added on this path too.
        sampling_path_kwargs: its parameters.
        time_convention: what the network is fed, a name in `TIME_CONVENTIONS`.
        shift: the signal-to-noise ratios of a grid, or of given `sigmas`, are divided by it.
        use_dynamic_shifting: whether `set_timesteps` is told the shift, as `mu`, instead.
        base_shift: for pipelines that compute `mu` from the size of the image, as the next three.
        max_shift: see `base_shift`.
        base_image_seq_len: see `base_shift`.
        max_image_seq_len: see `base_shift`.
        shift_terminal: the last noise level before the end, to which grids are stretched.
        time_shift_type: `exponential`, a shift of exp(mu), or `linear`, of mu.
        invert_sigmas: whether `sigmas` are the time t, as for Mochi.
        use_karras_sigmas: whether a grid's noise levels are spaced anew between its ends, on a
            table's between the ends of the table: in equal steps of their 7th root.
        use_exponential_sigmas: the same, in equal ratios.
        use_beta_sigmas: the same, at quantiles of a beta distribution.
        sigma_min: last noise level of these three instead.
        sigma_max: first noise level of these three instead.
        beta_start: first entry of the table of `path="discrete"`; see `Discrete` for the next six.
        beta_end: its last one.
        beta_schedule: how it runs.
        trained_betas: the table itself.
        rescale_betas_zero_snr: whether no data is left at its last step.
        snr_shift_scale: divisor of its signal-to-noise ratios.
        timestep_spacing: where `grid="ddim"`, `"euler_discrete"` or `"multistep"` stops:
            `leading`, `trailing` or `linspace`.
        steps_offset: added to the leading timesteps.
        variance_type: `learned` and `learned_range` networks return a variance beside the
            prediction, which is not used.
        clip_sample: whether data predictions are clipped to `clip_sample_range`.
        clip_sample_range: their largest magnitude.
        thresholding: whether they are clipped to a quantile of their own magnitudes instead.
        dynamic_thresholding_ratio: that quantile.
        sample_max_value: its largest value.

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
    ) -> None:
        self._keep_defaults()
        self._check()
        self.path: GaussianPath = self._make("path", PATHS, path, path_kwargs)
        self.sampling_path = self.path
        if sampling_path is not None:
            self.sampling_path = self._make("path", PATHS, sampling_path, sampling_path_kwargs)
        self.order = self._solver().evaluations
        self._grid(2, 0.0, 1.0, Linear())  # raises now, not when sampling
        self.betas, self.alphas_cumprod = self._tables()
        times = torch.arange(num_train_timesteps, dtype=torch.float64) / num_train_timesteps
        if not use_dynamic_shifting:
            times = self._shifted(times, shift)
        self.timesteps = self.to_timestep(times).float()
        if isinstance(self.path, Discrete):  # also one whose length no sampling could use
            self.sigmas = (1 / self.alphas_cumprod - 1).sqrt().flip(0)
        else:
            self.sigmas = self._sigmas(times).float()
        self.num_inference_steps: int | None = None
        self._generator: Generators | None = None
        self._take([], self._solver(), 1.0)

    def _tables(self) -> tuple[Tensor, Tensor]:
        r"""Return `betas` and `alphas_cumprod`, :math:`\alpha^2/(\alpha^2 + \beta^2)` by timestep.

        Of a path that is not a table they are those of the table with its signal-to-noise ratios,
        as diffusers' training utilities read them.
        """
        if isinstance(self.path, Discrete):
            return self.path.betas.float(), self.path.alphas_cumprod.float()
        t = torch.arange(self.config.num_train_timesteps - 1, -1, -1, dtype=torch.float64)
        if self.config.time_convention == "descending":
            t = t + 1
        bar = torch.sigmoid(2 * self.path.log_snr(t / self.config.num_train_timesteps))
        return (1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])).float(), bar.float()

    def _keep_defaults(self) -> None:
        """Let schedulers made from `config` take its defaults too, as they do from a saved one.

        diffusers leaves out the names in `_use_default_values`; only what is None stays there.
        """
        if names := self.config.get("_use_default_values"):
            unset = sorted(name for name in names if self.config[name] is None)
            self.register_to_config(_use_default_values=unset)

    def _check(self) -> None:
        """Raise a `ValueError` for values that contradict each other."""
        c = self.config
        if not 0 <= (c.t_min or 0) < (1 if c.t_max is None else c.t_max) <= 1:
            raise ValueError(f"0 <= t_min < t_max <= 1 must hold, got {c.t_min} and {c.t_max}")
        if c.t_min is not None and c.grid in CONFIGURED:
            raise ValueError(
                f"grid={c.grid!r} starts where diffusers' schedulers do, t_min={c.t_min} would "
                "have no effect: leave it out, or take a grid in continuous time such as grid=None"
            )
        if c.num_train_timesteps < 1:
            raise ValueError(
                f"num_train_timesteps must be at least 1, got {c.num_train_timesteps}"
            )
        check_prediction(c.prediction_type)
        look_up("time_convention", TIME_CONVENTIONS, c.time_convention)
        if not 0 < c.shift < math.inf:
            raise ValueError(f"shift must be positive and finite, got {c.shift}")
        if c.time_shift_type not in ("exponential", "linear"):
            raise ValueError(
                f"time_shift_type must be 'exponential' or 'linear', got {c.time_shift_type!r}"
            )
        if c.invert_sigmas and c.time_convention != "ascending":
            raise ValueError(
                "with invert_sigmas the network is fed t: pass time_convention='ascending', "
                f"got {c.time_convention!r}"
            )
        if sum(c[f"use_{kind}_sigmas"] for kind in RESPACINGS) > 1:
            raise ValueError(f"only one of {RESPACINGS} sigmas can be used")

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
            own = cls._get_init_keys(cls) - {"self"}
            config = translate(config, own, return_unused_kwargs, **kwargs)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    # --- sampling --------------------------------------------------------------------------------

    def set_generator(self, generator: Generators | None) -> None:
        """Draw the noise of an SDE from `generator` wherever `step` is given none.

        Most of diffusers' flow pipelines hand no generator to `step`.
        """
        self._generator = generator

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return what the network is fed: the sample, or its point on the path of the training."""
        if self.sampling_path is self.path:
            return sample
        dtype = torch.promote_types(sample.dtype, torch.float32)
        timesteps = torch.as_tensor(timestep, device=sample.device).to(dtype)
        factor = self._planned_by.rescaling(self.to_time(timesteps))
        return (factor.reshape(-1, *[1] * (sample.ndim - 1)) * sample).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> GaussianFlowSchedulerOutput | tuple[Tensor, Tensor]:
        """Take one model output and return the sample at which the model is asked next.

        Computed in float32 or better, and returned in the wider of the two dtypes: pipelines that
        start in float32 cast for their network at every step, and stay in float32. A sample that
        was handed out in a lower precision and comes back as it was goes on from its float32
        value (not under `torch.inference_mode`, where changes leave no trace).

        Args:
            model_output: what the network predicted, shape `(batch, ...)`.
            timestep: the current one of `timesteps`; it decides where a loop begins, the first
                and, after the last timestep, a new one. With one for each sample, shape
                `(batch,)`, each takes a first-order step of the ODE from its own to the next of
                the grid.
            sample: the current sample.
            generator: of the noise of an SDE, or one for each sample; without it that of
                `set_generator`.
            return_dict: whether to return a `GaussianFlowSchedulerOutput` or a tuple.
            **kwargs: what diffusers' pipelines pass to other schedulers, not used, but for
                `per_token_timesteps`, shape `(batch, tokens)`: the same for each token, with a
                `flow_prediction` of the opposite sign, as LTX passes it;
                `use_clipped_model_output`, whether DDIM computes the noise from clipped data; and
                `pred_original_sample`, the data prediction to step with instead of the one that
                follows from `model_output`, as Cosmos passes it.

        Raises:
            ValueError: before `set_timesteps`, or for unequal shapes.
        """
        if (self.config.variance_type or "").startswith("learned"):
            model_output = model_output[:, : sample.shape[1]]
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output and sample must have one shape, got {tuple(model_output.shape)} "
                f"and {tuple(sample.shape)}"
            )
        if not self._is_planned:
            raise ValueError("call set_timesteps before step: there is no grid to step on yet")
        out_dtype = torch.promote_types(model_output.dtype, sample.dtype)
        dtype = torch.promote_types(out_dtype, torch.float32)
        x, q = self._exact(sample).to(dtype), model_output.to(dtype)
        tokens = kwargs.get("per_token_timesteps")
        if tokens is not None or getattr(timestep, "ndim", 0) == 1 and len(timestep) > 1:
            if tokens is not None and self.config.prediction_type == "flow_prediction":
                q = -q
            times = self.to_time((timestep if tokens is None else tokens).to(x.device, dtype))
            times = times.reshape(*times.shape, *[1] * (x.ndim - times.ndim))
            moved, original = self._advance_each(x, q, times)
        else:
            if not self._begun or self._is_done():
                self._begin(timestep)
            # DDIM keeps its noise prediction where its data prediction is clipped
            unclipped = self.config.solver == "ddim" and self.config.diffusion is None
            known = kwargs.get("pred_original_sample")
            known = None if known is None else known.to(dtype)
            keep_noise = unclipped and known is None and not kwargs.get("use_clipped_model_output")
            advance = self._advance_traced if torch.compiler.is_compiling() else self._advance
            moved, original = advance(x, q, generator or self._generator, keep_noise, known)
        self._index = self._index + 1
        x, original = moved.to(out_dtype), original.to(out_dtype)
        self._keep(x, moved)
        return GaussianFlowSchedulerOutput(x, original) if return_dict else (x, original)

    def _bounded(self, original: Tensor) -> Tensor:
        c = self.config
        if c.thresholding:
            return dynamic_threshold(original, c.dynamic_thresholding_ratio, c.sample_max_value)
        if c.clip_sample:
            return original.clamp(-c.clip_sample_range, c.clip_sample_range)
        return original

    # --- training --------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Return :math:`x_t = \alpha_t z + \beta_t \varepsilon` at `timesteps`, of any value.

        Args:
            original_samples: data, shape `(batch, ...)`.
            noise: standard normal noise of that shape.
            timesteps: shape `(batch,)` or one for all.
        """
        t = self._times_of(timesteps, noise)
        return self.sampling_path.flow_map(original_samples, noise, t)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return `add_noise(sample, noise, timestep)`, in the order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Return :math:`\alpha_t \varepsilon - \beta_t z`, the target of `v_prediction` models.

        That is diffusers' meaning of the name. The velocity dx/dt of the path is
        `target(scheduler.path, "velocity", ...)` in `fm_diffusers.predictions`.
        """
        t = self._times_of(timesteps, noise)
        return target(self.sampling_path, "v_prediction", sample, noise, t)

    def _times_of(self, timesteps: Tensor, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        t = self.to_time(torch.as_tensor(timesteps).to(like.device, dtype))
        return t[0] if t.shape == (1,) else t

    def __len__(self) -> int:
        return self.config.num_train_timesteps
