"""Carrying a plan out with a field: the driver that owns the model.

(The other driver is `GaussianFlowScheduler.step`, whose caller owns the model; both are tested to
agree bit for bit.)
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fm_diffusers.solvers.base import Solver
from fm_diffusers.solvers.steps import Memory, Noise, memory_size, update


def trajectory(
    solver: Solver,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
) -> Iterator[Tensor]:
    """Yield the sample at every time of the grid after the first; see `integrate`."""
    if not isinstance(solver, Solver):
        raise ValueError(
            f"solver must be a Solver made with its path, SOLVERS['heun'](path), got "
            f"{type(solver).__name__}: the order is (solver, field, x, times)"
        )
    plan = solver.plan(times)
    size = memory_size(plan)
    if noise is None and any(step.std for step in plan):
        raise ValueError(
            "an SDE needs noise: pass noise=lambda t, s: torch.randn(x.shape, generator=...)"
        )
    memory: Memory = ()
    for step in plan:
        q = field(x, torch.tensor(step.t, dtype=torch.float64))
        drawn = noise(*step.interval) if noise is not None and step.std else None
        x, memory = update(step, memory, x, q, drawn, size)
        if step.ends_interval:
            yield x


def integrate(
    solver: Solver,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
) -> Tensor:
    r"""Carry samples along a field, from the first of `times` to the last.

    Args:
        solver: a solver of `SOLVERS`, made with the path and what `field` predicts.
        field: `f(x, t)` with `t` a 0-dim float64 tensor, returning what `solver.prediction` names.
        x: samples at the first time, shape `(batch, ...)`.
        times: shape `(n + 1,)`, increasing from noise (0) to data (1); an ODE also runs back.
        noise: `noise(t, s)` draws standard normal noise like `x` for the step from t to s.

    Returns:
        The samples at the last time.

    Raises:
        ValueError: for times that the solver cannot take, or an SDE without `noise`.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> from fm_diffusers.solvers import SOLVERS
        >>> x = torch.tensor([2.0], dtype=torch.float64)
        >>> to_zero = lambda x, t: -x / (1 - t)  # all data at 0: u = (0 - x)/(1 - t)
        >>> integrate(SOLVERS["euler"](Linear()), to_zero, x, torch.linspace(0, 1, 5))
        tensor([0.], dtype=torch.float64)
    """
    for sample in trajectory(solver, field, x, times, noise):  # noqa: B007
        pass
    return sample
