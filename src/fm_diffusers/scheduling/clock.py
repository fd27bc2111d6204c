r"""The clock: what the network is fed at a time, and where noise levels lie on it.

Times t are those of the path on which the samples are (0 noise, 1 data). The network is fed what
its `time_convention` makes of the time at which its own path has the same signal-to-noise ratio.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath
from fm_diffusers.paths.base import common_times
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS, Convention, as_fed
from fm_diffusers.tables import look_up

#: How far a time may lie beyond an end of the path by rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Clock:
    """Turns times into timesteps and noise levels, and back.

    Attributes:
        path: the path of the network's training.
        sampling_path: the path on which the samples are, often the same object.
        time_convention: what the network is fed in place of the time, and what `sigmas` are.
        num_train_timesteps: scale N of the timesteps.
    """

    path: GaussianPath
    sampling_path: GaussianPath
    time_convention: str
    num_train_timesteps: int

    def __deepcopy__(self, memo: dict[int, Any]) -> "Clock":
        return self

    @property
    def convention(self) -> Convention:
        """The functions of the time convention."""
        return look_up("time_convention", TIME_CONVENTIONS, self.time_convention)

    @property
    def counts_steps(self) -> bool:
        """Whether timesteps are counted, up to many of them."""
        of_steps = ("descending", "ascending", "index")
        return self.time_convention in of_steps and self.num_train_timesteps >= 10

    @property
    def model_path(self) -> GaussianPath | None:
        """The path of the training where it is another than that of the samples."""
        return None if self.sampling_path is self.path else self.path

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last time of the samples' path of which the network says something."""
        if self.model_path is None:
            return 0.0, 1.0
        return common_times(self.sampling_path, self.path)

    def to_time(self, timesteps: Tensor) -> Tensor:
        """Return the time t (0 noise, 1 data) at which the network is fed `timesteps`."""
        t = self.convention.time(self.path, self.num_train_timesteps, timesteps)
        return t if self.model_path is None else self.sampling_path.time(self.path.log_snr(t))

    def to_timestep(self, t: Tensor) -> Tensor:
        """Return what the network is fed at time `t`."""
        if self.model_path is not None:
            t = self.path.time(self.sampling_path.log_snr(t))
        return self.convention.timestep(self.path, self.num_train_timesteps, t)

    def as_fed(self, t: Tensor) -> Tensor:
        """Return the times that the float32 timesteps at times `t` stand for."""
        n = self.num_train_timesteps
        return as_fed(self.convention, self.path, self.sampling_path, n, t)

    def check_timesteps(self, timesteps: Tensor) -> None:
        """Raise unless timesteps are those of times of the path; they are looked at on the CPU.

        Raises:
            ValueError: naming the first that is not, and where timesteps lie.
        """
        if timesteps.device.type != "cpu" or torch.compiler.is_compiling():
            return
        t = self.to_time(timesteps.double())
        off = ~((t >= -ROUNDING) & (t <= 1 + ROUNDING))
        if off.any():
            ends = self.to_timestep(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
            raise ValueError(
                f"timesteps must lie between {ends[0]:g}, pure noise, and {ends[1]:g}, the data, "
                f"got {timesteps[off][0].item():g}"
            )

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at time `t` by the convention: 1 - t, t or beta/alpha."""
        return self.convention.sigma(self.sampling_path, self.num_train_timesteps, t)

    def time_of_sigma(self, sigma: Tensor) -> Tensor:
        """Return the time of a noise level by the convention."""
        return self.convention.time_of_sigma(self.sampling_path, self.num_train_timesteps, sigma)
