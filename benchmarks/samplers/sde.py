r"""How well a sampler of the SDE keeps the distribution, side by side on exact fields.

    python -m benchmarks.samplers.sde --output_dir benchmarks/results [--mnist FOLDER]

Paths of an SDE have no truth to be compared with, their distribution has: samples stand against as
many fresh data, by sliced Wasserstein distance, by the width of the modes and by their weights.
Default settings are set_timesteps(nfe); tuned ones the grid of smallest error of the width.

Where data are Gaussian no sample is needed: that is `gaussian_sde`.

The peers are in `sde_peers`, the measures in `distribution`; `fresh data` in the tables is the
Monte-Carlo floor, a second set of data in the place of samples. It writes `sde.csv`, `sde.md` and
`sde.png`.
"""

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from benchmarks.samplers.distribution import Judge
from benchmarks.samplers.peers import Peer, Preserving
from benchmarks.samplers.problems import PROBLEMS, Problem
from benchmarks.samplers.sde_peers import SDE_PEERS
from benchmarks.samplers.sde_report import draw_sde, tables
from benchmarks.samplers.spacings import GRIDS, Grid
from fm_diffusers import PATHS, GaussianFlowScheduler
from fm_diffusers.fields import Field

#: Our configurations of the public scheduler, on the linear path; the picture shows two.
OURS: dict[str, dict[str, Any]] = {
    f"ours, {name}": {"diffusion": name}
    for name in ("memoryless", "flow_grpo", "beta", "constant")
}

#: What the tuned rows choose from, by the smallest `std`.
SOME_GRIDS = {
    name: GRIDS[name] for name in ("logit 1 x1", "logit 2 x1", "logit 1 x1.4", "karras .05-20")
}


@dataclass
class Arguments:
    """Command line."""

    output_dir: str = "benchmarks/results"
    mnist: str | None = field(
        default=None, metadata={"help": "A `datasets` folder of MNIST; by default digits."}
    )
    problems: list[str] = field(default_factory=lambda: ["modes", "small_images"])
    budgets: list[int] = field(default_factory=lambda: [8, 16, 32])
    num_samples: int = field(
        default=1000, metadata={"help": "Of `small_images`; `modes` has 8 times as many."}
    )
    seed: int = 1
    subset: int = 0


@dataclass
class Row:
    """One run."""

    problem: str
    method: str
    kind: str
    grid: str
    nfe: int
    sw2: float
    std: float
    weights: float


Sampler = Callable[[Tensor, int, torch.Generator | None], Tensor]


def run_ours(
    config: dict, f: Field, x: Tensor, nfe: int, grid: Grid | None, generator: Any
) -> Tensor:
    """Sample with the public scheduler."""
    scheduler = GaussianFlowScheduler(prediction_type="velocity", **config)
    if grid is None:
        scheduler.set_timesteps(nfe)
    else:
        scheduler.set_timesteps(sigmas=[*grid(nfe).tolist(), 0.0])
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = f(x, scheduler.to_time(t.double()))
        x = scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
    return x


def samplers(data: Any, grids: dict[str, Grid]) -> Iterator[tuple[str, str, str, Sampler]]:
    """Yield method, kind, grid and `sample(noise, nfe, generator)` of ours and the peers."""
    velocity = data.field(PATHS["linear"]())
    epsilon = data.field(PATHS["variance_preserving"](), "epsilon")
    for name, config in OURS.items():
        for label, grid in ({"own": None} | grids).items():

            def ours(x: Tensor, n: int, g: Any, config: dict = config, grid: Any = grid) -> Tensor:
                return run_ours(config, velocity, x, n, grid, g)

            yield name, "tuned" if grid else "default", label, ours
    for name, peer in SDE_PEERS.items():
        f = epsilon if isinstance(peer, Preserving) else velocity
        for kind, label, grid, options in peer.settings(grids):
            call = options | ({"grid": grid} if grid else {})

            def theirs(
                x: Tensor, n: int, g: Any, peer: Peer = peer, call: dict = call, f: Field = f
            ) -> Tensor:
                return peer(f, x, n, generator=g, **call)

            yield name, kind, label, theirs


def measure(problem: Problem, args: Arguments) -> Iterator[Row]:
    """Yield the floor and a row for every sampler and budget."""
    noise = problem.start(args.num_samples, args.seed)
    judge = Judge(problem, len(noise), args.seed + 1)
    for nfe in args.budgets:
        yield Row(problem.name, "fresh data", "floor", "", nfe, *judge(judge.more))
    for method, kind, grid, sample in samplers(problem.data, SOME_GRIDS):
        for nfe in args.budgets:
            generator = torch.Generator().manual_seed(args.seed + 2)
            end = sample(noise, nfe, generator)
            yield Row(problem.name, method, kind, grid, nfe, *judge(end))


def main(args: Arguments) -> list[Row]:
    """Measure, and write the figures, the tables and the picture."""
    torch.set_num_threads(1)
    folder, rows = Path(args.output_dir), []
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.problems:
        start = time.perf_counter()
        rows += measure(PROBLEMS[name](args.mnist, args.subset), args)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    with open(folder / "sde.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    sizes = "MNIST" if args.mnist else "scikit-learn's digits"
    text = header(f"Samplers of the SDE on exact fields ({sizes})", args)
    (folder / "sde.md").write_text(text + tables(rows))
    draw_sde(rows, list(OURS), folder / "sde.png")
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
