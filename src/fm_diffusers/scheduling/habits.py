r"""Lists of noise levels that say only how many steps are wanted.

Many flow pipelines of diffusers ask for n steps by a list that depends on nothing but n and the
number N of training timesteps, whatever the scheduler would do by itself. Most pass equal steps,

.. math:: \sigma_i = 1 - i/n, \qquad i = 0, \dots, n - 1.

Mochi and LTX begin with steps in which nearly nothing happens: the first m = n/2 of them share
:math:`h = 0.025`, the others grow,

.. math:: \sigma_i = 1 - \frac{h i}{m} - \frac{1 - h n/m}{(n - m)^2} \max(i - m, 0)^2.

Reference: Polyak et al., https://arxiv.org/abs/2410.13720 (linear-quadratic).
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

#: How far a level that a pipeline computed in float32 may lie from its row.
ROUNDING = 1e-6


def linear_quadratic(n: int, count: int, first: float = 0.025) -> np.ndarray:
    """Return the levels of Mochi and LTX; see the module."""
    i, half = np.arange(n), max(n // 2, 1)
    bend = (1 - first * n / half) / max(n - half, 1) ** 2
    return 1 - first * i / half - bend * np.maximum(i - half, 0) ** 2


#: What pipelines pass as `sigmas` where their user says `num_inference_steps=n`, as functions of n
#: and N. Those over the levels of the training are cut to whole timesteps.
SIGMAS: dict[str, Callable[[int, int], np.ndarray]] = {
    "equal": lambda n, count: np.linspace(1, 1 / n, n),  # Flux, Qwen-Image, LTX, Hunyuan, ...
    "linear_quadratic": linear_quadratic,  # Mochi
    "training": lambda n, count: np.floor(np.linspace(count, 1, n)) / count,  # CogView4
    "training_up": lambda n, count: 1 - np.floor(np.linspace(0, count - 1, n)) / count,  # Bria
    "training_open": lambda n, count: np.floor(np.linspace(count, 1, n + 1)[:-1]) / count,  # GLM
    "inside": lambda n, count: np.linspace(1 - 1 / count, 0, n + 1)[:-1],  # Cosmos 3
}

#: What they pass as `timesteps` alone, divided by N.
TIMESTEPS = {"linear_quadratic": linear_quadratic}  # LTX with conditions


def steps_meant(sigmas: Tensor | None, timesteps: Tensor | None, count: int) -> int | None:
    """Return the number of steps for which a list only stands; None if it stands for itself.

    Args:
        sigmas: noise levels, in float64 on the CPU.
        timesteps: on the network's scale; beside `sigmas` as many, and N times them.
        count: number of training timesteps.

    Example:
        >>> import torch
        >>> steps_meant(torch.tensor([1.0, 0.75, 0.5, 0.25]), None, 1000)
        4
        >>> steps_meant(torch.tensor([1.0, 0.75, 0.5, 0.3]), None, 1000)
    """
    fed = None if timesteps is None else timesteps.numpy() / count
    rows, levels = (TIMESTEPS, fed) if sigmas is None else (SIGMAS, sigmas.numpy())
    if levels is None or not (n := len(levels)):
        return None
    known = any(_close(levels, row(n, count)) for row in rows.values())
    return n if known and (fed is None or _close(fed, levels)) else None


def _close(levels: np.ndarray, row: np.ndarray) -> bool:
    return np.abs(levels - row).max() < ROUNDING
