"""Train a flow-matching model on images, then sample it as an ODE and as an SDE.

    accelerate launch examples/train_mnist.py --mixed_precision bf16 --push_to_hub

trains a class-conditional U-Net on the Hub's MNIST. (On a CPU say `accelerate launch
--num_cpu_threads_per_process 8 ...`: Accelerate's default is one thread.) `--dataset_name` takes
any other image data set of the Hub, a local folder, or `digits`: the 8x8 digits that scikit-learn
ships, which need no network:

    accelerate launch examples/train_mnist.py --dataset_name digits --block_out_channels 64 128 \
        --output_dir outputs/digits

What is saved is a `FlowMatchingPipeline` with the EMA weights, a picture and a model card:

    pipe = FlowMatchingPipeline.from_pretrained("outputs/digits")
    pipe(class_labels=[3, 7], guidance_scale=2.0).images
"""

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.objectives import prediction_loss, sample_times, score_matching_loss

OBJECTIVES = ("flow_matching", "score_matching")


@dataclass
class Arguments:
    """Command line; the names are those of diffusers' training scripts."""

    dataset_name: str = field(
        default="ylecun/mnist", metadata={"help": "Hub id, local folder, or `digits`."}
    )
    image_column: str = "image"
    label_column: str = field(
        default="label", metadata={"help": "Class labels; an empty name trains without classes."}
    )
    resolution: int | None = field(
        default=None, metadata={"help": "Side of the square images; by default their own."}
    )
    output_dir: str = "outputs/mnist"
    seed: int = 0

    path: str = field(default="linear", metadata={"help": "A Gaussian path, a name in PATHS."})
    prediction_type: str = field(
        default="velocity", metadata={"help": "What the network predicts, in PREDICTIONS."}
    )
    objective: str = field(
        default="flow_matching",
        metadata={
            "help": "flow_matching: squared error of the prediction's own conditional target; "
            "score_matching: of the score, with the weight beta^2 that makes it bounded."
        },
    )
    time_sampler: str = field(
        default="low_discrepancy", metadata={"help": "Density of the times, in TIME_SAMPLERS."}
    )
    label_dropout: float = field(
        default=0.1, metadata={"help": "Share of samples trained without class, for guidance."}
    )
    block_out_channels: list[int] = field(
        default_factory=lambda: [32, 64, 64], metadata={"help": "Widths of the U-Net's levels."}
    )
    layers_per_block: int = 1

    train_batch_size: int = field(default=128, metadata={"help": "Images per process and step."})
    num_train_epochs: int = 10
    max_train_steps: int | None = field(default=None, metadata={"help": "Overrides the epochs."})
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 200
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "no, fp16 or bf16; by default what `accelerate launch` says."},
    )
    dataloader_num_workers: int = 0

    validation_steps: int = field(default=1000, metadata={"help": "Steps between sample grids."})
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A `checkpoint-N` of the output, or `latest`."}
    )
    report_to: str = field(default="tensorboard", metadata={"help": "Or none."})
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = None
    hub_private_repo: bool = False


def check_arguments(args: Arguments) -> None:
    if args.objective not in OBJECTIVES:
        raise ValueError(f"--objective must be one of {OBJECTIVES}, got {args.objective!r}")
    unbounded = {"flow_matching": "score", "score_matching": "sample"}[args.objective]
    if args.prediction_type == unbounded:
        raise ValueError(
            f"the {args.objective} loss of a network that predicts {unbounded!r} is unbounded at "
            "t = 1: choose another --prediction_type or the other --objective"
        )
    for name in ("label_dropout", "ema_decay"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name} must lie in [0, 1], got {getattr(args, name)}")
    for f in fields(args):
        value = getattr(args, f.name)
        may_be_zero = f.name in ("seed", "lr_warmup_steps", "dataloader_num_workers")
        if type(value) is int and value < (0 if may_be_zero else 1):
            raise ValueError(f"--{f.name} must be at least {0 if may_be_zero else 1}, got {value}")
    if not args.block_out_channels or any(width % 8 for width in args.block_out_channels):
        raise ValueError(
            f"--block_out_channels must be multiples of 8, got {args.block_out_channels}"
        )
    if args.report_to == "wandb" and args.hub_token is not None:
        raise ValueError("--hub_token would be logged by wandb: log in with `hf auth login`")


def load_images(args: Arguments) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return all images as one uint8 tensor `(n, channels, size, size)`, and their labels."""
    if args.dataset_name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
        images = [Image.fromarray(image) for image in pixels]
        data = {args.image_column: images, args.label_column: digits.target}
    else:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        try:
            data = load_dataset(args.dataset_name, split="train")
        except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"--dataset_name {args.dataset_name!r} is neither a local folder nor a data set "
                "that the Hub gives (check the spelling, the connection, and `hf auth login` for "
                "private ones); `digits` needs no network"
            ) from error
        wanted = [name for name in (args.image_column, args.label_column) if name]
        missing = [name for name in wanted if name not in data.column_names]
        if missing:
            raise ValueError(
                f"the data set has no column {missing}, it has {data.column_names}: choose with "
                "--image_column and --label_column"
            )
    images = [decode(image, args.resolution) for image in data[args.image_column]]
    shapes = {image.shape for image in images}
    if len(shapes) > 1 or images[0].shape[0] != images[0].shape[1]:
        raise ValueError(f"images must be square and alike, got {shapes}: pass --resolution")
    images = torch.from_numpy(np.stack(images))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(np.asarray(data[args.label_column])) if args.label_column else None
    return images, labels


def decode(image: Image.Image, resolution: int | None) -> np.ndarray:
    """Return grey images as `(height, width)`, all others as RGB `(height, width, 3)`."""
    image = image if image.mode == "L" else image.convert("RGB")
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution))
    return np.asarray(image)


def make_unet(args: Arguments, images: torch.Tensor, num_classes: int) -> UNet2DModel:
    """Return a U-Net with attention at its lowest level only, which is fast on a CPU as well."""
    channels, size = images.shape[1], images.shape[-1]
    levels = len(args.block_out_channels)
    if size % 2 ** (levels - 1):
        raise ValueError(
            f"images of side {size} cannot be halved {levels - 1} times: choose another "
            "--resolution or fewer --block_out_channels"
        )
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=args.layers_per_block,
        block_out_channels=tuple(args.block_out_channels),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
        num_class_embeds=num_classes + 1 if num_classes else None,
    )


def processes(
    pipe: FlowMatchingPipeline,
    ode_steps: int = 20,
    sde_steps: int = 50,
    diffusion: str = "memoryless",
) -> Iterator[tuple[str, int]]:
    """Yield a title and a number of steps, with the pipeline set to the ODE, then to the SDE."""
    for title, coefficient, steps in (
        (f"ODE, {ode_steps} steps", None, ode_steps),
        (f"SDE ({diffusion}), {sde_steps} steps", diffusion, sde_steps),
    ):
        pipe.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config, diffusion=coefficient
        )
        yield title, steps


def sample_grid(
    unet: UNet2DModel, scheduler: GaussianFlowScheduler, num_classes: int, device: torch.device
) -> Image.Image:
    """Return four rows of ODE samples above four rows of SDE samples, a column for each class."""
    pipe = FlowMatchingPipeline(unet, scheduler, null_label=num_classes or None).to(device)
    pipe.set_progress_bar_config(disable=True)
    what = {"class_labels": 4 * list(range(num_classes))} if num_classes else {"batch_size": 40}
    rows = []
    for _, steps in processes(pipe):
        generator = torch.Generator("cpu").manual_seed(0)
        rows += pipe(**what, num_inference_steps=steps, generator=generator).images
    return make_image_grid(rows, rows=8, cols=len(rows) // 8)


@contextmanager
def ema_weights(ema: EMAModel, unet: UNet2DModel):  # noqa: ANN201
    """Put the averaged weights into the network, for the time of a `with` block."""
    parameters = list(unet.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    unet.eval()
    yield unet
    unet.train()
    ema.restore(parameters)


def save_checkpoint(accelerator: Accelerator, args: Arguments, step: int) -> None:
    """Save the state of every process aside, rename it when complete, drop the oldest ones."""
    final = Path(args.output_dir, f"checkpoint-{step}")
    partial = final.with_name(f"partial-{step}")
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        if args.checkpoints_total_limit is not None:
            for old in checkpoints(args)[: -args.checkpoints_total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def checkpoints(args: Arguments) -> list[Path]:
    """Return the checkpoints from the oldest to the newest."""
    folders = Path(args.output_dir).glob("checkpoint-*")
    found = [folder for folder in folders if re.fullmatch(r"checkpoint-\d+", folder.name)]
    return sorted(found, key=lambda folder: int(folder.name.split("-")[1]))


CARD = """# {title}

{kind} images by flow matching, trained with
`fm_diffusers` on `{dataset}`. One network, sampled as an ODE (upper four rows) and as an SDE
(lower four rows):

![samples](samples.png)

```python
from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

pipe = FlowMatchingPipeline.from_pretrained("{title}")
ode = pipe({labels}num_inference_steps=20).images
pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion="memoryless")
sde = pipe({labels}num_inference_steps=50).images
```

Path `{path}`, prediction `{prediction}`, objective `{objective}`; {parameters:,} parameters,
{steps:,} steps of {batch} images in {seconds:,.0f} s. The weights are an exponential moving
average. Command:

```
accelerate launch examples/train_mnist.py {command}
```
"""


def model_card(args: Arguments, title: str, figures: dict) -> ModelCard:
    """Return a card with the command line (never the token), the figures and the picture."""
    from_hub = "/" in args.dataset_name and not Path(args.dataset_name).exists()
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["flow-matching", "fm_diffusers", args.path],
        datasets=[args.dataset_name] if from_hub else None,
    )
    flags = []
    for f in fields(args):
        value = getattr(args, f.name)
        if f.name != "hub_token" and value not in (f.default, None):
            values = value if isinstance(value, list) else [] if value is True else [value]
            flags.append(" ".join([f"--{f.name}", *map(str, values)]))
    text = CARD.format(
        title=title,
        kind="Class-conditional" if args.label_column else "Unconditional",
        dataset=args.dataset_name if from_hub else Path(args.dataset_name).name,
        labels="class_labels=[3, 7], " if args.label_column else "",
        path=args.path,
        prediction=args.prediction_type,
        objective=args.objective,
        batch=args.train_batch_size,
        command=" ".join(flags),
        **figures,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def find_checkpoint(args: Arguments) -> Path | None:
    """Return the checkpoint to resume from, None to begin anew."""
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint == "latest":
        return next(reversed(checkpoints(args)), None)
    folder = Path(args.resume_from_checkpoint)
    folder = folder if folder.is_dir() else Path(args.output_dir, folder)
    if not folder.is_dir() or not re.fullmatch(r"checkpoint-\d+", folder.name):
        raise ValueError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint!r} is not a folder "
            f"`checkpoint-N`; there are {[path.name for path in checkpoints(args)]} in "
            f"{args.output_dir}, or say `latest`"
        )
    return folder


def main(args: Arguments) -> None:
    check_arguments(args)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, str(Path(args.output_dir, "logs"))),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were started, but each would train on its own: "
            "set ACCELERATE_USE_CPU=true to train on several CPU processes"
        )
    device = accelerator.device
    set_seed(args.seed)
    repo_id = None
    if args.push_to_hub and accelerator.is_main_process:  # now, so that it cannot fail at the end
        repo_id = create_repo(
            args.hub_model_id or Path(args.output_dir).name,
            private=args.hub_private_repo,
            token=args.hub_token,
            exist_ok=True,
        ).repo_id

    # Data
    with accelerator.main_process_first():
        images, labels = load_images(args)
    num_classes = 0 if labels is None else int(labels.max()) + 1
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    loader = DataLoader(
        TensorDataset(images, labels),
        batch_size=args.train_batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.dataloader_num_workers,
    )
    if len(loader) == 0:
        raise ValueError(f"--train_batch_size exceeds the {len(images)} images of the data set")

    # Model
    scheduler = GaussianFlowScheduler(path=args.path, prediction_type=args.prediction_type)
    path = scheduler.path
    unet = make_unet(args, images, num_classes)
    ema = EMAModel(
        unet.parameters(),
        decay=args.ema_decay,
        foreach=True,
        model_cls=UNet2DModel,
        model_config=unet.config,
    )
    ema.to(device)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True
    )
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    batches = len(loader)
    steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    max_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    lr_scheduler = get_scheduler(  # not prepared: it steps once an update, on any number of GPUs
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=max_steps,
    )
    accelerator.register_for_checkpointing(ema, lr_scheduler)
    tracked = {name: str(value) for name, value in asdict(args).items() if name != "hub_token"}
    accelerator.init_trackers("train", config=tracked)

    # Train
    checkpoint, step = find_checkpoint(args), 0
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        step = int(checkpoint.name.split("-")[1])
        accelerator.print(f"resumed from {checkpoint}")
    bar = tqdm(total=max_steps, initial=step, disable=not accelerator.is_local_main_process)
    losses, start, first = [], time.perf_counter(), step
    while step < max_steps:
        epoch, done = divmod(step, steps_per_epoch)
        loader.set_epoch(epoch)
        skipped = done * args.gradient_accumulation_steps
        active = accelerator.skip_first_batches(loader, skipped) if skipped else loader
        for batch, (z, label) in enumerate(active, start=skipped):
            # all randomness of a batch follows from its place in the run: resuming is exact
            place = (epoch * batches + batch) * accelerator.num_processes
            torch.manual_seed(args.seed * 1_000_003 + place + accelerator.process_index)
            z = z.float() / 127.5 - 1
            eps = torch.randn_like(z)
            t = sample_times(len(z), args.time_sampler, device=device)
            dropped = torch.rand(len(z), device=device) < args.label_dropout
            label = label.masked_fill(dropped, num_classes) if num_classes else None
            with accelerator.accumulate(unet):
                x_t = path.flow_map(z, eps, t)
                output = unet(x_t, scheduler.to_timestep(t), label, return_dict=False)[0]
                if args.objective == "score_matching":
                    loss = score_matching_loss(output, path, z, eps, t, args.prediction_type)
                else:
                    loss = prediction_loss(output, path, z, eps, t, args.prediction_type).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue
            lr_scheduler.step()
            ema.step(unet.parameters())
            step += 1
            bar.update()
            if step % 50 == 0 or step == max_steps:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                bar.set_postfix(loss=f"{mean:.4f}")
                accelerator.log({"loss": mean, "lr": lr_scheduler.get_last_lr()[0]}, step=step)
                losses = []
            if step % args.validation_steps == 0 and accelerator.is_main_process:
                with ema_weights(ema, accelerator.unwrap_model(unet)) as model:
                    grid = sample_grid(model, scheduler, num_classes, device)
                grid.save(Path(args.output_dir, f"samples-{step}.png"))
                for tracker in accelerator.trackers:
                    if tracker.name == "tensorboard":
                        picture = {"ODE above SDE": np.array(grid)[None]}
                        tracker.log_images(picture, step, dataformats="NHWC")
            if step % args.checkpointing_steps == 0:
                save_checkpoint(accelerator, args, step)
            if step == max_steps:
                break
    bar.close()
    seconds = time.perf_counter() - start

    # Save and push the averaged weights
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(unet)
        ema.copy_to(model.parameters())
        grid = sample_grid(model.eval(), scheduler, num_classes, device)
        pipe = FlowMatchingPipeline(model, scheduler, null_label=num_classes or None)
        pipe.save_pretrained(args.output_dir)
        grid.save(Path(args.output_dir, "samples.png"))
        images_seen = (step - first) * args.train_batch_size * accelerator.num_processes
        images_seen *= args.gradient_accumulation_steps
        figures = {
            "parameters": model.num_parameters(),
            "steps": step,
            "seconds": round(seconds, 1),
            "images_per_second": round(images_seen / seconds, 1),
        }
        Path(args.output_dir, "training.json").write_text(json.dumps(figures, indent=2) + "\n")
        model_card(args, repo_id or args.output_dir, figures).save(
            Path(args.output_dir, "README.md")
        )
        print(f"saved {args.output_dir}: {figures}")
        if repo_id is not None:
            url = upload_folder(
                repo_id=repo_id,
                folder_path=args.output_dir,
                ignore_patterns=["checkpoint-*", "partial-*", "logs/*", "samples-*"],
                commit_message=f"Train for {step} steps",
                token=args.hub_token,
            )
            print(f"pushed to {url}")
    accelerator.end_training()


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses(sys.argv[1:])[0])
