r"""Time grids: where a sampler stops on its way from noise to data.

A grid maps `n` and the two end times to `n + 1` increasing times in float64, both ends included.

References: Esser et al., "Scaling Rectified Flow Transformers", https://arxiv.org/abs/2403.03206
(the shift).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def uniform(n: int, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """Return `n` equal steps in time.

    Example:
        >>> uniform(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return torch.linspace(t_min, t_max, n + 1, dtype=torch.float64)


def shifted(n: int, t_min: float = 0.0, t_max: float = 1.0, shift: float = 3.0) -> Tensor:
    r"""Return equal steps with the noise time :math:`\sigma = 1 - t` moved towards the noise.

    :math:`\sigma' = s\sigma / (1 + (s - 1)\sigma)`: on the linear path every signal-to-noise ratio
    is divided by the shift :math:`s`. `t_min` and `t_max` are times after the shift.

    Raises:
        ValueError: if `shift` is not positive.
    """
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}; 1 is the uniform grid")
    ends = torch.tensor([t_min, t_max], dtype=torch.float64)
    low, high = (shift * ends / (1 + (shift - 1) * ends)).tolist()
    t = uniform(n, low, high)
    times = t / (shift - (shift - 1) * t)
    times[0], times[-1] = t_min, t_max
    return times


GRIDS: dict[str, Callable[..., Tensor]] = {"uniform": uniform, "shifted": shifted}
