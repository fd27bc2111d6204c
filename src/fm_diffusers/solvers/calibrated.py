r"""A multistep method that was fitted to a model: its last steps, or all, have own weights.

Whatever linear method made the samples, every one is a combination of the sample before it and of
all slopes so far,

.. math:: \frac{x_{n+1}}{S_{n+1}} = c_n \frac{x_n}{S_n} + \sum_{j=0}^{n} w_{nj} k_{n-j},
          \qquad S = \alpha + \beta,

and a polynomial through the last few of them is but one choice of c and w. For few steps better
ones follow from the model's own converged samples by least squares (`fm_diffusers.calibration`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fm_diffusers.solvers.exponential import Multistep
from fm_diffusers.solvers.steps import Step, Weights


@dataclass(frozen=True)
class Calibrated(Multistep):
    """A multistep method with rows of its own in the last steps; see the module.

    Attributes:
        rows: :math:`c, w_0, w_1, \\dots` of the last steps of the grid, each with as many weights
            of slopes as the grid has steps until its end. A loop that begins on the way has not
            seen all slopes, and every step of it is the method's.
    """

    rows: tuple[Weights, ...] = ()

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        # fitted steps need not carry a constant slope exactly
        count, (a, b) = len(t) - len(self.rows), super().constant(t, s)
        return a[:count], b[:count]

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        first = len(grid) - 1 - len(self.rows)
        sizes = [len(row) for row in self.rows]
        if sizes != list(range(first + 2, len(grid) + 1)):
            raise ValueError(
                f"rows of {sizes} weights are for the last steps of a grid of "
                f"{max(sizes, default=1) - 1}, each with one more than the one before, got a "
                f"grid of {len(grid) - 1}: take as many steps as were calibrated"
            )
        size = [(c.alpha + c.beta).item() for c in map(self.path, grid)]
        for n, step in enumerate(super().steps(grid)):
            if n >= first:
                c, *weights = self.rows[n - first]
                row = (c * size[n + 1] / size[n], *(size[n + 1] * w for w in weights))
                step = step._replace(rows=(*map(step.row, range(n)), row))
            yield step
