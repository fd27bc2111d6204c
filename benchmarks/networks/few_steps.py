r"""Trained networks: how close to their own converged samples are a few evaluations?

    python -m benchmarks.networks.few_steps --models outputs/mnist --dataset_name ylecun/mnist

samples pipelines of `examples/train_mnist.py` from fixed noise with this package, with the
schedulers of others as their users run them, and with those tuned (the best over solvers and
grids, chosen by the median on this very noise). The truth, and the floor under all errors, are
those of `trained`. Every figure goes to `network.csv` as it comes, and what stands there is not
computed again unless `--renew` names its method; `network.md` and `network.png` show it.

The second half, `--frechet_samples`, compares distributions with real images (see `metrics`), for
few methods as it takes more samples; ours with 50 evaluations shows what the network itself has.
"""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.networks.metrics import Judge, distance
from benchmarks.networks.report import FIELDS, best, write_report
from benchmarks.networks.trained import Network, Velocity, calibrated, converged, ours
from benchmarks.samplers.peers import FLOW_PEERS
from benchmarks.samplers.spacings import GRIDS
from fm_diffusers import GaussianFlowScheduler

Figures = dict[str, float]
Sampler = Callable[[Velocity, Tensor, int], Tensor]

#: Our configurations by their names in the tables.
OURS: dict[str, dict[str, Any]] = {"ours": {}}

#: The peers that run as users run them, those that are tuned, and the grids tried on them.
DEFAULT = ("FlowMatchEuler", "FlowMatchHeun", "UniPC-2", "UniPC-3", "DPM++2M", "DPM++3M")
TUNED = ("UniPC-2", "UniPC-3", "DPM++2M", "DPM++3M")
SHARED_GRIDS = ("logit 1 x1", "logit 2 x1", "logit 3 x1", "logit 1 x1.4", "logit 2 x1.4")


@dataclass
class NetworkArguments:
    """Command line."""

    models: list[str] = field(metadata={"help": "Pipelines of class-conditional networks."})
    dataset_name: str = "ylecun/mnist"
    guidance_scales: list[float] = field(default_factory=lambda: [1.0, 3.0, 7.0])
    evaluations: list[int] = field(default_factory=lambda: [4, 6, 8, 10, 16, 20])
    num_samples: int = 32
    default_peers: list[str] = field(default_factory=lambda: list(DEFAULT))
    tuned_peers: list[str] = field(default_factory=lambda: list(TUNED))
    tuned_grids: list[str] = field(default_factory=lambda: list(SHARED_GRIDS))
    calibration_samples: int = field(default=0, metadata={"help": "0 leaves `calibrated` out."})
    calibrated_evaluations: list[int] = field(default_factory=lambda: [4, 6, 8, 10])
    frechet_samples: int = field(default=500, metadata={"help": "0 leaves this part out."})
    frechet_evaluations: list[int] = field(default_factory=lambda: [6, 10, 20, 50])
    frechet_guidance_scales: list[float] = field(default_factory=lambda: [1.0, 3.0])
    batch_size: int = 100
    renew: list[str] = field(
        default_factory=list, metadata={"help": "Methods to measure again, for example `ours`."}
    )
    seed: int = 0
    output_dir: str = "benchmarks/results"


def samplers(
    args: NetworkArguments, network: Network, guidance: float
) -> Iterator[tuple[str, str, str, Sampler]]:
    """Yield kind, name, setting and function of every sampler."""
    for name, config in OURS.items():
        yield "ours", name, "own", partial(ours, GaussianFlowScheduler(**config))
    if args.calibration_samples:
        size = args.calibration_samples, args.calibrated_evaluations
        name = "-".join(map(str, [*network.key.values(), guidance, size[0], *size[1]]))
        folder = Path(args.output_dir, "cache", f"calibrated-{name}")
        fitted = calibrated(network, guidance, size[1], size[0], folder)
        yield "ours", "calibrated", "own", partial(ours, fitted)
    for name in args.default_peers:
        for kind, setting, _, options in FLOW_PEERS[name].settings({}):
            if kind == "default":
                yield kind, name, setting, partial(FLOW_PEERS[name], **options)
    for name in args.tuned_peers:
        for setting in args.tuned_grids:
            yield "tuned", name, setting, partial(FLOW_PEERS[name], grid=GRIDS[setting])


def offered(args: NetworkArguments, method: str, nfe: int) -> bool:
    """Return whether a method has something of its own to offer for `nfe` evaluations."""
    return method != "calibrated" or nfe in args.calibrated_evaluations


class Results:
    """The table on disk: rows are appended as they come and never computed twice.

    Args:
        path: of the table.
        renew: methods whose rows are dropped, to be computed again.
    """

    def __init__(self, path: Path, renew: Sequence[str] = ()) -> None:
        self.path, rows = path, []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self.rows = [row for row in rows if row["method"] not in renew]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self.rows)

    def select(self, **key: Any) -> list[dict[str, str]]:
        """Return the rows that agree with `key`."""
        wanted = {name: str(value) for name, value in key.items()}.items()
        return [row for row in self.rows if wanted <= row.items()]

    def add(self, compute: Callable[[], dict[str, Any]], **key: Any) -> None:
        """Append the row `key | compute()` unless one with this key is there."""
        if self.select(**key):
            return
        start = time.perf_counter()
        row = dict.fromkeys(FIELDS, "") | {name: str(value) for name, value in key.items()}
        row |= {name: f"{value:.4g}" for name, value in compute().items()}
        row["seconds"] = f"{time.perf_counter() - start:.1f}"
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(row)
        print(" ".join(value for value in row.values() if value), flush=True)


def measure_distances(network: Network, args: NetworkArguments, results: Results) -> None:
    """Add the distances of every sampler to the converged samples."""
    x, labels = network.start(args.num_samples, args.seed)
    key = network.key | {"seed": args.seed, "samples": args.num_samples}
    for guidance in args.guidance_scales:
        velocity, key["guidance"] = network.velocity(labels, guidance), guidance
        file = "-".join(map(str, key.values())) + ".pt"
        reference, second = converged(velocity, x, Path(args.output_dir, "cache", file))

        def errors(sampler: Callable[[], Tensor], reference: Tensor = reference) -> Figures:
            end = sampler()
            return dict(zip(("rms", "median"), distance(end, reference[: len(end)]), strict=True))

        floor = {"kind": "floor", "method": "second truth", "setting": "own", "nfe": 400}
        results.add(partial(errors, lambda second=second: second), **key, **floor)
        for kind, method, setting, sampler in samplers(args, network, guidance):
            for nfe in filter(partial(offered, args, method), args.evaluations):
                row = {"kind": kind, "method": method, "setting": setting, "nfe": nfe}
                run = partial(sampler, velocity, x, nfe)
                results.add(partial(errors, run), **key, **row)


def measure_frechet(
    network: Network, args: NetworkArguments, results: Results, judge: Judge
) -> None:
    """Add the Fréchet distances of ours and, for each budget, of the best of the others."""
    x, labels = network.start(args.frechet_samples, args.seed + 1)
    parts = list(zip(x.split(args.batch_size), labels.split(args.batch_size), strict=True))
    key = network.key | {"seed": args.seed + 1, "samples": args.frechet_samples}

    def figures(sampler: Sampler, guidance: float, nfe: int) -> Figures:
        ends = [sampler(network.velocity(label, guidance), part, nfe) for part, label in parts]
        return dict(zip(("frechet", "accuracy"), judge(torch.cat(ends), labels), strict=True))

    for guidance, nfe in product(args.frechet_guidance_scales, args.frechet_evaluations):
        rows = results.select(**network.key, guidance=guidance, nfe=nfe)
        picks = [choice for kind in ("default", "tuned") for choice in best(rows, kind)]
        for kind, method, setting, sampler in samplers(args, network, guidance):
            mine = kind == "ours" and offered(args, method, nfe)
            if mine or (kind, method, setting) in picks:
                row = {"kind": kind, "method": method, "setting": setting, "nfe": nfe}
                run = partial(figures, sampler, guidance, nfe)
                results.add(run, **key, guidance=guidance, **row)


@torch.no_grad()
def main(args: NetworkArguments) -> None:
    """Measure what is missing in `network.csv`, then write the table and the picture."""
    folder = Path(args.output_dir)
    results = Results(folder / "network.csv", args.renew)
    networks = [Network(model) for model in args.models]
    for network in networks:
        measure_distances(network, args, results)
        write_report(results.rows, args, folder)
    if args.frechet_samples:
        with torch.enable_grad():
            judge = Judge(args.dataset_name, folder / "cache" / "classifier.pt")
        print(f"classifier: {judge.held_out_accuracy:.2%} of held-out real images")
        for network in networks:
            measure_frechet(network, args, results, judge)
    write_report(results.rows, args, folder)


if __name__ == "__main__":
    main(HfArgumentParser(NetworkArguments).parse_args_into_dataclasses()[0])
