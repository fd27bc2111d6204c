"""Straighten a trained flow, so that fewer steps draw as well.

    accelerate launch examples/reflow.py --model outputs/mnist --output_dir outputs/mnist-straight

A flow carries noise eps to a sample z = X_1(eps). Training goes on with these pairs in place of
independent ones: straight lines between them hardly cross, so the new flow follows them, and its
marginals are those of the old one. `straightness`,

    S = E int_0^1 |X_1 - X_0 - u_t(X_t)|^2 dt,

a mean over pixels, is 0 for lines; it is measured before and after, with the distance of few Euler
steps from the converged samples of the same noise, and goes into the model card.

Reference: Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with
Rectified Flow", https://arxiv.org/abs/2209.03003.
"""

import copy
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train_mnist import train

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.flow_map_networks import is_of_two_times
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.predictions import convert
from fm_diffusers.training.arguments import check_output, parse, start
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.flow import LossArguments, flow_loss, of_coupled_noise
from fm_diffusers.training.networks import keep_labels
from fm_diffusers.training.pictures import sample_grid
from fm_diffusers.training.public import public
from fm_diffusers.training.publishing import publish
from fm_diffusers.training.pushing import create_repository
from fm_diffusers.training.teachers import as_ode, check_share, classes_in_turn, split_held_out
from fm_diffusers.training.tuning import network_of


@dataclass
class ReflowArguments(LossArguments):
    """Command line."""

    model: str = field(default="outputs/mnist", metadata={"help": "A folder or a Hub id."})
    output_dir: str = "outputs/mnist-straight"
    num_pairs: int = field(default=20_000, metadata={"help": "Samples that are drawn first."})
    pair_steps: int = field(default=20, metadata={"help": "Steps of the default solver for each."})
    sample_batch_size: int = 250
    label_dropout: float = field(default=0.1, metadata={"help": "As in the first training."})
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.validation_split)
        if self.num_pairs < self.train_batch_size:
            raise ValueError(
                f"--num_pairs {self.num_pairs} are fewer than --train_batch_size "
                f"{self.train_batch_size}: draw more pairs, or choose a smaller batch"
            )
        if self.coupling != "independent":
            raise ValueError(f"--coupling {self.coupling}: pairs come from the trained flow")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"--label_dropout must lie in [0, 1], got {self.label_dropout}")


def load(model: str) -> FlowMatchingPipeline:
    """Return a saved pipeline that can be straightened, as an ODE."""
    pipe = FlowMatchingPipeline.from_pretrained(model)
    if pipe.takes == "text":
        raise ValueError(
            f"{model} takes prompts: a flow of classes, or without a condition, is straightened"
        )
    if is_of_two_times(pipe.network):
        raise ValueError(
            f"{model} is a flow map, which draws in one evaluation as it is: straighten the flow "
            "that it was trained from"
        )
    if pipe.scheduler.config.path != "linear":
        raise ValueError(
            f"{model} is a flow on the path {pipe.scheduler.config.path!r}: straight lines are "
            "those of the linear path, train it with --path linear"
        )
    if pipe.scheduler.config.prediction_type in ("epsilon", "score"):
        raise ValueError(
            f"{model} predicts {pipe.scheduler.config.prediction_type!r}, which has no velocity "
            "at the noise: train it with another --prediction_type"
        )
    return as_ode(pipe)


def draw_pairs(
    pipe: FlowMatchingPipeline, args: ReflowArguments, accelerator: Accelerator
) -> TensorDataset:
    """Return noise, the samples that the flow carries it to, and labels."""
    share = -(-args.num_pairs // accelerator.num_processes)
    seed = args.seed * 1_000_003 + accelerator.process_index
    generator, parts = torch.Generator().manual_seed(seed), []
    for first in range(0, share, args.sample_batch_size):
        count = min(args.sample_batch_size, share - first)
        eps = pipe.prepare_latents(count, generator, None)
        labels = classes_in_turn(pipe, count, first)
        z = pipe(
            **labels, latents=eps, num_inference_steps=args.pair_steps, output_type="latent"
        ).images
        parts.append((eps, z, torch.tensor(labels.get("class_labels", [0] * count))))
    joined = [torch.cat(column).to(accelerator.device) for column in zip(*parts, strict=True)]
    return TensorDataset(*(accelerator.gather(column).cpu() for column in joined))


@torch.no_grad()
def euler(
    pipe: FlowMatchingPipeline, x: Tensor, labels: Tensor | None, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the end of equal Euler steps from noise, and the velocities on the way, stacked."""
    scheduler, way = pipe.scheduler, []
    for i in range(steps):
        t = torch.tensor(i / steps, device=x.device)
        output = pipe.predict(x, scheduler.to_timestep(t), labels, 1.0)
        prediction = scheduler.config.prediction_type
        way.append(convert(scheduler.path, prediction, "velocity", x, output, t))
        x = x + way[-1] / steps
    return x, torch.stack(way)


def measure(
    pipe: FlowMatchingPipeline, seed: int, count: int = 64, many: int = 200
) -> dict[str, float]:
    """Return the straightness of a flow, and how far few Euler steps end from `many`."""
    eps = pipe.prepare_latents(count, torch.Generator().manual_seed(seed), None)
    labels = pipe.encode_condition(Asked(**classes_in_turn(pipe, count)))
    end, way = euler(pipe, eps, labels, many)
    figures = {"straightness": (end - eps - way).square().mean().item()}
    for steps in (1, 2, 4, 8):
        few = euler(pipe, eps, labels, steps)[0]
        figures[f"euler {steps}"] = (few - end).square().mean().sqrt().item()
    return {name: round(value, 5) for name, value in figures.items()}


def main(args: ReflowArguments) -> None:
    check_output(args)
    accelerator = start(args)
    repo_id = create_repository(args, accelerator)
    pipe = load(args.model).to(accelerator.device)
    args.check_bounds(pipe.scheduler)
    null = pipe.config.null_label
    before = measure(pipe, args.seed + 1)
    split = (args.validation_split, args.train_batch_size, args.seed)
    pairs, held_out = split_held_out(draw_pairs(pipe, args, accelerator), *split)

    def loss_of(network: nn.Module, batch: list[Tensor]) -> Tensor:
        eps, z, label = batch
        if pipe.num_classes and null is not None:
            dropped = torch.rand(len(z), device=z.device) < args.label_dropout
            label = label.masked_fill(dropped, null)
        condition = label if pipe.network_takes_labels else None
        return flow_loss(args, pipe.scheduler, network, z, eps, condition)

    def straight(network: nn.Module) -> FlowMatchingPipeline:
        return network_of(pipe, network, scheduler=of_coupled_noise(pipe.scheduler))

    def draw(network: nn.Module) -> Image.Image:
        shown = classes_in_turn(pipe, min(pipe.num_classes, 10) or 10)
        return sample_grid(straight(network), shown)

    loader = DataLoader(pairs, args.train_batch_size, shuffle=True, drop_last=True)
    network = keep_labels(copy.deepcopy(pipe.network)).train()
    outcome = train(args, accelerator, network, loader, loss_of, draw, held_out)
    if outcome is not None and accelerator.is_main_process:
        student, figures = straight(outcome[0]), outcome[1]
        after = measure(student, args.seed + 1)
        rows = {f"{name}, before and after": f"{before[name]}, {after[name]}" for name in after}
        teacher = public(args.model)
        figures = {"straightened from": teacher, "coupling": "reflow"} | figures | rows
        figures["measured on"] = "64 trajectories of 200 Euler steps"
        dataset, shown = f"samples of {teacher}", classes_in_turn(pipe, max(pipe.num_classes, 1))
        publish(args, student, draw(outcome[0]), figures, dataset, repo_id, shown)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(ReflowArguments))
