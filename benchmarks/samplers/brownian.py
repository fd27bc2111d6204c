r"""Strong convergence: how near n steps come to the image of infinitely many on the same path.

    python -m benchmarks.samplers.brownian --output_dir benchmarks/results

With `noise="brownian"` a loop of any number of steps reads the same Brownian path. Every row is
the root mean square distance of its samples from those of the SDE itself on that path, for two
exact fields of one-dimensional data:

- `gaussian`, N(0, 1): the SDE is linear, and where it goes is known from one increment of the path
  over the whole time (`fm_diffusers.scheduling.brownian`);
- `mixture`, of three Gaussians: the samples of `--reference_steps` steps.

The last column is the order, minus the slope of the error over the last three numbers of steps.
One sample has as many elements as there are problems, each with a path of its own. It writes
`brownian.csv` and `brownian.md`.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.scheduling.brownian import BrownianClock

#: The data by name.
DATA = {
    "gaussian": GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 1.0),
    "mixture": GaussianMixture(
        torch.tensor([[-1.0], [0.3], [1.5]], dtype=torch.float64), torch.tensor([0.3, 0.2, 0.4])
    ),
}

#: The solver of a reference: ours, but where noise is added up to the data itself.
REFERENCES = {"constant": "euler_maruyama"}

INTRODUCTION = """\
Root mean square distance between samples of n steps and those of the SDE itself on the same
Brownian path (`noise="brownian"`), one-dimensional data of standard deviation near 1. `gaussian`
is measured against the exact solution, `mixture` against {reference} steps. The last column is the
order, from the last three numbers of steps. `independent` draws as samplers do without the option:
its images have nothing to do with those of the reference.

The order is about 1 or more, with two kinds of exception that no noise can mend. Coefficients
that are infinite at pure noise (`flow_grpo`, `memoryless`) cost `euler_maruyama`, which needs a
rate there, all order above their scale: .245 for `flow_grpo`, where ours and `ddim` keep 1. A
coefficient that is not 0 at the data (`constant`) moves samples up to the last moment, within
steps that the other solvers end without noise: take `euler_maruyama` for it, or a coefficient that
vanishes there.

"""


@dataclass
class Arguments:
    """Command line."""

    output_dir: str = "benchmarks/results"
    num_samples: int = 1000
    reference_steps: int = 1024
    data: list[str] = field(default_factory=lambda: list(DATA))
    paths: list[str] = field(default_factory=lambda: ["linear", "cosine", "variance_preserving"])
    diffusions: list[str] = field(
        default_factory=lambda: ["memoryless", "flow_grpo", "beta", "constant"]
    )
    solvers: list[str] = field(
        default_factory=lambda: ["predictor_corrector", "ddim", "euler_maruyama"]
    )
    steps: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])


class Row(NamedTuple):
    """The errors of a sampler.

    Attributes:
        data: a name in `DATA`.
        path: a name in `PATHS`.
        diffusion: a name in `DIFFUSIONS`.
        solver: a name in `SOLVERS`.
        noise: a name in `NOISES`.
        errors: by number of steps.
    """

    data: str
    path: str
    diffusion: str
    solver: str
    noise: str
    errors: tuple[float, ...]

    def order(self, steps: list[int]) -> float:
        """Return minus the slope of the error over the last three numbers of steps."""
        return -np.polyfit(np.log(steps[-3:]), np.log(self.errors[-3:]), 1)[0].item()


def start(scheduler: GaussianFlowScheduler, count: int) -> Tensor:
    """Return the noise of all runs."""
    noise = torch.randn(1, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return noise * scheduler.init_noise_sigma


def sample(scheduler: GaussianFlowScheduler, data: GaussianMixture, count: int) -> Tensor:
    """Return samples on the paths of all runs."""
    exact, generator = data.field(scheduler.path), torch.Generator().manual_seed(0)
    x = start(scheduler, count)
    for timestep in scheduler.timesteps:
        output = exact(x.T, scheduler.to_time(timestep.double())).T
        x = scheduler.step(output, timestep, x, generator).prev_sample
    return x


def gaussian_solution(scheduler: GaussianFlowScheduler, count: int) -> Tensor:
    r"""Return where the SDE of data N(0, 1) goes from noise.

    :math:`x_1/\sqrt{V_1} = e^{-L} x_0/\sqrt{V_0} + \sqrt{1 - e^{-2L}}\, n`.
    """
    clock, generator = BrownianClock(scheduler.path, scheduler.diffusion), torch.Generator()
    (whole,) = clock.spans([(0.0, 1.0)])
    forgets = not clock.process.integral(scheduler.path, 0.0, 0.5).isfinite()
    kept = 0.0 if forgets else 1 / (1 + 2.0**whole.stop)
    x = start(scheduler, count)
    n = scheduler.first_place(1, generator.manual_seed(0)).paths.increments(whole, x)
    size = torch.hypot(*scheduler.path(torch.tensor([0.0, 1.0], dtype=torch.float64))[:2])
    return size[1] * (math.sqrt(kept) * x / size[0] + math.sqrt(1 - kept) * n)


def make(steps: int, path: str, diffusion: str, solver: str, noise: str) -> GaussianFlowScheduler:
    """Return a scheduler with its timesteps."""
    scheduler = GaussianFlowScheduler(path=path, diffusion=diffusion, solver=solver, noise=noise)
    scheduler.set_timesteps(steps)
    return scheduler


def measure(args: Arguments) -> Iterator[Row]:
    """Yield a row for every sampler."""
    for data, path, diffusion in product(args.data, args.paths, args.diffusions):
        solver = REFERENCES.get(diffusion, "predictor_corrector")
        if data == "gaussian":
            truth = gaussian_solution(
                make(2, path, diffusion, "ddim", "brownian"), args.num_samples
            )
        else:
            scheduler = make(args.reference_steps, path, diffusion, solver, "brownian")
            truth = sample(scheduler, DATA[data], args.num_samples)
        runs = [(solver, "brownian") for solver in args.solvers]
        if diffusion == args.diffusions[0]:
            runs.append((args.solvers[0], "independent"))
        for solver, noise in runs:
            made = (make(n, path, diffusion, solver, noise) for n in args.steps)
            ends = (sample(scheduler, DATA[data], args.num_samples) for scheduler in made)
            errors = tuple((end - truth).square().mean().sqrt().item() for end in ends)
            yield Row(data, path, diffusion, solver, noise, errors)


def report(rows: list[Row], args: Arguments) -> str:
    """Return the table of every kind of data."""
    text = header("Strong convergence on a Brownian path", args)
    text += INTRODUCTION.format(reference=args.reference_steps)
    columns = [*Row._fields[1:5], *(f"{n} steps" for n in args.steps), "order"]
    for data in args.data:
        text += f"## {data}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
        for row in (row for row in rows if row.data == data):
            figures = [f"{error:.4f}" for error in row.errors] + [f"{row.order(args.steps):.2f}"]
            text += f"| {' | '.join([*row[1:5], *figures])} |\n"
        text += "\n"
    return text.rstrip() + "\n"


def main(args: Arguments) -> list[Row]:
    """Compute, and write the figures and the tables."""
    torch.set_num_threads(1)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(measure(args))
    with (folder / "brownian.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*Row._fields[:5], *args.steps, "order"])
        for row in rows:
            errors = (f"{error:.3e}" for error in row.errors)
            writer.writerow([*row[:5], *errors, f"{row.order(args.steps):.2f}"])
    (folder / "brownian.md").write_text(report(rows, args))
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
