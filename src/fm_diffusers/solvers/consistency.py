r"""What must hold of every plan, whatever the solver: it is checked when the plan is made.

Every number of a plan is finite, and no standard deviation is negative. A solver that says in
which frame it works, a scale S and a clock :math:`\tau` with :math:`d(x/S) = k\, d\tau`, carries a
slope k that does not change exactly over every interval,

.. math:: x_s = \frac{S_s}{S_t} x_t + S_s (\tau_s - \tau_t) k,

however many slopes it looks back at: the weights of all slopes sum to
:math:`S_s (\tau_s - \tau_t)` (and are multiplied, with that of the sample, by the gain of a step
that is noised back). A method whose weights do not converges to something else.
"""

import math

from torch import Tensor

from fm_diffusers.solvers.steps import Step

#: How far sums of weights may be off, relative to the largest of them: their rounding is less.
TOLERANCE = 1e-8


def check_weights(name: str, steps: list[Step], exact: tuple[Tensor, Tensor] | None) -> None:
    """Raise unless the weights of a plan are finite and carry a constant slope exactly.

    Args:
        name: the solver's, for the message.
        steps: of a plan, their slopes not yet normalised.
        exact: for each interval, from the first, the weights that the sample at its start and a
            constant slope have in the sample at its end; None where the solver states none.

    Raises:
        ValueError: naming the solver, the step, the weights and the way out.
    """
    for i, step in enumerate(steps):
        row = next((row for row in step.rows if not all(map(math.isfinite, row))), None)
        if row or not all(map(math.isfinite, (*step.slope, step.std))) or step.std < 0:
            raise ValueError(
                f"{_place(name, steps, i)} has weights {row or step.rows[-1]} of the sample and "
                f"of slopes, {step.slope} in the slope and noise of {step.std}, which must be "
                f"finite: {_WAY_OUT}"
            )
    if exact is None:
        return
    ends = [i for i, step in enumerate(steps) if step.ends_interval]
    starts = [0, *(i + 1 for i in ends)]
    for start, i, factor, weight in zip(starts, ends, *(w.tolist() for w in exact), strict=False):
        taken = steps[start : i + 1]
        for past in range(max(len(one.rows) for one in taken)):
            found = _carried(taken, past)
            size = max(abs(w) for one in taken for w in one.row(past)) + abs(factor) + abs(weight)
            if not _close(found, (factor, weight), TOLERANCE * size):
                raise ValueError(
                    f"{_place(name, steps, i)} does not carry a constant slope exactly: the "
                    f"sample has weight {found[0]} and the slopes {found[1]} in all, where "
                    f"{factor} and {weight} are right; the weights of an own solver must sum to "
                    "them (b of a Tableau to 1), of one in SOLVERS this is a fault to report"
                )


def _carried(steps: list[Step], past: int) -> tuple[float, float]:
    """Return the weights of the sample and of a constant slope after the steps of an interval."""
    factor, weight = 1.0, 0.0
    for step in steps:
        own, *slopes = step.row(past)
        factor, weight = own * factor, own * weight + sum(slopes)
    return factor, weight


def _close(found: tuple[float, float], wanted: tuple[float, float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


def _place(name: str, steps: list[Step], i: int) -> str:
    t, s = steps[i].interval
    return f"{name}: step {i} of {len(steps)}, from t = {t} to {s}"


_WAY_OUT = (
    "keep times strictly inside (0, 1) where the path or the prediction is singular (t_min, "
    "t_max), or take a weaker diffusion, more steps or another solver"
)
