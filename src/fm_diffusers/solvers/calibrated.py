r"""A multistep method whose last step reads out everything that the model said on the way.

Whatever linear method made the samples, the last one is a combination of the sample before it and
of all slopes,

.. math:: \frac{x_N}{S_N} = c\, \frac{x_{N-1}}{S_{N-1}} + \sum_{j=0}^{N-1} w_j k_{N-1-j},
          \qquad S = \alpha + \beta,

and a polynomial through the last few of them is but one choice of c and w. For few steps a better
one follows from the model's own converged samples by least squares (`fm_diffusers.calibration`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fm_diffusers.solvers.exponential import Multistep
from fm_diffusers.solvers.steps import Step, Weights


@dataclass(frozen=True)
class Calibrated(Multistep):
    """A multistep method with a read-out of its own in the last step; see the module.

    Attributes:
        readout: :math:`c, w_0, w_1, \\dots`, as many as the grid has steps and one. A loop that
            begins on the way has not seen all slopes and ends as the method does.
    """

    readout: Weights = ()

    def constant(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        # a fitted last step need not carry a constant slope exactly
        factor, weight = super().constant(t, s)
        return factor[:-1], weight[:-1]

    def steps(self, grid: Tensor) -> Iterator[Step]:  # noqa: D102
        *before, last = super().steps(grid)
        if len(self.readout) != len(grid):
            raise ValueError(
                f"a read-out of {len(self.readout)} weights is for a grid of "
                f"{len(self.readout) - 1} steps, got one of {len(grid) - 1}"
            )
        yield from before
        size, size_end = ((c.alpha + c.beta).item() for c in map(self.path, grid[-2:]))
        row = (self.readout[0] * size_end / size, *(size_end * w for w in self.readout[1:]))
        own = tuple(last.row(past) for past in range(len(grid) - 2))
        yield last._replace(rows=(*own, row))
