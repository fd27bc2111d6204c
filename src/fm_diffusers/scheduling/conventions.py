r"""What networks are fed in place of the time: everybody's convention is a row.

With the time t of the theory (0 noise, 1 data), N training timesteps and the path's ratio
:math:`\beta_t/\alpha_t`:

============  ==================================  ===============  ==============================
name          timestep                            sigma            whose
============  ==================================  ===============  ==============================
`descending`  :math:`N (1 - t)`                   :math:`1 - t`    diffusers' flow models, ours
`ascending`   :math:`N t`                         :math:`t`        Mochi; with N = 1 SiT, Meta's
                                                                   flow_matching and torchcfm
`index`       :math:`N (1 - t) - 1`               :math:`\beta/   DDPM tables: step i of N
                                                  \alpha`
`log_sigma`   :math:`\ln(\beta/\alpha)/4`         :math:`\beta/   EDM, Stable Video Diffusion
                                                  \alpha`
`angle`       :math:`2/\pi \arctan(\beta/\alpha)`  :math:`\beta/   Stable Audio
                                                  \alpha`
============  ==================================  ===============  ==============================
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath

Function = Callable[[GaussianPath, int, Tensor], Tensor]


class Convention(NamedTuple):
    """Functions of the path, of N and of a time, a timestep or a sigma."""

    timestep: Function
    time: Function
    sigma: Function
    time_of_sigma: Function


def _ratio(path: GaussianPath, n: int, t: Tensor) -> Tensor:
    return torch.exp(-path.log_snr(t))


def _time_of_ratio(path: GaussianPath, n: int, sigma: Tensor) -> Tensor:
    return path.time(-torch.log(sigma))


#: The conventions by their names in a saved configuration. An entry is four functions, the second
#: and the last the inverses of the others:
#:
#:     TIME_CONVENTIONS["percent"] = Convention(  # N is num_train_timesteps
#:         timestep=lambda path, N, t: 100 * (1 - t),  # what the network is fed at the time t
#:         time=lambda path, N, timestep: 1 - timestep / 100,
#:         sigma=lambda path, N, t: 1 - t,
#:         time_of_sigma=lambda path, N, sigma: 1 - sigma,
#:     )
#:
#: Whoever loads a pipeline saved with such a name must do the same first.
TIME_CONVENTIONS: dict[str, Convention] = {
    "descending": Convention(
        timestep=lambda path, n, t: n * (1 - t),
        time=lambda path, n, timestep: 1 - timestep / n,
        sigma=lambda path, n, t: 1 - t,
        time_of_sigma=lambda path, n, sigma: 1 - sigma,
    ),
    "ascending": Convention(
        timestep=lambda path, n, t: n * t,
        time=lambda path, n, timestep: timestep / n,
        sigma=lambda path, n, t: t,
        time_of_sigma=lambda path, n, sigma: 1 - sigma,
    ),
    "index": Convention(
        timestep=lambda path, n, t: n - 1 - n * t,
        time=lambda path, n, timestep: 1 - (timestep + 1) / n,
        sigma=_ratio,
        time_of_sigma=_time_of_ratio,
    ),
    "log_sigma": Convention(
        timestep=lambda path, n, t: -path.log_snr(t) / 4,
        time=lambda path, n, timestep: path.time(-4 * timestep),
        sigma=_ratio,
        time_of_sigma=_time_of_ratio,
    ),
    "angle": Convention(
        timestep=lambda path, n, t: 2 / math.pi * torch.atan(_ratio(path, n, t)),
        time=lambda path, n, timestep: _time_of_ratio(path, n, torch.tan(math.pi / 2 * timestep)),
        sigma=_ratio,
        time_of_sigma=_time_of_ratio,
    ),
}
