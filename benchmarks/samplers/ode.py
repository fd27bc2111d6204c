r"""How far from the truth: samplers of the probability flow ODE, side by side on exact fields.

    python -m benchmarks.samplers.ode --output_dir benchmarks/results [--mnist FOLDER]

Every sampler starts from the same noise and asks the same exact field; the error is the distance
of its endpoint from the converged one, so that it is the sampler's own. With :math:`e_i` the root
mean square of sample i's error over its dimensions,

- `rms` is :math:`(\frac1n \sum_i e_i^2)^{1/2}`, which a few samples that end in another basin set,
- `median` is that of the :math:`e_i`, the error of a typical sample,
- `wrong` is the share of samples with :math:`e_i > 0.3`.

Default settings meet default settings; then each side gets its best grid, chosen on the same test
set: for the peers their native options and all of `GRIDS`, for ours `GRIDS` alone. A grid is a row
of noise levels of the linear path; another path stops at the same signal-to-noise ratios. Peers
run on the path of their users: flow samplers on the linear one, diffusion samplers on the variance
preserving one. Ours run on all, through the public scheduler.

It writes `ode.csv`, one row for each run; `ode.md`, the tables; and `ode.png`.
"""

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from benchmarks.samplers.ode_report import Line, draw, table
from benchmarks.samplers.peers import FLOW_PEERS, VP_PEERS, Peer
from benchmarks.samplers.problems import PROBLEMS, Problem
from benchmarks.samplers.spacings import GRIDS
from fm_diffusers import PATHS, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate
from fm_diffusers.fields import Field

#: What peers there are on a path, and what their networks predict.
PEERS: dict[str, tuple[dict[str, Peer], str]] = {
    "linear": (FLOW_PEERS, "velocity"),
    "cosine": ({}, "velocity"),
    "variance_preserving": (VP_PEERS, "epsilon"),
}

#: Noise that calibration may use is drawn with other seeds than any test.
CALIBRATION_SEED = 10_000


@dataclass(frozen=True)
class Ours:
    """A configuration of `GaussianFlowScheduler` under test.

    Attributes:
        config: what differs from the defaults.
        grids: what tuning chooses from; empty for none.
        calibrate: whether the few-step samplers are calibrated, on noise that no test uses; the
            runs count as `calibrated`, not as `default`.
    """

    config: dict[str, Any] = field(default_factory=dict)
    grids: dict[str, Callable[[int], Tensor]] = field(default_factory=lambda: GRIDS)
    calibrate: bool = False


#: The configuration for fields without a network's errors: more slopes, and a denser grid at the
#: data than networks bear.
EXACT = {
    "solver_kwargs": {"solver_order": 4, "corrector": True, "lower_order_final": False},
    "grid_kwargs": {"shift": 0.7, "scale": 1.2},
}

#: The budgets that calibration is for.
CALIBRATED = (4, 6, 8, 10)

#: Our entries. The first is the one that the tables and the picture show.
OURS: dict[str, Ours] = {
    "ours": Ours(),
    "ours, exact": Ours(EXACT),
    "ours, calibrated": Ours(calibrate=True, grids={}),
}


@dataclass
class Arguments:
    """Command line."""

    output_dir: str = "benchmarks/results"
    mnist: str | None = field(
        default=None, metadata={"help": "A `datasets` folder of MNIST; by default digits."}
    )
    problems: list[str] = field(default_factory=lambda: ["modes", "images", "classes"])
    paths: list[str] = field(default_factory=lambda: list(PEERS))
    budgets: list[int] = field(default_factory=lambda: [4, 6, 8, 10, 16, 20, 32, 50, 100])
    num_samples: int = field(
        default=128, metadata={"help": "Of `images`; `modes` has 8 times, `classes` half."}
    )
    calibration_samples: int = field(
        default=128, metadata={"help": "Of `images`, as above; half are fitted, half judge."}
    )
    seed: int = field(default=1, metadata={"help": "Of the noise."})
    subset: int = field(default=0, metadata={"help": "Another one is another problem."})
    peers: list[str] | None = field(default=None, metadata={"help": "By default all."})
    cache: str = field(default="outputs/benchmarks/cache", metadata={"help": "Keeps references."})


@dataclass
class Row:
    """One run."""

    problem: str
    path: str
    method: str
    kind: str
    grid: str
    nfe: int
    rms: float
    median: float
    wrong: float


def errors(end: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return rms, median and the share of wrong samples."""
    e = (end - reference).square().mean(1).sqrt()
    wrong = (e > 0.3).double().mean()
    return e.square().mean().sqrt().item(), e.median().item(), wrong.item()


def on_path(path: str, sigmas: Tensor) -> Tensor:
    """Return the noise times `1 - t` of a path at the signal-to-noise ratios of linear sigmas.

    All sigmas shrink by that of the path's own beginning, which is below 1 if data is left there.
    """
    law = PATHS[path]()
    c = law(0.0)
    sigmas = c.beta / (c.alpha + c.beta) * sigmas
    times = law.time(torch.log1p(-sigmas) - torch.log(sigmas))
    times[0] = 0.0
    return 1 - times


def run_ours(
    entry: Ours, path: str, f: Field, noise: Tensor, nfe: int, grid: Callable | None, other: Tensor
) -> Tensor:
    """Sample with the public scheduler; `other` is the noise of the calibration."""
    scheduler = GaussianFlowScheduler(path=path, prediction_type="velocity", **entry.config)
    n = nfe // scheduler.order

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        return f(x, scheduler.to_time(timestep.double()))

    if entry.calibrate:
        calibrate(scheduler, model, n, other, batch_size=len(other), progress=False)
    if grid is None:
        scheduler.set_timesteps(n)
    else:
        # with the end, so that equal steps stay what they are
        scheduler.set_timesteps(sigmas=[*on_path(path, grid(n)).tolist(), 0.0])
    x = noise * scheduler.init_noise_sigma
    assert len(scheduler.timesteps) <= nfe
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
    return x


Run = tuple[str, str, str, Callable[[int], Tensor]]


def our_runs(problem: Problem, path: str, noise: Tensor, args: Arguments) -> Iterator[Run]:
    """Yield method, kind, grid and the sampler of all our entries."""
    f = problem.field(PATHS[path]())
    other = problem.start(args.calibration_samples, args.seed + CALIBRATION_SEED)
    for name, entry in OURS.items():
        kind = "calibrated" if entry.calibrate else "default"
        grids = {"own": None} | ({} if entry.calibrate else entry.grids)
        for label, grid in grids.items():

            def sample(n: int, entry: Ours = entry, grid: Callable | None = grid) -> Tensor:
                return run_ours(entry, path, f, noise, n, grid, other)

            yield name, kind if grid is None else "tuned", label, sample


def peer_runs(problem: Problem, path: str, noise: Tensor, args: Arguments) -> Iterator[Run]:
    """Yield method, kind, grid and the sampler of all settings of the peers."""
    peers, prediction = PEERS[path]
    f = problem.field(PATHS[path](), prediction)
    for name, peer in peers.items():
        if args.peers and name not in args.peers:
            continue
        for kind, label, grid, options in peer.settings(GRIDS):
            call = options | ({} if grid is None else {"grid": grid})

            def sample(n: int, peer: Peer = peer, call: dict = call) -> Tensor:
                return peer(f, noise, n, **call)

            yield name, kind, label, sample


def measure(problem: Problem, path: str, args: Arguments) -> Iterator[Row]:
    """Yield a row for every sampler and budget; a run that breaks down is not a number."""
    noise = problem.start(args.num_samples, args.seed)
    reference = problem.reference(noise, PATHS[path](), Path(args.cache))
    for runs in (our_runs, peer_runs):
        for method, kind, grid, sample in runs(problem, path, noise, args):
            budgets = [n for n in args.budgets if kind != "calibrated" or n in CALIBRATED]
            for nfe in budgets:
                figures = errors(sample(nfe), reference)
                yield Row(problem.name, path, method, kind, grid, nfe, *figures)


def lines(rows: list[Row]) -> list[Line]:
    """Return what the picture shows: name, whose it is, and which rows."""
    ours = next(iter(OURS))
    found = [
        Line("Euler (FlowMatchEuler)", "peer", lambda r: r.method == "FlowMatchEuler", "default"),
        Line("UniPC", "peer", lambda r: r.method == "UniPC-2", "default"),
        Line("best of all peers, tuned", "best", lambda r: r.method not in OURS, None),
        Line("ours", "ours", lambda r: r.method == ours, "default"),
        Line("ours, tuned", "ours", lambda r: r.method in OURS and r.kind != "calibrated", None),
        Line("ours, calibrated", "ours", lambda r: r.method in OURS, "calibrated"),
    ]
    return [line for line in found if any(map(line.shows, rows))]


def save(rows: list[Row], file: Path) -> None:
    """Write the rows."""
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main(args: Arguments) -> list[Row]:
    """Measure, and write the figures, the tables and the picture."""
    torch.set_num_threads(1)
    folder, rows = Path(args.output_dir), []
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.problems:
        problem = PROBLEMS[name](args.mnist, args.subset)
        for path in args.paths:
            start = time.perf_counter()
            rows += measure(problem, path, args)
            print(f"{name}, {path}: {time.perf_counter() - start:.0f} s", flush=True)
            save(rows, folder / "ode.csv")
    sizes = "MNIST" if args.mnist else "scikit-learn's digits"
    text = header(f"Samplers of the ODE on exact fields ({sizes})", args)
    (folder / "ode.md").write_text(text + table(rows, list(OURS)))
    first = [row for row in rows if row.path == args.paths[0]]
    draw(first, lines(first), folder / "ode.png")
    broken = sorted({(r.path, r.method, r.grid) for r in rows if not math.isfinite(r.rms)})
    print("not a number:", *broken or ["none"])
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
