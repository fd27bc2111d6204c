r"""One network, three libraries' losses: what does a training give at 4, 10 and 50 evaluations?

    pip install --no-deps torchcfm
    python benchmarks/train_quality.py --dataset_name ylecun/mnist --output_dir outputs/benchmarks

trains the same class-conditional U-Net from the same initial weights on the same batches in the
same order, with the same optimizer, learning rates, gradient clipping, label dropout and moving
average, with

- `ours`: velocity on the linear path, stratified times; and with optimal transport inside classes;
- `torchcfm`: the loss of its `ConditionalFlowMatcher` and of the exact-OT one, driven as its
  class-conditional MNIST example does;
- `DDPM`: diffusers' training (noise prediction, `DDPMScheduler`, integer timesteps),

and samples each as its users do, `torchcfm` by Euler steps and `DDPM` by DDIM and by DPM-Solver++,
and besides by our default solver, which tells the training apart from the sampler. All samplers
start from the same noise and labels. The figure is the Fréchet distance of the samples' features,
those of a classifier of real images, to held-out real images.

Rows go to `train_quality.csv` as they come, networks to the cache; what is there is not computed
again. The report is written from whatever is there.
"""

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from metrics import Judge
from torch import Tensor, nn
from transformers import HfArgumentParser

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.couplings import couple
from fm_diffusers.objectives import prediction_loss, sample_times
from fm_diffusers.training.data import ImageData, load_images
from fm_diffusers.training.networks import BACKBONES, NetworkArguments

FLOW, NOISE = GaussianFlowScheduler(), DDPMScheduler()
Loss = Callable[[nn.Module, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]
FIELDS = ("training", "sampler", "evaluations", "seed", "frechet", "accuracy", "seconds")


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


# --- trainings: the loss of a network on data and labels; `drop` hides some labels ---------------


def ours(coupling: str) -> Loss:
    """Return the loss of `examples/train_mnist.py`."""

    def loss(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
        eps = couple(z, torch.randn_like(z), coupling, condition=label)
        t = sample_times(len(z), "low_discrepancy")
        x_t = FLOW.path.flow_map(z, eps, t)
        output = network(x_t, FLOW.to_timestep(t), drop(label)).sample
        return prediction_loss(output, FLOW.path, z, eps, t).mean()

    return loss


def torchcfm(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
    """Return torchcfm's loss with independent noise."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    flow = ConditionalFlowMatcher(sigma=0.0)
    t, x_t, u_t = flow.sample_location_and_conditional_flow(torch.randn_like(z), z)
    output = network(x_t, FLOW.to_timestep(t), drop(label)).sample
    return (output - u_t).square().mean()


def torchcfm_ot(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
    """Return torchcfm's loss with optimal transport, which draws pairs by numpy's generator."""
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

    flow = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    t, x_t, u_t, _, label = flow.guided_sample_location_and_conditional_flow(
        torch.randn_like(z), z, y1=label
    )
    output = network(x_t, FLOW.to_timestep(t), drop(label)).sample
    return (output - u_t).square().mean()


def ddpm(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
    """Return the loss of diffusers' training scripts."""
    eps = torch.randn_like(z)
    timesteps = torch.randint(0, NOISE.config.num_train_timesteps, (len(z),))
    output = network(NOISE.add_noise(z, eps, timesteps), timesteps, drop(label)).sample
    return (output - eps).square().mean()


#: Trainings with the samplers of their networks; the first one is that of its users.
TRAININGS: dict[str, tuple[Loss, tuple[str, ...]]] = {
    "ours": (ours("independent"), ("ours", "Euler")),
    "ours, OT in classes": (ours("optimal_transport"), ("ours", "Euler")),
    "torchcfm": (torchcfm, ("Euler", "ours")),
    "torchcfm, OT": (torchcfm_ot, ("Euler", "ours")),
    "DDPM": (ddpm, ("DDIM", "DPM-Solver++", "ours")),
}


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


# --- samplers: from noise and labels to images, in a number of evaluations -----------------------

Field = Callable[[Tensor, Tensor], Tensor]  # what the network says of samples at a timestep
Sampler = Callable[[Field, Tensor, int], Tensor]


def loop(scheduler: object, field: Field, x: Tensor, evaluations: int) -> Tensor:
    """Sample with a scheduler of diffusers' kind."""
    scheduler.set_timesteps(evaluations)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = field(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def euler(field: Field, x: Tensor, evaluations: int) -> Tensor:
    """Sample by equal Euler steps, as torchcfm's examples do."""
    for i in range(evaluations):
        t = torch.full((len(x),), i / evaluations)
        x = x + field(x, FLOW.to_timestep(t)) / evaluations
    return x


def samplers(training: str) -> Iterator[tuple[str, Sampler]]:
    """Yield the samplers of a training's networks: its users' first."""
    table = {
        "ours": GaussianFlowScheduler.from_config((NOISE if training == "DDPM" else FLOW).config),
        "DDIM": DDIMScheduler.from_config(NOISE.config, clip_sample=False),
        "DPM-Solver++": DPMSolverMultistepScheduler.from_config(NOISE.config),
    }
    for name in TRAININGS[training][1]:
        yield name, euler if name == "Euler" else partial(loop, table[name])


@torch.no_grad()
def sample(
    args: QualityArguments, network: nn.Module, sampler: Sampler, evaluations: int, shape: tuple
) -> tuple[Tensor, Tensor]:
    """Return images in [-1, 1] and the labels that were asked for; the same noise for all."""
    classes = network.config.num_class_embeds - 1
    noise = torch.randn(args.num_samples, *shape, generator=torch.Generator().manual_seed(12345))
    labels = torch.arange(args.num_samples) % classes
    ends = []
    for x, y in zip(
        noise.split(args.sample_batch_size), labels.split(args.sample_batch_size), strict=True
    ):
        ends.append(sampler(lambda x, t, y=y: network(x, t, y).sample, x, evaluations))
    return torch.cat(ends), labels


# --- the table -----------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    """Return what has been measured."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
                frechet, accuracy = judge(*sample(args, network, sampler, evaluations, data.shape))
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


def write_report(args: QualityArguments, path: Path, floor: float) -> None:
    """Write the table of means over seeds, and the picture."""
    measured = rows(path)
    figures = {
        (t, s, int(e)): [float(r["frechet"]) for r in group]
        for (t, s, e), group in grouped(measured).items()
    }
    lines = [
        "# Training: Fréchet distance by evaluations",
        "",
        f"{args.max_train_steps} steps of {args.train_batch_size}, widths "
        f"{args.block_out_channels}, {args.num_samples} samples; mean of the training seeds "
        f"(least to greatest). Held-out real images: {floor:.3f}.",
        "",
        "| training | sampler | " + " | ".join(map(str, args.evaluations)) + " |",
        "|---|---|" + "---|" * len(args.evaluations),
    ]
    for training, sampler in dict.fromkeys(key[:2] for key in figures):
        cells = []
        for evaluations in args.evaluations:
            values = figures.get((training, sampler, evaluations), [])
            cells.append(
                f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"
                if values
                else ""
            )
        lines.append(f"| {training} | {sampler} | " + " | ".join(cells) + " |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(figures, path.with_suffix(".png"), floor)


def grouped(measured: list[dict[str, str]]) -> dict[tuple[str, str, str], list[dict[str, str]]]:
    """Return the rows of all seeds by training, sampler and evaluations."""
    groups: dict = {}
    for row in measured:
        groups.setdefault(tuple(row[name] for name in FIELDS[:3]), []).append(row)
    return groups


def draw(figures: dict[tuple[str, str, int], list[float]], path: Path, floor: float) -> None:
    """Draw the distance by evaluations, every training with the sampler of its users."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for training, (_, names) in TRAININGS.items():
        for name, style in zip(names, ("-o", ":", "--"), strict=False):
            points = {e: f for (t, s, e), f in figures.items() if (t, s) == (training, name)}
            if points:
                means = [sum(values) / len(values) for values in points.values()]
                color = f"C{[*TRAININGS].index(training)}"
                axis.plot([*points], means, style, color=color, label=f"{training}: {name}")
    axis.axhline(floor, color="grey", lw=1, label="held-out real images")
    axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="Fréchet distance")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(args: QualityArguments) -> None:
    """Measure what is missing, then write the report."""
    data = load_images(args.dataset_name)
    path = Path(args.output_dir, "train_quality.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(",".join(FIELDS) + "\n")
    judge = Judge(args.dataset_name, path.parent / "cache" / "classifier.pt")
    measure(args, data, judge, path)
    write_report(args, path, judge.floor())


if __name__ == "__main__":
    main(HfArgumentParser(QualityArguments).parse_args_into_dataclasses()[0])
