"""How far samples are from data, beside how far data are from data.

With the same number of fresh data on the other side,

- `sw2` is the sliced Wasserstein distance: the root mean square distance of sorted projections on
  64 random unit vectors;
- `std` is how much too wide the modes are: the root mean square of `|x - m_k|/s_k` over the
  samples, k being the mode nearest in these units, relative to that of the fresh data, minus 1;
- `weights` is the total variation between the occupancies of the modes, where modes are few.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.samplers.problems import Problem


class Distance(NamedTuple):
    """What a `Judge` says."""

    sw2: float
    std: float
    weights: float


class Judge:
    """Compares samples with fresh data.

    Args:
        problem: the problem.
        n: how many samples there will be.
        seed: of the data and the projections.
    """

    def __init__(self, problem: Problem, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.data = problem.data
        self.fresh, self.more = (self.data.sample(n, generator) for _ in range(2))
        directions = torch.randn(self.fresh.shape[1], 64, generator=generator, dtype=torch.float64)
        self.directions = directions / directions.norm(dim=0)
        self.sorted = (self.fresh @ self.directions).sort(0).values
        self.width, self.occupancy = self._modes(self.fresh)

    def _modes(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the root mean square distance to the nearest mode, and the occupancies."""
        # in the mode's own widths; chunks bound the memory
        ratio, k = zip(*(self._nearest(part) for part in x.split(1000)), strict=True)
        occupied = torch.bincount(torch.cat(k), minlength=len(self.data.means)) / len(x)
        return torch.cat(ratio).square().mean().sqrt().item(), occupied

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, k = (torch.cdist(x, self.data.means) / self.data.stds).min(1)
        return values, k

    def __call__(self, x: Tensor) -> Distance:
        """Return sw2, std and weights."""
        if not x.isfinite().all():
            return Distance(math.nan, math.nan, math.nan)
        distance = (x @ self.directions).sort(0).values - self.sorted
        width, occupancy = self._modes(x)
        weights = (occupancy - self.occupancy).abs().sum().item() / 2
        few = len(self.data.means) < 100
        sw2 = distance.square().mean().sqrt().item()
        return Distance(sw2, width / self.width - 1, weights if few else math.nan)
