r"""Noise levels shifted, stretched and spaced anew, as diffusers' configurations ask for.

The noise level of a path is :math:`\sigma = \beta/(\alpha + \beta)`, which on the linear path is
:math:`1 - t`. From pure noise to pure data it goes from 1 to 0; a path that starts or ends nearly
there has levels of its own at its ends, and there are no others: what is shifted stays between
them, and what is asked for beyond them raises.

References: Esser et al., https://arxiv.org/abs/2403.03206 (shift); Karras et al.,
https://arxiv.org/abs/2206.00364; Lee et al., https://arxiv.org/abs/2407.12173 (beta).
"""

import math

import torch
from scipy import special
from torch import Tensor

from fm_diffusers.paths import GaussianPath, snapped
from fm_diffusers.paths.base import check_finite, check_positive

#: Ways to space noise levels anew, `use_..._sigmas` in a configuration.
RESPACINGS = ("karras", "exponential", "beta")


def noise_of_time(path: GaussianPath, times: Tensor) -> Tensor:
    r"""Return the noise level :math:`\beta/(\alpha + \beta)` at times of a path."""
    return torch.sigmoid(-path.log_snr(times))


def time_of_noise(path: GaussianPath, sigmas: Tensor) -> Tensor:
    r"""Return the times at which :math:`\beta/(\alpha + \beta)` has the values `sigmas`.

    Raises:
        ValueError: for a noise level that the path does not have.
    """
    times = snapped(path.time(torch.log1p(-sigmas) - torch.log(sigmas)))
    if (off := _off(times)).any():
        raise ValueError(f"a noise level of {sigmas[off][0].item():.6g} {_beyond(path)}")
    return times


def on_path(path: GaussianPath, times: Tensor) -> Tensor:
    """Return times that were computed, those beyond an end of a path by rounding only at this end.

    Raises:
        ValueError: for one that is no time of the path.
    """
    times = snapped(times)
    if (off := _off(times)).any():
        raise ValueError(f"a time of {times[off][0].item()} {_beyond(path)}")
    return times


def _off(times: Tensor) -> Tensor:
    return ~((times >= 0) & (times <= 1))


def _beyond(path: GaussianPath) -> str:
    first, last = noise_of_time(path, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return (
        f"lies beyond {path}, whose times go from 0 (noise) to 1 (data), its noise levels "
        f"beta/(alpha + beta) from {first:.6g} to {last:.6g} and its ratios beta/alpha from "
        f"{_ratio(first):.6g} to {_ratio(last):.6g}: choose shift, shift_terminal, sigma_min, "
        "sigma_max and sigmas inside"
    )


def _ratio(level: float) -> float:
    return level / (1 - level) if level < 1 else math.inf


def shift_noise(sigmas: Tensor, shift: float) -> Tensor:
    r"""Return :math:`s\sigma/(1 + (s - 1)\sigma)`: every SNR :math:`\alpha/\beta` divided by s.

    Raises:
        ValueError: if `shift` is not positive and finite.
    """
    check_positive(shift=shift)
    shifted = shift * sigmas / (1 + (shift - 1) * sigmas)
    # pure noise stays so, which rounding would take beyond
    return torch.where(sigmas == 1, 1.0, shifted)


def warp(sigmas: Tensor, shift: float, shift_terminal: float | None = None) -> Tensor:
    """Return the noise levels shifted, then stretched so that the last is `shift_terminal`.

    Raises:
        ValueError: if `shift` is not positive and finite, or `shift_terminal` not a noise level.
    """
    sigmas = shift_noise(sigmas, shift)
    if not shift_terminal:
        return sigmas
    check_finite(shift_terminal=shift_terminal)
    if not 0 < shift_terminal < 1:
        raise ValueError(
            f"shift_terminal must lie between 0 and 1, got {shift_terminal}: it is the noise "
            "level of the last step's start, 1 for pure noise"
        )
    if sigmas[-1] == 1:
        raise ValueError(
            "shift_terminal needs a second timestep, with one, at pure noise, there is nothing to "
            "stretch: take more steps, or leave shift_terminal out"
        )
    return 1 - (1 - sigmas) * (1 - shift_terminal) / (1 - sigmas[-1])


def shift_times(
    path: GaussianPath,
    times: Tensor,
    shift: float,
    shift_terminal: float | None = None,
    ends: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    r"""Return times with their noise levels shifted between the ends of a path; see `warp`.

    A path that starts at the level :math:`\sigma_0 < 1` or ends at :math:`\sigma_1 > 0` has no
    others to move to. So it is the share :math:`(\sigma - \sigma_1)/(\sigma_0 - \sigma_1)` of its
    levels that is shifted: the ends stay where they are. From pure noise to pure data that is the
    level itself.

    Args:
        path: the path on which the samples are.
        times: ascending, 0 is noise and 1 is data.
        shift: by which the signal-to-noise ratios are divided.
        shift_terminal: the noise level to which the last time is moved; None or 0 moves nothing.
        ends: the times that stay where they are: those of the path, or the `common_times` that
            the path of the model has too, where that is another.

    Raises:
        ValueError: if `shift` is not positive and finite, or `shift_terminal` not among the
            noise levels between the ends.

    Example:
        >>> from fm_diffusers.paths import NoiseLevel
        >>> shift_times(NoiseLevel(3.0), torch.tensor([0.0, 0.5, 1.0]).double(), 2.0)
        tensor([0.0000, 0.3333, 1.0000], dtype=torch.float64)
    """
    first, last = noise_of_time(path, times.new_tensor(ends)).tolist()
    share = (noise_of_time(path, times) - last) / (first - last)
    if not shift_terminal:
        moved = time_of_noise(path, last + (first - last) * shift_noise(share, shift))
        return torch.where((times == ends[0]) | (times == ends[1]), times, moved)
    check_finite(shift_terminal=shift_terminal)
    if not last < shift_terminal < first:
        raise ValueError(
            f"shift_terminal must lie between {last:.6g} and {first:.6g}, the noise levels "
            f"beta/(alpha + beta) of {path} at t = {ends[1]:g} and {ends[0]:g}, got "
            f"{shift_terminal}; None stretches nothing"
        )
    terminal = (shift_terminal - last) / (first - last)
    moved = time_of_noise(path, last + (first - last) * warp(share, shift, terminal))
    return torch.where(times == ends[0], times, moved)


def respace(kind: str, n: int, first: float, last: float) -> Tensor:
    """Return `n` noise levels from `first` to `last`, in equal steps of a variable of `kind`.

    Raises:
        ValueError: for an unknown kind, or if not `first > last > 0` where there are two levels.
    """
    if kind not in RESPACINGS:
        raise ValueError(f"unknown spacing {kind!r}: choose one of {', '.join(RESPACINGS)}")
    check_positive(first=first, last=last)
    if n > 1 and not last < first:
        raise ValueError(
            f"noise levels spaced by use_{kind}_sigmas must descend, got {first} to {last}: "
            "sigma_max is the first of them and sigma_min the last; None takes the grid's own"
        )
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    if kind == "karras":
        start, stop = first ** (1 / 7), last ** (1 / 7)
        levels = (start + u * (stop - start)) ** 7
    elif kind == "exponential":
        levels = torch.exp(math.log(first) + u * (math.log(last) - math.log(first)))
    else:
        quantiles = torch.as_tensor(special.betaincinv(0.6, 0.6, (1 - u).numpy()))
        levels = last + quantiles * (first - last)
    ends = torch.tensor([first, last], dtype=torch.float64)
    return torch.cat([ends[:1], levels[1:-1], ends[1:]])[:n]
