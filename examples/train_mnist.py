"""Train a flow-matching model on images, then sample it as an ODE and as an SDE.

    accelerate launch examples/train_mnist.py --mixed_precision bf16 --push_to_hub

trains a class-conditional U-Net on the Hub's MNIST. (On a CPU say `accelerate launch
--num_cpu_threads_per_process 8 ...`: Accelerate's default is one thread.) `--dataset_name` takes
any other image data set of the Hub, a local folder, or `digits`: the 8x8 digits that scikit-learn
ships, which need no network:

    accelerate launch examples/train_mnist.py --dataset_name digits --block_out_channels 64 128 \
        --output_dir outputs/digits

`--config file.yaml` holds the same names. Killed at any moment, a run started again with
`--resume_from_checkpoint latest` ends with the same weights. What is saved is a
`FlowMatchingPipeline` with the EMA weights, a picture and a model card:

    pipe = FlowMatchingPipeline.from_pretrained("outputs/digits")
    pipe([3, 7], guidance_scale=2.0).images

Classes keep their names, those of a ClassLabel, of folders or of a column: `pipe(["cat", "dog"])`.

`--init_from outputs/digits` begins with the network of such a pipeline in place of a new one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.flow_map_networks import with_two_times
from fm_diffusers.training.arguments import (
    ImageArguments,
    TrainingArguments,
    check_output,
    parse,
    start,
)
from fm_diffusers.training.averaging import Average, ema_weights
from fm_diffusers.training.checkpoints import Checkpoints, Stateful
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.faults import with_others
from fm_diffusers.training.flow import FlowArguments, coupled_noise, flow_loss, scaled
from fm_diffusers.training.flow_maps import warn_of_rounding
from fm_diffusers.training.held_out import HeldOut
from fm_diffusers.training.interrupts import Interrupts, name_of
from fm_diffusers.training.losses import check_weights, log_loss
from fm_diffusers.training.networks import (
    BACKBONES,
    NetworkArguments,
    keep_labels,
    trained_weights,
)
from fm_diffusers.training.pictures import keep_picture, sample_grid
from fm_diffusers.training.progress import Progress
from fm_diffusers.training.publishing import publish, say_finished
from fm_diffusers.training.pushing import create_repository
from fm_diffusers.training.references import References
from fm_diffusers.training.sharding import prepare
from fm_diffusers.training.splits import hold_out, load_data
from fm_diffusers.training.steps import plan_steps, take_rates
from fm_diffusers.training.tuning import (
    adopt,
    check_classes,
    check_data,
    class_map,
    network_of,
)


@dataclass
class Arguments(NetworkArguments, ImageArguments, FlowArguments):
    """Command line; the names are those of diffusers' training scripts."""

    label_column: str = field(
        default="label", metadata={"help": "Class labels; an empty name trains without classes."}
    )
    label_dropout: float = field(
        default=0.1, metadata={"help": "Share of samples trained without class, for guidance."}
    )
    reference_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Average the target of each sample over so many further images of its class, "
            "weighted by how likely they led to it (Stable Target Field)."
        },
    )

    def __post_init__(self) -> None:
        FlowArguments.__post_init__(self)
        ImageArguments.__post_init__(self)
        if self.init_from is None:  # else the network is that of the pipeline
            NetworkArguments.__post_init__(self)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"--label_dropout must lie in [0, 1], got {self.label_dropout}")
        if self.reference_batch_size and self.coupling != "independent":
            raise ValueError(
                f"--reference_batch_size {self.reference_batch_size} needs noise that is "
                f"independent of the data: drop it, or --coupling {self.coupling}"
            )


def train(
    args: TrainingArguments,
    accelerator: Accelerator,
    network: nn.Module,
    loader: DataLoader,
    loss_of: Callable[[nn.Module, dict[str, Any]], Tensor],
    draw: Callable[[nn.Module], Image.Image] | None = None,
    held_out: HeldOut | None = None,
    states: dict[str, Stateful] | None = None,
) -> tuple[nn.Module, dict[str, float]] | None:
    """Train a network on every process of the Accelerator.

    Args:
        args: of the run.
        accelerator: what `start` returned.
        network: its parameters that require a gradient are trained.
        loader: yields batches.
        loss_of: returns the loss of the network on a batch.
        draw: returns a picture of what the network has learned, every `--validation_steps`.
        held_out: what the loss is measured on, every `--validation_steps` and at the end.
        states: what else is kept in checkpoints, by name.

    Returns:
        A plain copy of the network with the moving average of the weights, and the figures; None
        if the output folder holds all that has been asked for.

    Raises:
        SystemExit: after SIGTERM or Ctrl-C, with a checkpoint; its code is 128 and the signal.
        Fault: if a disk is full, or another process has ended.
        ValueError: if what is trained is no longer finite.
    """
    plain = copy.deepcopy(network)  # untouched by wrappers, for the averaged weights
    if args.compile:
        network.compile()
    rates = {"lr": args.learning_rate, "weight_decay": args.adam_weight_decay}
    optimizer = torch.optim.AdamW(trained_weights(network), **rates, fused=True)
    network, optimizer, loader = prepare(accelerator, network, optimizer, loader)
    steps = plan_steps(args, loader, accelerator.num_processes)
    trained = trained_weights(network)
    ema = Average(trained, args.ema_decay)
    lr_scheduler = steps.rate(args, optimizer)  # not prepared: it steps once an update
    progress = Progress()
    kept = args.continuity() | steps.record(args) | {"processes": accelerator.num_processes}
    checkpoints = Checkpoints(
        Path(args.output_dir),
        args.checkpoints_total_limit,
        kept,
        steps=steps.run,
        states={"ema": ema, "lr_scheduler": lr_scheduler, "progress": progress} | (states or {}),
        size=sum(4 * weight.nbytes for weight in plain.parameters()),  # average and two moments
    )
    checkpoints.load(accelerator, args.resume_from_checkpoint, args.overwrite_output_dir)
    if checkpoints.finished:
        return say_finished(args, accelerator, steps.run)
    ema.to(accelerator.device)  # where a checkpoint has not brought it
    take_rates(args, optimizer, lr_scheduler, ema)
    accelerator.init_trackers("train", {name: str(v) for name, v in args.public().items()})

    losses, way_on = [], args.way_on(accelerator.num_processes)
    bar = tqdm(
        total=steps.run, initial=progress.step, disable=not accelerator.is_local_main_process
    )
    with Interrupts() as interrupts, with_others(f"go on by: {way_on}"):
        for batch in progress.rest(accelerator, loader, args.seed, steps.run):
            with accelerator.accumulate(network):
                loss = loss_of(network, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append((progress.step + 1, loss.detach()))
            if not accelerator.sync_gradients:
                continue
            lr_scheduler.step()
            ema.step(trained)
            progress.step += 1
            bar.update()
            step, last = progress.step, progress.step == steps.run
            stop = interrupts.agreed(accelerator, step)
            save = step % args.checkpointing_steps == 0 or last or stop is not None
            if save or step % args.logging_steps == 0:
                log_loss(accelerator, losses, lr_scheduler.get_last_lr()[0], step, bar)
                losses = []  # so that no checkpoint has to keep them
            if save:
                check_weights(accelerator, trained, step)
                checkpoints.save(accelerator, step)
            if step % args.validation_steps == 0:
                with ema_weights(ema, accelerator.unwrap_model(network)) as model:  # on all
                    if held_out is not None and not last:
                        held_out.log(accelerator, model, loss_of, step)
                    picture = None if draw is None else draw(model)
                if picture is not None:
                    keep_picture(accelerator, args.output_dir, picture, step)
            if stop is not None:
                bar.close()
                accelerator.print(f"stopped by {name_of(stop)} after step {step}: {way_on}")
                accelerator.end_training()
                raise SystemExit(128 + stop)
    bar.close()

    ema.copy_to(trained)
    figures = progress.figures(args, plain, accelerator.num_processes)
    if held_out is not None:
        model = accelerator.unwrap_model(network).eval()
        figures["validation_loss"] = held_out.log(accelerator, model, loss_of, progress.step)
    state = accelerator.get_state_dict(network)
    if accelerator.is_main_process:
        plain.load_state_dict(state)
    return plain.to(accelerator.device).eval(), figures


def main(
    args: Arguments, encode: Callable[[Tensor], Tensor] = lambda x: x, **components: nn.Module
) -> None:
    """Train a class-conditional flow.

    Args:
        args: the command line.
        encode: from images in [-1, 1] to what is learned.
        **components: of the pipeline, that turn it into images again.
    """
    check_output(args)
    accelerator = start(args)
    warn_of_rounding(args.objective, accelerator.mixed_precision)
    repo_id = create_repository(args, accelerator)
    script = "train_latent.py" if components else "train_mnist.py"
    base, args = adopt(args, script) if args.init_from else (None, args)
    column = {"label_column": args.label_column}
    with accelerator.main_process_first():
        data = load_data(args, **column)
        held_out = hold_out(args, data, **column)
    classes, takes_labels = data.num_classes, args.backbone == "transformer"
    null, names = classes if classes or takes_labels else None, data.id2label
    numbers = torch.arange(classes, device=accelerator.device)
    if base is not None:
        check_data(args, args.init_from, base, data)
        check_classes(args, base, data)
        null, (order, names) = base.config.null_label, class_map(args.init_from, base, data)
        numbers = numbers.new_tensor(order)
    scheduler = args.scheduler() if base is None else base.scheduler
    shape = tuple(encode(torch.zeros(1, *data.shape)).shape[1:])

    def learned(images: Tensor) -> Tensor:
        return encode(scaled(args, images))

    count = args.reference_batch_size
    references = None if count is None else References(data, count, learned)

    def loss_of(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        z, given = learned(batch["image"]), batch.get("label")
        label = given if given is None else numbers[given]
        eps = coupled_noise(args, z, label)
        if label is None and takes_labels:
            label = torch.zeros(len(z), dtype=torch.long, device=z.device)
        dropped = torch.rand(len(z), device=z.device) < args.label_dropout
        condition = label if label is None or null is None else label.masked_fill(dropped, null)
        pair = None
        if references is not None:
            told = given if given is None or null is None else given.masked_fill(dropped, -1)
            pair = partial(references.pair, label=told)
        return flow_loss(args, scheduler, network, z, eps, condition, pair)

    def pipeline(network: nn.Module) -> FlowMatchingPipeline:
        if base is not None:
            return network_of(base, network, id2label=names)
        parts = {args.backbone: network, "scheduler": scheduler, **components}
        return FlowMatchingPipeline(**parts, null_label=null, id2label=names)

    network = BACKBONES[args.backbone](args, shape, classes) if base is None else base.network
    if args.objective == "mean_flow":
        network = keep_labels(with_two_times(network))
    shown = list(range(min(classes, 10)))
    asked = {"class_labels": shown} if classes else {"batch_size": 10}
    outcome = train(
        args,
        accelerator,
        network,
        data.loader(args.train_batch_size, args.dataloader_num_workers),
        loss_of,
        draw=lambda network: sample_grid(pipeline(network), asked),
        held_out=held_out,
    )
    if outcome is not None and accelerator.is_main_process:
        pipe, figures = pipeline(outcome[0]), outcome[1]
        figures = {"objective": args.objective, "coupling": args.coupling} | figures
        picture = sample_grid(pipe, asked)
        publish(args, pipe, picture, figures, args.dataset_name, repo_id, asked)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(Arguments))
