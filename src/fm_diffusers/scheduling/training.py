r"""The table of the training: the timesteps and noise levels that diffusers' scripts look up."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fm_diffusers.grids import shift_times
from fm_diffusers.paths import Discrete
from fm_diffusers.scheduling.clock import Clock


class TrainingTable(NamedTuple):
    r"""What stands at each of `num_train_timesteps` timesteps, in float32.

    Attributes:
        timesteps: descending, but for ascending conventions.
        sigmas: their noise levels, shifted where the shift is static.
        betas: :math:`1 - \bar\alpha_i/\bar\alpha_{i-1}`, from the data to the noise.
        alphas_cumprod: :math:`\bar\alpha = \alpha^2/(\alpha^2 + \beta^2)`, likewise. Of a path
            that is not a table these two are those of the table with its signal-to-noise ratios.
    """

    timesteps: Tensor
    sigmas: Tensor
    betas: Tensor
    alphas_cumprod: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingTable":
        return self


def make_training_table(config: Any, clock: Clock) -> TrainingTable:
    """Return the table of a configuration."""
    n, path = config.num_train_timesteps, clock.path
    times = torch.arange(n, dtype=torch.float64) / n
    if not config.use_dynamic_shifting and config.shift != 1:
        times = shift_times(clock.sampling_path, times, config.shift, ends=clock.ends)
    timesteps = clock.to_timestep(times).float()
    if isinstance(path, Discrete):  # also one whose length no sampling could use
        sigmas = (1 / path.alphas_cumprod - 1).sqrt().flip(0)
        return TrainingTable(timesteps, sigmas, path.betas.float(), path.alphas_cumprod.float())
    t = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    bar = torch.sigmoid(2 * path.log_snr((t + (clock.time_convention == "descending")) / n))
    betas = 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])
    return TrainingTable(timesteps, clock.sigma(times).float(), betas.float(), bar.float())
