r"""What networks are fed in place of the time: everybody's convention is a row.

With the time t of the theory (0 noise, 1 data), N training timesteps and the path's ratio
:math:`r = \beta_t/\alpha_t`:

============  ==================================  ===============  ==========================
name          timestep                            sigma            whose
============  ==================================  ===============  ==========================
`descending`  :math:`N (1 - t)`                   :math:`1 - t`    diffusers' flow models,
                                                                   ours
`ascending`   :math:`N t`                         :math:`t`        Mochi; with N = 1 SiT,
                                                                   Meta's flow_matching and
                                                                   torchcfm
`index`       :math:`N (1 - t) - 1`               :math:`r`        DDPM tables: step i of N
`log_sigma`   :math:`\ln(r)/4`                    :math:`r`        EDM, Stable Video Diffusion
`angle`       :math:`2/\pi \arctan(r)`            :math:`r`        Stable Audio
============  ==================================  ===============  ==========================
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath, snapped

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


def _tangent(turn: Tensor) -> Tensor:
    r"""Return :math:`\tan(\pi/2\, turn)`, infinite at 1 whatever the dtype's value of pi."""
    return torch.sin(math.pi / 2 * turn) / torch.sin(math.pi / 2 * (1 - turn))


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
        time=lambda path, n, timestep: _time_of_ratio(path, n, _tangent(timestep)),
        sigma=_ratio,
        time_of_sigma=_time_of_ratio,
    ),
}


def as_fed(
    convention: Convention, path: GaussianPath, sampling_path: GaussianPath, n: int, t: Tensor
) -> Tensor:
    """Return the times that the float32 timesteps at times `t` stand for.

    Solver and network then agree on where a step starts. Rounding takes no time beyond an end of
    either path on which it lies.

    Args:
        convention: what the network is fed, a row of `TIME_CONVENTIONS`.
        path: the path of the training.
        sampling_path: the path on which the samples are, whose times `t` are.
        n: number of training timesteps.
        t: times in float64, 0 is noise and 1 is data.
    """
    same = sampling_path is path
    own = t if same else snapped(path.time(sampling_path.log_snr(t)))
    fed = _no_further(own, convention.time(path, n, _rounded(convention.timestep(path, n, own))))
    return fed if same else _no_further(t, sampling_path.time(path.log_snr(fed)))


def _rounded(timestep: Tensor) -> Tensor:
    return timestep.float().double()


def _no_further(t: Tensor, rounded: Tensor) -> Tensor:
    """Return rounded times, within the ends of the path where `t` was."""
    return torch.where((t >= 0) & (t <= 1), rounded.clamp(0, 1), rounded)
