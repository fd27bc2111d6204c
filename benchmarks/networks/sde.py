r"""Trained networks: an SDE in few steps, beside the samplers of others.

    python -m benchmarks.networks.sde --models outputs/digits --dataset_name digits

Samples of the SDE have no right answer, their distribution has: each row says how far samples of
all classes are from real images, as the Fréchet distance in the features of a classifier
(`metrics`) and as the sliced Wasserstein distance of pixels. All samplers run with their own
defaults, on the same seeds; the ODE with 50 evaluations shows what the network itself has. Means
and standard errors over `--seeds` go to `network_sde.csv` and `network_sde.md`.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from benchmarks.networks.metrics import Judge
from benchmarks.networks.trained import Network, Velocity, ours
from benchmarks.samplers.peers import Preserving
from benchmarks.samplers.sde_peers import SDE_PEERS
from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.evaluation import sliced_wasserstein
from fm_diffusers.paths import VariancePreserving

FIELDS = ("network", "weights", "guidance", "method", "evaluations", "seed", "frechet", "sliced")
#: The peers of `benchmarks.samplers.gaussian_sde`.
PEERS = ("DPM++2M SDE", "er_sde", "DDIM, eta=1", "EulerAncestral")


@dataclass
class Arguments:
    """Command line."""

    models: list[str] = field(metadata={"help": "Pipelines of class-conditional networks."})
    dataset_name: str = "ylecun/mnist"
    guidance_scales: list[float] = field(default_factory=lambda: [1.0])
    diffusions: list[str] = field(default_factory=lambda: ["memoryless", "constant"])
    peers: list[str] = field(default_factory=lambda: list(PEERS))
    evaluations: list[int] = field(default_factory=lambda: [8, 16, 32])
    num_samples: int = 1000
    batch_size: int = 250
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    name: str = "network_sde"
    output_dir: str = "benchmarks/results"


def theirs(
    name: str, velocity: Velocity, x: Tensor, nfe: int, generator: torch.Generator
) -> Tensor:
    """Sample with a peer, in float64; those of the variance preserving path are told the noise."""
    peer = SDE_PEERS[name]
    asked = as_epsilon(velocity) if isinstance(peer, Preserving) else velocity
    return peer(asked, x.double(), nfe, generator=generator).float()


def as_epsilon(velocity: Velocity) -> Velocity:
    r"""Return the noise on the variance preserving path of a network of the linear one.

    With :math:`u = \alpha/(\alpha + \beta)` and :math:`y = x/(\alpha + \beta)` it is
    :math:`y - u\, v(y, u)`.
    """

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        c = VariancePreserving()(t)
        y, u = x / (c.alpha + c.beta), c.alpha / (c.alpha + c.beta)
        return y - u * velocity(y, u).double()

    return epsilon


def samplers(args: Arguments) -> Iterator[tuple[str, int, Callable]]:
    """Yield the name, the evaluations and the function of every row."""
    yield "ODE", 50, partial(ours, GaussianFlowScheduler())
    for nfe in args.evaluations:
        for name in args.diffusions:
            yield f"ours, {name}", nfe, partial(ours, GaussianFlowScheduler(diffusion=name))
        for name in args.peers:
            yield name, nfe, partial(theirs, name)


@torch.no_grad()
def measure(args: Arguments, model: str, judge: Judge) -> Iterator[dict]:
    """Yield the rows of a pipeline."""
    network = Network(model)
    for guidance in args.guidance_scales:
        for seed in args.seeds:
            noise, labels = network.start(args.num_samples, seed)
            for name, nfe, sample in samplers(args):
                generator, ends = torch.Generator().manual_seed(seed), []
                for x, y in zip(
                    noise.split(args.batch_size), labels.split(args.batch_size), strict=True
                ):
                    ends.append(sample(network.velocity(y, guidance), x, nfe, generator=generator))
                images = torch.cat(ends).float().clamp(-1, 1)
                real = judge.further[0][: len(images)]
                count = min(len(images), len(real))
                sliced = sliced_wasserstein(real[:count], images[:count])
                key = network.key | {"guidance": guidance, "method": name, "evaluations": nfe}
                figures = {"frechet": judge(images, labels)[0], "sliced": float(sliced)}
                yield key | {"seed": seed} | figures


def table(rows: list[dict]) -> str:
    """Return the tables of all networks and scales."""
    parts = []
    for network, guidance in dict.fromkeys((r["network"], r["guidance"]) for r in rows):
        here = [r for r in rows if (r["network"], r["guidance"]) == (network, guidance)]
        budgets = sorted({r["evaluations"] for r in here if r["method"] != "ODE"})
        own = [r for r in here if r["method"] == "ODE"]
        parts += [
            f"## {network}, guidance {guidance:g}",
            "",
            "Fréchet distance, then sliced Wasserstein distance, to real images, by the number of "
            f"evaluations; ± is the standard error over {len({r['seed'] for r in here})} seeds. "
            f"The ODE with 50 evaluations has {cell(own)}.",
            "",
            "| method | " + " | ".join(map(str, budgets)) + " |",
            "|---" * (1 + len(budgets)) + "|",
        ]
        for name in dict.fromkeys(r["method"] for r in here if r["method"] != "ODE"):
            cells = [
                cell([r for r in here if (r["method"], r["evaluations"]) == (name, n)])
                for n in budgets
            ]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def cell(rows: list[dict]) -> str:
    """Return the means of both distances with their standard errors."""
    shown = []
    for name in ("frechet", "sliced"):
        values = [row[name] for row in rows]
        error = f" ± {stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
        shown.append(f"{mean(values):.4f}{error}")
    return ", ".join(shown)


def main(args: Arguments) -> None:
    """Measure, and write the tables."""
    folder = Path(args.output_dir)
    judge = Judge(args.dataset_name, folder / "cache" / f"{Path(args.dataset_name).name}.pt")
    rows = []
    for model in args.models:
        for row in measure(args, model, judge):
            print(row, flush=True)
            rows.append(row)
    with (folder / f"{args.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    text = header("Trained networks: an SDE in few steps", args) + table(rows)
    (folder / f"{args.name}.md").write_text(text)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
