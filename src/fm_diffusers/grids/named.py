r"""The grids that users of ComfyUI, A1111 and RES4LYF ask for by name.

Theirs are lists of noise levels, 1 at the start and 0 at the end. Here a noise level is
:math:`\sigma = \beta/(\alpha + \beta)`, the :math:`\sigma` of flow models (:math:`1 - t` on the
linear path), so that a grid stops at the same signal-to-noise ratios on every path; between other
ends than noise and data the levels are spread over what lies between these. They are unshifted:
the `shift` of a scheduler moves them. The levels of `ays` are ratios :math:`\beta/\alpha` instead.

References: Sabour et al., "Align Your Steps", https://arxiv.org/abs/2404.14507 (ays); Lee et al.,
"Beta Sampling is All You Need", https://arxiv.org/abs/2407.12173 (beta57 is `beta` with other
parameters). The others are known by their code alone.
"""

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.grids.steps import equal_steps
from fm_diffusers.paths import GaussianPath
from fm_diffusers.paths.base import check_positive
from fm_diffusers.tables import look_up


def simple(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    num_train_timesteps: int = 1000,
) -> Tensor:
    r"""Return equal steps of the noise level, rounded up to one of the training's.

    :math:`\sigma_i = 1 - \lfloor N i/n \rfloor/N`, with N `num_train_timesteps`.

    Raises:
        ValueError: for more steps than levels.
    """
    check_positive(num_train_timesteps=num_train_timesteps)
    if n > num_train_timesteps:
        raise ValueError(
            f"a training with {num_train_timesteps} noise levels has no simple grid of {n} steps: "
            'take fewer, or grid="uniform", which rounds nothing'
        )
    steps = torch.arange(n, dtype=torch.float64) * (num_train_timesteps / n)
    return _at_levels(path, (t_min, t_max), 1 - steps.floor() / num_train_timesteps)


def normal(
    n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0, last: float = 0.001
) -> Tensor:
    """Return equal steps of the noise level from 1 to `last`, and one more to the end.

    Raises:
        ValueError: unless `last` lies between 0 and 1.
    """
    _check_level(last=last)
    return _at_levels(path, (t_min, t_max), torch.linspace(1, last, n, dtype=torch.float64))


def sgm_uniform(
    n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0, last: float = 0.001
) -> Tensor:
    """Return equal steps of the noise level from 1 to `last`, the last one on to the end.

    Raises:
        ValueError: unless `last` lies between 0 and 1.
    """
    _check_level(last=last)
    levels = torch.linspace(1, last, n + 1, dtype=torch.float64)[:-1]
    return _at_levels(path, (t_min, t_max), levels)


def bong_tangent(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    middle: float = 0.5,
    slope: float = 0.2,
) -> Tensor:
    r"""Return noise levels along two arctangents, which meet at `middle` after 0.6 of the steps.

    With :math:`m = n + 2, k = \lfloor 0.6 m \rfloor` and :math:`c = 40\, slope/m` they run through
    :math:`\arctan c(k - i)` for :math:`i < k`, scaled from 1 to `middle`, and through
    :math:`-\arctan c(i - k)` from there on, scaled from `middle` to 0: slow at the middle level,
    where the first has :math:`i = k - 1` and the second :math:`i = k` (which count as one).

    Raises:
        ValueError: unless `middle` lies between 0 and 1 and `slope` is positive.
    """
    _check_level(middle=middle)
    check_positive(slope=slope)
    count = n + 2
    pivot = int(0.6 * count)
    curve = torch.atan(slope * 40 / count * (pivot - torch.arange(count, dtype=torch.float64)))
    upper, lower = curve[:pivot], curve[pivot:]
    upper = middle + (1 - middle) * (upper - upper[-1]) / (upper[0] - upper[-1])
    lower = middle * (lower - lower[-1]) / (lower[0] - lower[-1])
    return _at_levels(path, (t_min, t_max), torch.cat([upper[:-1], lower[:-1]]))


#: Ratios beta/alpha that were optimised for 10 steps of a model; the last stands before the data.
ALIGNED = {
    "stable_diffusion": (
        *(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
        0.029,
    ),
    "stable_diffusion_xl": (
        *(14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
        0.029,
    ),
    "stable_video_diffusion": (
        *(700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
        0.002,
    ),
}


def ays(
    n: int,
    path: GaussianPath,
    t_min: float = 0.0,
    t_max: float = 1.0,
    table: str = "stable_diffusion",
) -> Tensor:
    r"""Return the ratios :math:`\beta/\alpha` of a table of Align Your Steps, the ends aside.

    For another number of steps than 10 their logarithm is interpolated linearly, as its authors
    do.

    Args:
        n: number of steps.
        path: the path of the samples.
        t_min: first time of the grid, in place of the table's first ratio.
        t_max: last time of the grid, in place of its last one.
        table: whose ratios, one of `ALIGNED`.

    Raises:
        ValueError: for an unknown table, or if all of its ratios lie outside the ends.
    """
    log_snrs = -np.log(look_up("table of ays", ALIGNED, table))
    places = np.arange(len(log_snrs))
    ends = torch.tensor([t_min, t_max], dtype=torch.float64)
    first, last = path.log_snr(ends).tolist()
    if first >= log_snrs[-1] or last <= log_snrs[0]:
        raise ValueError(
            f"the ratios of the table {table!r} of ays, {np.exp(-log_snrs[0]):g} to "
            f"{np.exp(-log_snrs[-1]):g}, lie outside t = {t_min} to {t_max}: take other ends, or "
            'another grid such as grid="logistic"'
        )
    return equal_steps(
        n,
        path,
        (t_min, t_max),
        lambda log_snr: torch.as_tensor(np.interp(log_snr.numpy(), log_snrs, places)),
        lambda place: torch.as_tensor(np.interp(place.numpy(), places, log_snrs)),
    )


def _at_levels(path: GaussianPath, ends: tuple[float, float], levels: Tensor) -> Tensor:
    """Return the times of noise levels, 1 at the first of `ends` and 0 at the last, and the ends.

    The first of the levels is that of the first end.
    """
    first, last = torch.tensor(ends, dtype=torch.float64).split(1)
    start, stop = (torch.sigmoid(path.log_snr(end)) for end in (first, last))
    inner = path.time(torch.logit(stop + levels[1:] * (start - stop)))
    return torch.cat([first, inner, last])


def _check_level(**levels: float) -> None:
    for name, value in levels.items():
        if not 0 < value < 1:
            raise ValueError(
                f"{name} must be a noise level between 0 (data) and 1 (noise), exclusively, got "
                f"{value}"
            )
