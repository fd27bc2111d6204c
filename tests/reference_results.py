"""A few float64 results of every row of every table, so that a change of any number is seen.

    python tests/reference_results.py --write

adds what is missing and replaces what has changed. Changed numbers belong in CHANGELOG.md.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fm_diffusers import (
    COUPLINGS,
    DIFFUSIONS,
    GRIDS,
    PATHS,
    PREDICTIONS,
    SOLVERS,
    TIME_CONVENTIONS,
    TIME_SAMPLERS,
    WEIGHTINGS,
    GaussianFlowScheduler,
)
from fm_diffusers.couplings import couple
from fm_diffusers.objectives import sample_times
from fm_diffusers.predictions import CANONICAL, conversion
from fm_diffusers.weightings import loss_weight

FILE = Path(__file__).parent / "data" / "reference_results.json"
COMMAND = "python tests/reference_results.py --write"
TIMES = torch.tensor([0.15, 0.5, 0.85], dtype=torch.float64)


def of_path(name: str) -> list[Tensor]:
    """Return the coefficients at three times, and the time of a signal-to-noise ratio."""
    path = PATHS[name]()
    return [*path(TIMES), path.time(torch.tensor([0.3], dtype=torch.float64))]


def of_prediction(name: str) -> list[Tensor]:
    """Return the conversion to and from the canonical velocity, on a path of another shape."""
    path = PATHS["cosine"]()
    return [*conversion(path, name, CANONICAL, TIMES), *conversion(path, "sample", name, TIMES)]


def run(diffusion: str | None = None, n: int = 7, **config: str) -> Tensor:
    """Return two samples after a run on a network that is a sine, with known noise."""
    scheduler = GaussianFlowScheduler(diffusion=diffusion, **config)
    scheduler.set_timesteps(n)
    x, place = torch.tensor([[-1.2], [0.4]], dtype=torch.float64), None
    for i, t in enumerate(scheduler.timesteps):
        told = {"advance": scheduler.advance(t)} if scheduler.is_flow_map else {}
        step = scheduler.transition(torch.sin(2 * x) + 0.1, t, x, place=place, **told)
        x, place = step.mean + step.std * math.cos(i), step.place
    return x


def of_solver(name: str) -> list[Tensor]:
    """Return runs as an ODE and as an SDE, in few steps and in more."""
    return [run(noise, n, solver=name) for noise in (None, "beta") for n in (5, 9)]


def of_diffusion(name: str) -> list[Tensor]:
    r"""Return the rate, :math:`e^{-K}` of two steps and a run."""
    row, path = DIFFUSIONS[name], PATHS["variance_preserving"]()
    rate = [row.squared(path, TIMES)] if row.profile is not None else []
    return [*rate, torch.exp(-row.integral(path, TIMES[:-1], TIMES[1:])), run(name)]


def of_grid(name: str) -> list[Tensor]:
    """Return the grids of five steps on two paths."""
    return [GRIDS[name](5, PATHS[path]()) for path in ("linear", "cosine")]


def of_weighting(name: str) -> list[Tensor]:
    """Return weights for two kinds of predictions."""
    path = PATHS["linear"]()
    return [loss_weight(path, TIMES, kind, name) for kind in ("velocity", "epsilon")]


def of_coupling(name: str) -> list[Tensor]:
    """Return the noise of six samples in its order."""
    z = torch.sin(torch.arange(6, dtype=torch.float64))[:, None]
    return [couple(z, torch.cos(7 * z), name, generator=torch.Generator().manual_seed(0))]


def of_time_sampler(name: str) -> list[Tensor]:
    """Return four times."""
    return [sample_times(4, name, torch.Generator().manual_seed(0))]


def of_convention(name: str) -> list[Tensor]:
    """Return what networks are fed, and the noise levels."""
    row, path = TIME_CONVENTIONS[name], PATHS["cosine"]()
    return [row.timestep(path, 1000, TIMES), row.sigma(path, 1000, TIMES)]


#: Every table with what is computed of a row.
TABLES: dict[str, tuple[dict, Callable[[str], list[Tensor]]]] = {
    "paths": (PATHS, of_path),
    "predictions": (PREDICTIONS, of_prediction),
    "solvers": (SOLVERS, of_solver),
    "diffusions": (DIFFUSIONS, of_diffusion),
    "grids": (GRIDS, of_grid),
    "weightings": (WEIGHTINGS, of_weighting),
    "couplings": (COUPLINGS, of_coupling),
    "time_samplers": (TIME_SAMPLERS, of_time_sampler),
    "time_conventions": (TIME_CONVENTIONS, of_convention),
}
NAMES = [(table, name) for table, (rows, _) in TABLES.items() for name in rows]


def computed(table: str, name: str) -> list[float]:
    """Return the results of a row."""
    return torch.cat([v.double().flatten() for v in TABLES[table][1](name)]).tolist()


def kept() -> dict[str, dict[str, list[float]]]:
    """Return the results in the file, which has them with all their digits."""
    return json.loads(FILE.read_text())


def write() -> None:
    """Write the results of all rows."""
    found: dict[str, dict[str, list[float]]] = {}
    for table, name in NAMES:
        found.setdefault(table, {})[name] = computed(table, name)
    tables = [
        f"  {json.dumps(table)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {values}" for name, values in rows.items())
        + "\n  }"
        for table, rows in found.items()
    ]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("{\n" + ",\n".join(tables) + "\n}\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    torch.set_num_threads(1)
    write()
