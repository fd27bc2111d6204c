r"""The clock of a configuration: what the network is fed at a time, and how noise is spaced.

Times t are those of the path on which the samples are; the network is fed what its
`time_convention` makes of the time at which its own path has the same signal-to-noise ratio.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.grids import respace, warp
from fm_diffusers.paths import Discrete, GaussianPath
from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS, Convention
from fm_diffusers.tables import look_up

#: The largest beta/alpha that equal steps in it begin with: that of diffusers' schedulers for a
#: table without data at its last step, whose own is infinite.
LARGEST_RATIO = 4096.0

#: Ways to space noise levels anew, `use_..._sigmas` in a configuration.
RESPACINGS = ("karras", "exponential", "beta")


class Clock:
    """Reads times off `config`, the path of the training and that of the samples."""

    config: Any
    path: GaussianPath
    sampling_path: GaussianPath

    def to_time(self, timesteps: Tensor) -> Tensor:
        """Return the time t (0 noise, 1 data) at which the network is fed `timesteps`."""
        n, convention = self.config.num_train_timesteps, self._convention
        t = convention.time(self.path, n, timesteps)
        if self.sampling_path is self.path:
            return t
        return self.sampling_path.time(self.path.log_snr(t))

    def to_timestep(self, t: Tensor) -> Tensor:
        """Return what the network is fed at time `t`."""
        if self.sampling_path is not self.path:
            t = self.path.time(self.sampling_path.log_snr(t))
        return self._convention.timestep(self.path, self.config.num_train_timesteps, t)

    @property
    def _convention(self) -> Convention:
        return look_up("time_convention", TIME_CONVENTIONS, self.config.time_convention)

    def _sigmas(self, t: Tensor) -> Tensor:
        return self._convention.sigma(self.sampling_path, self.config.num_train_timesteps, t)

    def _noise(self, t: Tensor) -> Tensor:
        r"""Return the noise level :math:`\beta/(\alpha + \beta)`."""
        return torch.sigmoid(-self.sampling_path.log_snr(t))

    def _time_of_noise(self, level: Tensor) -> Tensor:
        return self.sampling_path.time(torch.log1p(-level) - torch.log(level))

    @property
    def _respacing(self) -> str | None:
        """The way in which noise levels are spaced anew, if they are."""
        return next((kind for kind in RESPACINGS if self.config[f"use_{kind}_sigmas"]), None)

    @property
    def _warps(self) -> bool:
        c = self.config
        return bool(c.shift != 1 or c.use_dynamic_shifting or c.shift_terminal or self._respacing)

    def _shifted(self, times: Tensor, shift: float, terminal: float | None = None) -> Tensor:
        """Return the times with their noise levels shifted and stretched; see `warp`."""
        if shift == 1 and not terminal:
            return times
        return self._time_of_noise(warp(self._noise(times), shift, terminal))

    def _warped(self, times: Tensor, mu: float | None) -> Tensor:
        """Return the times shifted, stretched and spaced as the configuration says."""
        c, shift = self.config, self.config.shift
        if c.use_dynamic_shifting:
            if mu is None:
                raise ValueError(
                    "use_dynamic_shifting needs the shift: pass mu to set_timesteps, or make the "
                    "scheduler with use_dynamic_shifting=False"
                )
            shift = math.exp(mu) if c.time_shift_type == "exponential" else mu
        times = self._shifted(times, shift, c.shift_terminal)
        if self._respacing is None:
            return times
        table = isinstance(self.path, Discrete)
        if table:
            whole = torch.tensor([0.0, 1 - 1 / c.num_train_timesteps], dtype=torch.float64)
            # Euler respaces between the ends of its grid, all others between those of the table
            ends = times[[0, -1]] if c.grid == "euler_discrete" else whole
            ends = torch.exp(-self.sampling_path.log_snr(ends)).clamp(max=LARGEST_RATIO)
        else:
            ends = self._noise(times[[0, -1]])
        first, last = ends.tolist()
        first, last = c.sigma_max or first, c.sigma_min or last
        levels = respace(self._respacing, len(times), first, last)
        return (
            self.sampling_path.time(-torch.log(levels)) if table else self._time_of_noise(levels)
        )
