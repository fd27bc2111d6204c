r"""What training scripts can be told: the arguments that they share.

A script states its own flags as a dataclass that inherits from `TrainingArguments`, and from
`ImageArguments` if it reads images; the names are those of diffusers' training scripts.
`command_line.parse` reads them.
"""

import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers.optimization import SchedulerType

from fm_diffusers.pipelines.images import MODES
from fm_diffusers.tables import look_up
from fm_diffusers.training.checkpoints import Checkpoints
from fm_diffusers.training.command_line import flags, parse
from fm_diffusers.training.continuing import FREE
from fm_diffusers.training.folders import hold, make
from fm_diffusers.training.held_out import held_out_share, overlap
from fm_diffusers.training.plugins import PLUGINS, load_plugins
from fm_diffusers.training.pushing import answer_in_time

#: The smallest allowed value of integers that may be less than 1.
MINIMUM = {"seed": 0, "lr_warmup_steps": 0, "dataloader_num_workers": 0}

#: Arguments that may name a folder to read from.
SOURCES = ("init_from", "model", "vae", "text_encoder", "dataset_name")

#: The schedules of diffusers that need no parameters but the numbers of steps.
SCHEDULES = [s.value for s in SchedulerType if s != SchedulerType.PIECEWISE_CONSTANT]

__all__ = ["ImageArguments", "TrainingArguments", "check_output", "parse", "start"]


@dataclass
class TrainingArguments:
    """What every training script can be told."""

    output_dir: str = "outputs/mnist"
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Delete an earlier run: its checkpoints, and what it has trained."},
    )
    plugins: list[str] = field(default_factory=list, metadata=PLUGINS)
    seed: int = 0

    train_batch_size: int = field(default=128, metadata={"help": "Images per process and batch."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches of every process per step."}
    )
    num_train_epochs: int | None = field(default=None, metadata={"help": "By default 10."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Overrides the epochs."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "As it is, whatever the number of processes."}
    )
    lr_scheduler: str = field(default="cosine", metadata={"choices": SCHEDULES})
    lr_warmup_steps: int | None = field(
        default=None,
        metadata={"help": "By default 200, and none in runs of fewer than 400 steps."},
    )
    lr_scheduler_steps: int | None = field(
        default=None,
        metadata={"help": "Length of the schedule where this run is its first part."},
    )
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "choices": ["no", "fp16", "bf16"],
            "help": "By default what `accelerate launch` says.",
        },
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile the network."})

    logging_steps: int = field(default=50, metadata={"help": "Steps between losses."})
    validation_steps: int = field(
        default=1000, metadata={"help": "Steps between sample grids and held-out losses."}
    )
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Held out: a share of the samples, such as 0.1, or a split's name."},
    )
    checkpointing_steps: int = field(
        default=1000, metadata={"help": "Steps between checkpoints; the last step is one anyway."}
    )
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A `checkpoint-N` of the output, or `latest`."}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "tensorboard, trackio, wandb, ... (Accelerate's trackers), or none."},
    )
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = None
    hub_private_repo: bool = False
    license: str = field(default="apache-2.0", metadata={"help": "Of the weights, for the card."})

    def __post_init__(self) -> None:
        load_plugins(self.plugins)
        for f in fields(self):
            value, minimum = getattr(self, f.name), MINIMUM.get(f.name, 1)
            if type(value) is int and value < minimum:
                raise ValueError(f"--{f.name} must be at least {minimum}, got {value}")
        self.report_to = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        if not self.learning_rate >= 0:
            raise ValueError(f"--learning_rate must be at least 0, got {self.learning_rate}")
        if not 0 <= self.adam_weight_decay < math.inf:
            raise ValueError(
                f"--adam_weight_decay must be at least 0, got {self.adam_weight_decay}"
            )
        if not self.max_grad_norm > 0:
            raise ValueError(f"--max_grad_norm must be positive, got {self.max_grad_norm}")
        look_up("--lr_scheduler", dict.fromkeys(SCHEDULES), self.lr_scheduler)
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"--ema_decay must lie in [0, 1], got {self.ema_decay}")
        if self.overwrite_output_dir and self.resume_from_checkpoint is not None:
            raise ValueError(
                "--overwrite_output_dir deletes what --resume_from_checkpoint "
                f"{self.resume_from_checkpoint} would read: drop one of them"
            )
        if "wandb" in self.report_to and self.hub_token is not None:
            raise ValueError("--hub_token would be logged by wandb: log in with `hf auth login`")
        if self.hub_token is not None and self.hub_token in (self.hub_model_id or ""):
            raise ValueError("--hub_model_id holds the token, which would become public")

        if self.validation_split is not None:
            self.validation_split = str(self.validation_split)
            held_out_share(self.validation_split)

    @property
    def trackers(self) -> list[str]:
        """Names for Accelerate's `log_with`."""
        wanted = [name for name in self.report_to if name != "none"]
        available = [str(tracker) for tracker in get_available_trackers()]
        missing = [name for name in wanted if name not in available]
        if missing:
            raise ValueError(
                f"--report_to {' '.join(missing)} is not installed, there are {available}: "
                f"`pip install {' '.join(missing)}`, or --report_to none"
            )
        return wanted

    def public(self) -> dict[str, Any]:
        """Return all arguments but the token, as JSON takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "hub_token"}

    def continuity(self) -> dict[str, Any]:
        """Return what the rest of a run depends on, beside its state and the numbers of steps."""
        return {name: v for name, v in self.public().items() if name not in FREE}

    def command(self, told: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> str:
        """Return the flags that differ from their defaults, never the token.

        Args:
            told: what is said of the values; `public` says nothing of local folders.
        """
        default = type(self)().public()
        changed = {k: v for k, v in self.public().items() if v is not None and v != default[k]}
        return shlex.join(flags(told(changed)))

    def way_on(self, processes: int = 1) -> str:
        """Return the command line that goes on with a run from its latest checkpoint."""
        rest = replace(self, overwrite_output_dir=False, resume_from_checkpoint="latest")
        launch = "accelerate launch" + (f" --num_processes {processes}" if processes > 1 else "")
        return f"{launch} {shlex.quote(sys.argv[0])} {rest.command()}"


if TYPE_CHECKING:  # every script takes its flags beside those of `TrainingArguments`
    Beside = TrainingArguments
else:
    Beside = object


@dataclass
class ImageArguments(Beside):
    """Which images a script trains on."""

    dataset_name: str = field(
        default="ylecun/mnist",
        metadata={
            "help": "Hub id, folder (also of save_to_disk), parquet file, or `digits`, which need "
            "no network."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Of a data set that has several."}
    )
    dataset_split: str = "train"
    image_column: str = "image"
    image_mode: str | None = field(
        default=None,
        metadata={"choices": MODES, "help": "By default that of the images."},
    )
    resolution: int | None = field(
        default=None, metadata={"help": "Side of the square images; by default their own."}
    )
    random_flip: bool = field(default=False, metadata={"help": "Mirror every other image."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the data set on the way, without a download."}
    )
    skip_broken_images: bool = False
    memory_limit: float = field(
        default=4.0, metadata={"help": "Decode images in advance up to this many GiB."}
    )
    dataloader_num_workers: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.memory_limit < math.inf:
            raise ValueError(f"--memory_limit must be at least 0 GiB, got {self.memory_limit}")
        if self.streaming and self.max_train_steps is None:
            raise ValueError("--streaming cannot count epochs in advance: set --max_train_steps")
        if self.validation_split is None:
            return
        if held_out_share(self.validation_split) is not None:
            if self.streaming:
                raise ValueError(
                    f"--validation_split {self.validation_split} of a stream cannot be told from "
                    "the rest: name a split, or drop --streaming"
                )
        elif shared := overlap(self.dataset_split, self.validation_split):
            raise ValueError(
                f"--validation_split {self.validation_split} holds samples of --dataset_split "
                f"{self.dataset_split}, those of {shared!r}: hold out a share, such as 0.1, or "
                "name another split"
            )


def start(args: TrainingArguments) -> Accelerator:
    """Return the Accelerator of a run, seed it, and make its output folder, which it then holds.

    Raises:
        ValueError: if the launcher started several processes that would not work together, each
            taking itself for the main one; if the folder cannot be written, or another run does.
    """
    output = args.output_dir
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.trackers or None,
        project_config=ProjectConfiguration(output, str(Path(output, "logs"))),
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=args.seed, dispatch_batches=False
        ),
    )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were started, but each would train on its own: "
            "set ACCELERATE_USE_CPU=true to train on several CPU processes"
        )
    set_seed(args.seed)
    make(Path(output))
    if accelerator.is_main_process:
        hold(Path(output))
    answer_in_time()
    return accelerator


def check_output(args: TrainingArguments) -> None:
    """Raise a `ValueError` if a run would write over what it reads, or over finished work."""
    if not args.output_dir:
        raise ValueError("--output_dir is empty: name a folder, which is made")
    output, given = Path(args.output_dir).resolve(), args.public()
    for name in SOURCES:
        source = given.get(name)
        path = Path(source or "").resolve()
        component = path.parent == output and (output / "model_index.json").is_file()
        if source not in (None, "", "digits") and path.is_dir() and (path == output or component):
            raise ValueError(
                f"--output_dir {args.output_dir} would be written over --{name} {source}: choose "
                "another --output_dir"
            )
    Checkpoints(Path(args.output_dir)).check(
        args.resume_from_checkpoint, args.overwrite_output_dir
    )
