r"""One network, three libraries' losses: what does a training give at 4, 10 and 50 evaluations?

    pip install --no-deps torchcfm
    python -m benchmarks.training.quality --dataset_name ylecun/mnist

trains the same class-conditional U-Net from the same initial weights on the same batches in the
same order, with the same optimizer, learning rates, gradient clipping, label dropout and moving
average, with

- `ours`: velocity on the linear path, stratified times; and with optimal transport inside classes;
- `torchcfm`: the loss of its `ConditionalFlowMatcher` and of the exact-OT one, driven as its
  class-conditional MNIST example does;
- `DDPM`: diffusers' training (noise prediction, `DDPMScheduler`, integer timesteps),

and samples each as its users do, `torchcfm` by Euler and midpoint steps, `DDPM` by DDIM and by
DPM-Solver++ (without clipping, which makes a network that is trained so briefly worse), and
besides by our default solver, which tells the training apart from the sampler. All start from the
same noise and labels. The figure is the Fréchet distance of the samples to real
images, in the features of a classifier that has not seen these.

Rows go to `train_quality.csv` as they come, networks to the cache; what is there is not computed
again, and a folder takes rows of one setting only. The report is written from whatever is there.
"""

import csv
import json
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import HfArgumentParser

from benchmarks.networks.metrics import Judge
from benchmarks.training.quality_methods import TRAININGS, Sampler, samplers
from benchmarks.training.quality_report import FIELDS, rows, write_report
from fm_diffusers.training.data import ImageData, load_images
from fm_diffusers.training.networks import BACKBONES, NetworkArguments

#: What rows of one table may differ in; all else is the setting.
FREE = "trainings seeds evaluations cross_evaluations sample_batch_size output_dir".split()


@dataclass
class QualityArguments(NetworkArguments):
    """Command line."""

    dataset_name: str = "ylecun/mnist"
    trainings: list[str] = field(default_factory=lambda: list(TRAININGS))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluations: list[int] = field(default_factory=lambda: [4, 10, 50])
    cross_evaluations: list[int] = field(
        default_factory=lambda: [4, 10], metadata={"help": "Of samplers that are not its own."}
    )
    block_out_channels: list[int] = field(default_factory=lambda: [16, 32, 32])
    max_train_steps: int = 1000
    train_batch_size: int = 64
    learning_rate: float = 1e-3
    lr_warmup_steps: int = 100
    label_dropout: float = 0.1
    ema_decay: float = 0.999
    num_samples: int = 1000
    sample_batch_size: int = 250
    output_dir: str = "outputs/benchmarks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.trainings if name not in TRAININGS]:
            raise ValueError(f"--trainings must be of {[*TRAININGS]}, got {unknown}")


def train(args: QualityArguments, name: str, seed: int, images: Tensor, labels: Tensor) -> dict:
    """Return the averaged weights of a network; they follow from the training and the seed."""
    torch.manual_seed(seed)
    classes = int(labels.max()) + 1
    network = BACKBONES[args.backbone](args, tuple(images.shape[1:]), classes).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True
    )
    rate = get_scheduler(
        "cosine",
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    ema = EMAModel(network.parameters(), decay=args.ema_decay, foreach=True)
    order = torch.Generator().manual_seed(seed)
    for step in range(args.max_train_steps):
        batch = torch.randint(len(images), (args.train_batch_size,), generator=order)
        dropped = torch.rand(args.train_batch_size, generator=order) < args.label_dropout
        torch.manual_seed(seed * 1_000_003 + step)
        np.random.seed(seed * 1_000_003 + step)
        z = images[batch].float() / 127.5 - 1
        loss = TRAININGS[name][0](
            network,
            z,
            labels[batch],
            lambda label, dropped=dropped: label.masked_fill(dropped, classes),
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        ema.step(network.parameters())
        if step % 200 == 0:
            print(f"{name}, seed {seed}, step {step}: {loss.item():.4f}", flush=True)
    ema.copy_to(network.parameters())
    return network.state_dict()


@torch.no_grad()
def sample(
    args: QualityArguments, network: nn.Module, sampler: Sampler, evaluations: int, data: ImageData
) -> tuple[Tensor, Tensor]:
    """Return images in [-1, 1] and the labels that were asked for; the same noise for all."""
    generator = torch.Generator().manual_seed(12345)
    noise = torch.randn(args.num_samples, *data.shape, generator=generator)
    labels = torch.arange(args.num_samples) % data.num_classes
    ends = []
    for x, y in zip(
        noise.split(args.sample_batch_size), labels.split(args.sample_batch_size), strict=True
    ):
        ends.append(sampler(lambda x, t, y=y: network(x, t, y).sample, x, evaluations))
    return torch.cat(ends), labels


# --- the table -----------------------------------------------------------------------------------


def check_setting(args: QualityArguments, path: Path) -> None:
    """Write down what all rows and networks of a folder share, or compare with what stands there.

    Raises:
        ValueError: if the folder is of another setting.
    """
    setting = {name: value for name, value in vars(args).items() if name not in FREE}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting, indent=2) + "\n")
    for name, value in json.loads(path.read_text()).items():
        if value != setting[name]:
            raise ValueError(
                f"--{name} of what stands in {args.output_dir} is {value}, got {setting[name]}: "
                "choose another --output_dir"
            )


def measure(args: QualityArguments, data: ImageData, judge: Judge, path: Path) -> None:
    """Train and sample what is missing in the table."""
    done = {tuple(row[name] for name in FIELDS[:4]) for row in rows(path)}
    for seed, name in product(args.seeds, args.trainings):
        network = trained(args, name, seed, data)
        for sampler_name, sampler in samplers(name):
            own = sampler_name == TRAININGS[name][1][0]
            for evaluations in args.evaluations if own else args.cross_evaluations:
                key = name, sampler_name, str(evaluations), str(seed)
                if key in done:
                    continue
                start = time.perf_counter()
                frechet, accuracy = judge(*sample(args, network, sampler, evaluations, data))
                seconds = time.perf_counter() - start
                values = [*key, f"{frechet:.4f}", f"{accuracy:.4f}", f"{seconds:.1f}"]
                with path.open("a", newline="") as file:
                    csv.writer(file).writerow(values)
                print(*values, flush=True)


def trained(args: QualityArguments, name: str, seed: int, data: ImageData) -> nn.Module:
    """Return a trained network, from the cache if it is there."""
    size = "-".join(map(str, [*args.block_out_channels, args.max_train_steps]))
    cache = Path(args.output_dir, "cache", f"{name}-{seed}-{size}.pt")
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(train(args, name, seed, data.images, data.labels), cache)
    network = BACKBONES[args.backbone](args, data.shape, data.num_classes)
    network.load_state_dict(torch.load(cache, weights_only=True))
    return network.eval()


def main(args: QualityArguments) -> None:
    """Measure what is missing, then write the report."""
    data = load_images(args.dataset_name)
    path = Path(args.output_dir, "train_quality.csv")
    check_setting(args, path.parent / "cache" / "setting.json")
    if not path.exists():
        path.write_text(",".join(FIELDS) + "\n")
    judge = Judge(args.dataset_name, path.parent / "cache" / "classifier.pt")
    measure(args, data, judge, path)
    write_report(args, path, judge.floor(args.num_samples))


if __name__ == "__main__":
    main(HfArgumentParser(QualityArguments).parse_args_into_dataclasses()[0])
