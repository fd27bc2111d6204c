"""The search of the best trial: a grid, a method, which steps are fitted, where each step starts.

Each choice is made with the ones before it, and a step is moved to where a parabola through the
scores of three places is least.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fm_diffusers.calibration.problem import CONVERGED, Problem, Trial

#: The grids that are tried: the shifts with the first scale, then the other scales with the best.
SHIFTS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
SCALES = (1.2, 1.0, 1.4)

#: The methods that are tried beside that of the converged trajectories.
METHODS = [
    CONVERGED | {"solver_order": 1},
    CONVERGED | {"solver_order": 3},
    CONVERGED | {"form": "data"},
    CONVERGED | {"corrector": False},
]

#: By how much a step is moved in log-SNR to either side, and at most how many times that.
MOVE, FARTHEST = 0.2, 2.0


def trials(n: int) -> int:
    """Return how many trials a search takes at most."""
    return len(SHIFTS) + len(SCALES) - 1 + len(METHODS) + 1 + 3 * (n - 1)


def search(problem: Problem, n: int, advance: Callable[[int], Any]) -> Trial:
    """Return the best trial of `n` steps; `advance` is told of the steps of each."""
    best = Trial([], CONVERGED)

    def attempt(**changes: Any) -> float:
        nonlocal best
        trial = problem.judged(replace(best, **changes), best.seen)
        best = min(best, trial, key=lambda one: one.score)
        advance(n)
        return trial.score

    def attempt_grid(shift: float, scale: float = SCALES[0]) -> float:
        return attempt(log_snr=problem.log_snr(n, shift=shift, scale=scale))

    shift = min(SHIFTS, key=attempt_grid)
    for scale in SCALES[1:]:
        attempt_grid(shift, scale)
    for method in METHODS:
        attempt(method=method)
    attempt(every=True)
    for i in range(n - 1):
        start = best

        def moved(by: float, i: int = i, start: Trial = start) -> list[float]:
            return [value + by * (i == j) for j, value in enumerate(start.log_snr)]

        up, down = attempt(log_snr=moved(MOVE)), attempt(log_snr=moved(-MOVE))
        bend = up + down - 2 * start.score
        if 0 < bend < math.inf:
            vertex = (down - up) / (2 * bend)
            attempt(log_snr=moved(MOVE * max(-FARTHEST, min(FARTHEST, vertex))))
        else:
            advance(n)
    return best
