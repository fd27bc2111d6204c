r"""A configuration and what follows from it alone, by the names that diffusers' code reads.

The clock, the solver, the table of the training and the noise at its timesteps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.diffusions import Diffusion
from fm_diffusers.files import read_json, reading
from fm_diffusers.paths import GaussianPath
from fm_diffusers.predictions import target
from fm_diffusers.scheduling.checks import as_numbers, check, check_samples
from fm_diffusers.scheduling.clock import Clock
from fm_diffusers.scheduling.frozen import FrozenConfig, alike, public
from fm_diffusers.scheduling.parts import check_parts, make_clock
from fm_diffusers.scheduling.place import Timestep
from fm_diffusers.scheduling.training import TrainingTable, make_training_table
from fm_diffusers.solvers import Solver


class Configured:
    """Holds a configuration, with its clock and its solver."""

    config: Any
    clock: Clock
    solver: Solver
    order: int
    register_to_config: Callable[..., None]
    _training: TrainingTable

    # --- the configuration -----------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a scheduler of any class as one of this, from a folder or the Hub; see diffusers.

        Raises:
            ValueError: for a file that is no configuration of a scheduler, by its name.
        """
        with reading(pretrained_model_name_or_path):
            above: Any = super()
            return above.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        return read_json(json_file)

    @property
    def _internal_dict(self) -> FrozenConfig:
        try:
            return self.__dict__["_internal_dict"]
        except KeyError:
            raise AttributeError("no configuration was registered yet") from None

    @_internal_dict.setter
    def _internal_dict(self, config: dict[str, Any]) -> None:
        """Take a configuration; what follows from it, plan and place included, is made anew.

        One that is refused changes nothing.
        """
        old = self.__dict__.get("_internal_dict")
        self.__dict__["_internal_dict"] = FrozenConfig(config)
        if "clock" in self.__dict__ and not alike(public(old or {}), public(config)):
            try:
                self._configure()
            except ValueError:
                self.__dict__["_internal_dict"] = old
                raise

    def _configure(self) -> None:
        check(self.config)
        clock = make_clock(self.config)
        solver = check_parts(self.config, clock)
        training = make_training_table(self.config, clock)
        self.clock, self.solver, self._training = clock, solver, training
        self.order = solver.evaluations
        self._forget()

    def _forget(self) -> None:
        """Drop the plan, which followed from another configuration."""

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

    def _keep_defaults(self) -> None:
        """Let schedulers made from `config` take its defaults too, as they do from a saved one.

        diffusers leaves out the names in `_use_default_values`; only what is None stays there.
        """
        if names := self.config.get("_use_default_values"):
            unset = sorted(name for name in names if self.config[name] is None)
            self.register_to_config(_use_default_values=unset)

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

    # --- training --------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Return :math:`x_t = \alpha_t z + \beta_t \varepsilon` at `timesteps`, of any value.

        Args:
            original_samples: data, shape `(batch, ...)`; one image is noised at every timestep.
            noise: standard normal noise, likewise.
            timesteps: shape `(batch,)` or one for all.
        """
        z, eps, t = self._noised_at(original_samples, noise, timesteps)
        return self.sampling_path.flow_map(z, eps, t)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return `add_noise(sample, noise, timestep)`, in the order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        r"""Return :math:`\alpha_t \varepsilon - \beta_t z`, the target of `v_prediction` models.

        That is diffusers' meaning of the name. The velocity dx/dt of the path is
        `target(scheduler.path, "velocity", ...)` in `fm_diffusers.predictions`.
        """
        z, eps, t = self._noised_at(sample, noise, timesteps)
        return target(self.sampling_path, "v_prediction", z, eps, t)

    def _noised_at(self, z: Tensor, eps: Tensor, timesteps: Tensor) -> tuple[Tensor, ...]:
        """Return data, noise and times with one batch size."""
        check_samples(samples=z, noise=eps)
        if z.shape[1:] != eps.shape[1:]:
            raise ValueError(
                f"samples and noise must be tensors of one shape, got {tuple(z.shape)} and "
                f"{tuple(eps.shape)}: torch.randn_like(samples) is noise of theirs"
            )
        dtype = torch.promote_types(eps.dtype, torch.float32)
        timesteps = as_numbers("timesteps", timesteps).reshape(-1)
        self.clock.check_timesteps(timesteps)
        t = self.to_time(timesteps.to(eps.device, dtype))
        sizes = {len(z), len(eps), len(t)} - {1}
        if len(sizes) > 1:
            raise ValueError(
                "samples, noise and timesteps must be as many, or one for all, got "
                f"{len(z)}, {len(eps)} and {len(t)}"
            )
        size = max(sizes, default=1)
        z, eps = (x if len(x) == size else x.expand(size, *x.shape[1:]) for x in (z, eps))
        return z, eps, t[0] if len(t) == 1 else t

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """Return what the network is fed: the sample, or its point on the path of the training."""
        if self.clock.model_path is None:
            return sample
        check_samples(sample=sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        timesteps = as_numbers("timestep", timestep).to(sample.device, dtype)
        if timesteps.numel() != 1 and timesteps.shape != sample.shape[:1]:
            raise ValueError(
                f"timestep must be one, or one for each of {len(sample)} samples, got shape "
                f"{tuple(timesteps.shape)}: pass one of scheduler.timesteps"
            )
        factor = self.solver.rescaling(self.to_time(timesteps))
        return (factor.reshape(-1, *[1] * (sample.ndim - 1)) * sample).to(sample.dtype)
