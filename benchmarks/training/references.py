"""How much of a target's variance is left when it is averaged over further images of the class.

    python -m benchmarks.training.references

Of images at times t on the linear path, the mean square by which the data of the target differ
from their mean given the sample, which takes all images of the class; for one image alone, and as
a share of it for averages over some references, drawn anew for every class
(`fm_diffusers.stable_targets`). It writes `references.md` and `references.csv`.
"""

import csv
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import HfArgumentParser

from benchmarks.header import header
from fm_diffusers.paths import Linear
from fm_diffusers.stable_targets import stable_pair
from fm_diffusers.training.data import ImageData, load_images
from fm_diffusers.training.references import References


@dataclass
class Arguments:
    """Command line."""

    dataset_name: str = "ylecun/mnist"
    times: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    references: list[int] = field(default_factory=lambda: [16, 64, 256, 1024])
    num_images: int = 512
    seed: int = 0
    output_dir: str = "benchmarks/results"


@dataclass
class Row:
    """What is left at one time; `alone` is a mean square of pixels from -1 to 1."""

    t: float
    references: int
    alone: float
    share: float


def scaled(images: Tensor) -> Tensor:
    """Return uint8 images scaled to [-1, 1]."""
    return images.float() / 127.5 - 1


def posterior_mean(data: ImageData, z: Tensor, eps: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Return the mean of the data given the samples, over all images of each class."""
    assert data.images is not None and data.labels is not None
    means = torch.empty_like(z)
    for known in label.unique():
        here, all_images = label == known, scaled(data.images[data.labels == known])
        means[here] = stable_pair(Linear(), z[here], eps[here], t[here], all_images)[0]
    return means


def measure(data: ImageData, args: Arguments) -> list[Row]:
    """Return the rows of all times and numbers of references."""
    assert data.images is not None and data.labels is not None
    chosen = torch.randperm(len(data.images))[: args.num_images]
    z, label = scaled(data.images[chosen]), data.labels[chosen]
    eps, rows = torch.randn_like(z), []
    for time in args.times:
        t = torch.full((len(z),), time)
        mean = posterior_mean(data, z, eps, t, label)
        alone = (z - mean).square().mean().item()
        for count in args.references:
            found, _ = References(data, count, scaled).pair(Linear(), z, eps, t, label)
            left = (found - mean).square().mean().item()
            rows.append(Row(time, count, alone, left / alone))
    return rows


def table(rows: list[Row], counts: list[int]) -> str:
    """Return the table in Markdown, a line for each time."""
    lines = [
        "| t | one image alone | " + " | ".join(f"{count} references" for count in counts) + " |",
        "|---" * (2 + len(counts)) + "|",
    ]
    for t, alone in dict.fromkeys((row.t, row.alone) for row in rows):
        shares = [f"{row.share:.1%}".replace("%", " %") for row in rows if row.t == t]
        lines.append(f"| {t:g} | {alone:.3f} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main(args: Arguments) -> list[Row]:
    """Measure, and write the table and the figures."""
    torch.manual_seed(args.seed)
    folder, data = Path(args.output_dir), load_images(args.dataset_name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = measure(data, args)
    with (folder / "references.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    text = header("Targets averaged over further images", args) + table(rows, args.references)
    (folder / "references.md").write_text(text + "\n")
    print(text)
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
