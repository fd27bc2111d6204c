r"""Rows of one's own for every table, an example for `--plugins`.

    accelerate launch examples/train_mnist.py --dataset_name digits --plugins examples/my_rows.py \
        --path square --time_sampler early --weighting early --output_dir outputs/square
    python examples/evaluate.py --model outputs/square --dataset_name digits \
        --plugins examples/my_rows.py --solvers ralston --diffusions none gentle

A row is an assignment, and its signature that of the rows beside it. Whoever loads a pipeline that
was trained on such a path must run this file first, `load_plugins(["my_rows.py"])`: a name alone
is saved.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fm_diffusers import DIFFUSIONS, GRIDS, PATHS, SOLVERS, Diffusion, GaussianPath
from fm_diffusers.couplings import COUPLINGS, Cost
from fm_diffusers.objectives import TIME_SAMPLERS
from fm_diffusers.paths import Coefficients
from fm_diffusers.solvers import RungeKutta, Tableau
from fm_diffusers.weightings import WEIGHTINGS, Weighting


@dataclass(frozen=True)
class Square(GaussianPath):
    r"""The path :math:`x_t = t^2 z + (1 - t^2) \varepsilon`, slow at the noise."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, beta and their derivatives in the shape of `t`."""
        return Coefficients(t**2, 1 - t**2, 2 * t, -2 * t)

    def time(self, log_snr: Tensor) -> Tensor:
        """Return the time with a given log(alpha/beta)."""
        return torch.sigmoid(log_snr).sqrt()


def cubic(n: int, path: GaussianPath, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """Return `n + 1` ascending times, dense at the noise."""
    return t_min + (t_max - t_min) * torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 3


def early(
    n: int, generator: torch.Generator | None, device: torch.device, power: float = 2.0
) -> Tensor:
    """Return `n` times in [0, 1], most of them near the noise; `power` is set by the kwargs."""
    return torch.rand(n, generator=generator, device=device) ** power


def reversed_order(n: int, cost: Cost, generator: torch.Generator | None) -> Tensor:
    """Return a permutation of `n`; `cost()` is the matrix of squared distances."""
    return torch.arange(n).flip(0)


def early_weight() -> Weighting:
    """Return the weight 1 - t of the velocity's squared error."""
    return Weighting(("velocity",), lambda path, t, error: (1 - t) * error)


PATHS["square"] = Square
# sigma_t^2 = 2 profile beta^power
DIFFUSIONS["gentle"] = Diffusion(lambda path, t, scale: scale * t, power=2, scale=0.5)
GRIDS["cubic"] = cubic
SOLVERS["ralston"] = partial(RungeKutta, tableau=Tableau(2, ((), (2 / 3,)), (1 / 4, 3 / 4)))
TIME_SAMPLERS["early"] = early
COUPLINGS["reversed"] = reversed_order
WEIGHTINGS["early"] = early_weight
