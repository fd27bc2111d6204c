"""Fine-tune a trained flow on other images, by low-rank adapters (LoRA).

    accelerate launch examples/train_lora.py --model outputs/mnist \
        --dataset_name zalando-datasets/fashion_mnist --output_dir outputs/fashion

It is `train_mnist.py` with one feature more: the network is that of a saved pipeline, and stays as
it is; what is trained is added to the weights of `--lora_target_modules`, W + alpha/r B A with B A
of rank r. The adapters alone are saved, with a picture of what the same noise becomes without them
(upper half) and with them, and a card that names the pipeline:

    pipe = FlowMatchingPipeline.from_pretrained("outputs/mnist")
    pipe.load_lora_weights("outputs/fashion")
    pipe([3, 7], guidance_scale=2.0).images

Pipelines may have classes, prompts (`--caption_column`) or neither, a U-Net or a transformer, and
an autoencoder.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn
from train_mnist import train

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.pipelines.cards import example
from fm_diffusers.pipelines.conditions import Asked, states_of, tokenize
from fm_diffusers.pipelines.lora import lora_layers
from fm_diffusers.training.arguments import ImageArguments, check_output, parse, start
from fm_diffusers.training.captions import warn_of_long
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.data import ImageData
from fm_diffusers.training.finished import saved_whole
from fm_diffusers.training.flow import LossArguments, coupled_noise, flow_loss, scaled
from fm_diffusers.training.networks import keep_labels, trained_weights
from fm_diffusers.training.pictures import column_names, sample_parts
from fm_diffusers.training.public import on_hub, public
from fm_diffusers.training.publishing import told, write_record
from fm_diffusers.training.pushing import create_repository, push
from fm_diffusers.training.sheets import contact_sheet
from fm_diffusers.training.splits import hold_out, load_data
from fm_diffusers.training.tuning import (
    check_data,
    class_map,
    load_pipeline,
    network_of,
    warn_of_null,
)

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
#: Layers that are adapted by default; a U-Net may attend at its lowest level only.
TARGETS = {"unet": [*ATTENTION, "conv1", "conv2"], "transformer": ATTENTION}


@dataclass
class LoraArguments(ImageArguments, LossArguments):
    """Command line."""

    model: str = field(default="outputs/mnist", metadata={"help": "A folder or a Hub id."})
    output_dir: str = "outputs/lora"
    learning_rate: float = 3e-3
    rank: int = field(default=8, metadata={"help": "Of the product that is added to a weight."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "The product is scaled by alpha / rank; by default 1."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Ends of names of layers; by default those of TARGETS."}
    )
    label_column: str = field(
        default="label", metadata={"help": "For networks with classes; '' trains without."}
    )
    caption_column: str = field(
        default="", metadata={"help": "For networks that take text; '' trains the empty prompt."}
    )
    label_dropout: float = field(
        default=0.1, metadata={"help": "Share of samples trained without class or caption."}
    )

    def __post_init__(self) -> None:
        LossArguments.__post_init__(self)
        ImageArguments.__post_init__(self)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"--label_dropout must lie in [0, 1], got {self.label_dropout}")


def columns(args: LoraArguments, pipe: FlowMatchingPipeline) -> dict[str, str | None]:
    """Return the column that the network is told about."""
    takes = {"labels": "label_column", "text": "caption_column"}.get(pipe.takes)
    return {"label_column": None} | ({takes: getattr(args, takes) or None} if takes else {})


def load_conditions(args: LoraArguments, pipe: FlowMatchingPipeline) -> ImageData:
    """Return the data set with the column that the network is told about."""
    column = columns(args, pipe)
    data = load_data(args, **column)
    if data.num_classes > pipe.num_classes:
        raise ValueError(
            f"{args.dataset_name} has {data.num_classes} classes, the network of {args.model} "
            f"knows {pipe.num_classes}: choose another --label_column, or '' to train without"
        )
    check_data(args, args.model, pipe, data)
    if data.captions is not None:
        warn_of_long(pipe.tokenizer, data.captions)
    if not any(column.values()):
        pipe.check_inputs(Asked(batch_size=1))
    elif data.num_classes:
        warn_of_null(pipe, args.model, args.label_dropout)
    return data


def adapt(args: LoraArguments, pipe: FlowMatchingPipeline) -> tuple[str, LoraConfig]:
    """Give the network an adapter to train; return the component's name and the adapter's."""
    name = "unet" if pipe.transformer is None else "transformer"
    network, targets = pipe.network, args.lora_target_modules or TARGETS[name]
    layers = [f".{layer}" for layer, _ in network.named_modules()]
    for target in targets:
        if not any(layer.endswith(f".{target}") for layer in layers):
            raise ValueError(
                f"--lora_target_modules {target!r} is the end of no layer's name in the {name} of "
                f"{args.model}, such as {layers[-1][1:]}"
            )
    keep_labels(network).requires_grad_(False).train()
    alpha = args.lora_alpha or args.rank
    config = LoraConfig(r=args.rank, lora_alpha=alpha, target_modules=targets)
    network.add_adapter(config)
    return name, config


def make_loss(
    args: LoraArguments, pipe: FlowMatchingPipeline, numbers: list[int]
) -> Callable[..., Tensor]:
    """Return the loss of a network on a batch, told what the pipeline's network is told.

    Args:
        args: of the script.
        pipe: the pipeline.
        numbers: its number of every class of the data.
    """
    own = torch.tensor(numbers, dtype=torch.long, device=pipe.device)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        if pipe.vae is None:
            return images
        codes = pipe.vae.encode(images).latent_dist.sample()
        return (codes - (pipe.vae.config.shift_factor or 0.0)) * pipe.vae.config.scaling_factor

    @torch.no_grad()
    def condition(batch: dict[str, Any], dropped: Tensor) -> tuple[Tensor | None, Tensor | None]:
        texts, label, null = batch.get("caption"), batch.get("label"), pipe.config.null_label
        if texts is not None:
            kept = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
            kinds = [texts.index(text) for text in texts]
            ids = tokenize(pipe.tokenizer, kept).ids.to(dropped.device)
            states = states_of(pipe.text_encoder, ids, kept).to(pipe.network.dtype)
            return states, torch.tensor(kinds, device=dropped.device)
        if label is None:
            return pipe.encode_condition(Asked(batch_size=len(dropped))), None
        label = own[label]
        return label if null is None else label.masked_fill(dropped, null), label

    def loss_of(network: nn.Module, batch: dict[str, Any]) -> Tensor:
        z = encode(scaled(args, batch["image"]))
        told, kind = condition(batch, torch.rand(len(z), device=z.device) < args.label_dropout)
        eps = coupled_noise(args, z, kind)
        return flow_loss(args, pipe.scheduler, network, z, eps, told)

    return loss_of


@torch.no_grad()
def measure(
    loss_of: Callable[..., Tensor], network: nn.Module, data: ImageData, args: LoraArguments
) -> float:
    """Return the loss on images, times and noise that are the same for every network."""
    torch.manual_seed(args.seed)
    batches = islice(data.loader(args.train_batch_size), max(1, 2048 // args.train_batch_size))
    parts = [loss_of(network, send_to_device(batch, network.device)) for batch in batches]
    return round(torch.stack(parts).mean().item(), 5)


def shown(pipe: FlowMatchingPipeline, data: ImageData, numbers: list[int]) -> dict[str, Any]:
    """Return what a row of pictures is asked for: classes, prompts, or nothing."""
    if pipe.num_classes:
        return {"class_labels": (numbers or [*range(pipe.num_classes)])[:10]}
    prompts = list(dict.fromkeys(data.captions or []))[:10]
    return {"prompt": prompts} if prompts else {"batch_size": 10}


def publish_adapter(
    args: LoraArguments,
    network: dict[str, nn.Module],
    picture: Image.Image,
    figures: dict[str, Any],
    repo_id: str | None,
) -> None:
    """Save the adapter of a component with picture, figures and card, and push it to `repo_id`."""
    folder, model = Path(args.output_dir), public(args.model)
    own = {"kind": "adapter", "model": model, "model_on_hub": on_hub(model), **figures}
    with saved_whole(folder, network.values()) as partial:
        FlowMatchingPipeline.save_lora_weights(partial, **lora_layers(**network))
        picture.save(partial / "samples.png")
        write_record(partial, args, own, args.dataset_name, repo_id)
    print(f"saved {folder}: {figures}")
    if repo_id is not None:
        push(folder, repo_id, f"Train for {figures['steps']} steps", args.hub_token)


def main(args: LoraArguments) -> None:
    check_output(args)
    accelerator: Accelerator = start(args)
    repo_id = create_repository(args, accelerator)
    pipe, args = load_pipeline(args, args.model)
    if args.coupling != "independent":
        warnings.warn(
            f"--coupling {args.coupling} leaves no score to sample an SDE with, and adapters "
            "cannot say so: whoever loads them samples an ODE",
            stacklevel=1,
        )
    with accelerator.main_process_first():
        data = load_conditions(args, pipe)
        held_out = hold_out(args, data, **columns(args, pipe))
    pipe.to(accelerator.device)
    numbers, names = class_map(args.model, pipe, data)
    asked = shown(pipe, data, numbers)

    def look(pipe: FlowMatchingPipeline) -> dict[str, list[Image.Image]]:
        return sample_parts(pipe, asked, rows=2, stochastic=False)

    loss_of, plain = make_loss(args, pipe, numbers), look(pipe)
    before = measure(loss_of, pipe.network, data, args)
    name, config = adapt(args, pipe)

    def draw(network: nn.Module) -> Image.Image:
        both = {"without": plain, "with": look(network_of(pipe, network))}
        parts = {
            f"{title}, {word} the adapter": samples
            for word, part in both.items()
            for title, samples in part.items()
        }
        return contact_sheet(parts, column_names(asked, names))

    trained = sum(weight.numel() for weight in trained_weights(pipe.network))
    loader = data.loader(args.train_batch_size, args.dataloader_num_workers)
    outcome = train(args, accelerator, pipe.network, loader, loss_of, draw, held_out)
    if outcome is not None and accelerator.is_main_process:
        network, figures = outcome
        figures = figures | {
            "parameters": f"{trained:,} of {figures['parameters']:,}",
            "rank": config.r,
            "alpha": config.lora_alpha,
            "layers": " ".join(sorted(config.target_modules)),
            "loss before": before,
            "loss": measure(loss_of, network, data, args),
        }
        said = told(network_of(pipe, network, id2label=names), asked)
        if names != pipe.config.id2label:  # the pipeline has other names, or none
            said["asked"] = example(asked)
        publish_adapter(args, {name: network}, draw(network), said | figures, repo_id)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(LoraArguments))
