r"""Command lines of training scripts: what they share, and `--config file.yaml` beside flags.

A script states its own flags as a dataclass that inherits from `TrainingArguments`, and from
`ImageArguments` if it reads images; the names are those of diffusers' training scripts. A YAML
file holds the same names without dashes, and a flag on the command line wins over it.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers.optimization import SchedulerType
from transformers import HfArgumentParser

from fm_diffusers.tables import look_up

#: The smallest allowed value of integers that may be less than 1.
MINIMUM = {"seed": 0, "lr_warmup_steps": 0, "dataloader_num_workers": 0}

#: The schedules of diffusers that need no parameters but the numbers of steps.
SCHEDULES = [s.value for s in SchedulerType if s != SchedulerType.PIECEWISE_CONSTANT]

Arguments = TypeVar("Arguments")


@dataclass
class TrainingArguments:
    """What every training script can be told."""

    output_dir: str = "outputs/mnist"
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints of an earlier run."}
    )
    seed: int = 0

    train_batch_size: int = field(default=128, metadata={"help": "Images per process and batch."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches of every process per step."}
    )
    num_train_epochs: int = 10
    max_train_steps: int | None = field(default=None, metadata={"help": "Overrides the epochs."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "As it is, whatever the number of processes."}
    )
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 200
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "no, fp16 or bf16; by default what `accelerate launch` says."},
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile the network."})

    logging_steps: int = field(default=50, metadata={"help": "Steps between losses."})
    validation_steps: int = field(default=1000, metadata={"help": "Steps between sample grids."})
    checkpointing_steps: int = 1000
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
        for f in fields(self):
            value, minimum = getattr(self, f.name), MINIMUM.get(f.name, 1)
            if type(value) is int and value < minimum:
                raise ValueError(f"--{f.name} must be at least {minimum}, got {value}")
        self.report_to = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        if not self.learning_rate >= 0:
            raise ValueError(f"--learning_rate must be at least 0, got {self.learning_rate}")
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

    def command(self) -> str:
        """Return the flags that differ from their defaults, never the token."""
        default = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in fields(self)
        }
        changed = {k: v for k, v in self.public().items() if v is not None and v != default[k]}
        return shlex.join(flags(changed))


@dataclass
class ImageArguments:
    """Which images a script trains on."""

    dataset_name: str = field(
        default="ylecun/mnist",
        metadata={"help": "Hub id, folder, parquet file, or `digits`, which need no network."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Of a data set that has several."}
    )
    dataset_split: str = "train"
    image_column: str = "image"
    image_mode: str | None = field(
        default=None, metadata={"help": "L, RGB or RGBA; by default that of the images."}
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
        if self.streaming and self.max_train_steps is None:
            raise ValueError("--streaming cannot count epochs in advance: set --max_train_steps")


def flags(values: dict[str, Any]) -> Iterator[str]:
    """Yield the words of a command line that says the same."""
    for name, value in values.items():
        if isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        elif isinstance(value, dict):
            yield f"--{name}={json.dumps(value)}"
        elif value is not None:
            yield f"--{name}" if value is True else f"--{name}={value}"


def parse(arguments: type[Arguments], command_line: list[str] | None = None) -> Arguments:
    """Return the arguments of a script from its flags and from the file of `--config`.

    Args:
        arguments: the dataclass.
        command_line: words; by default those of this process.

    Raises:
        ValueError: if the file has a name that is no argument of the script, or values do not
            agree.

    Example:
        >>> parse(TrainingArguments, ["--seed", "3"]).seed
        3
    """
    words = sys.argv[1:] if command_line is None else command_line
    parser = HfArgumentParser(arguments)
    parser.add_argument("--config", help="YAML file with these names; flags win over it.")
    config = parser.parse_known_args(words)[0].config
    if config is not None:
        words = [*flags(read_config(config, [f.name for f in fields(arguments)])), *words]
    return parser.parse_args_into_dataclasses(words)[0]


def read_config(file: str, names: list[str]) -> dict[str, Any]:
    """Return the content of a YAML file that holds some of `names`."""
    import yaml

    if not Path(file).is_file():
        raise ValueError(f"--config {file!r} is not a file")
    try:
        values = yaml.safe_load(Path(file).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config {file!r} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {file!r} must hold `name: value` lines, got {values!r}")
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"--config {file!r} holds {unknown}, the script takes {names}")
    if values.get("mixed_precision") is False:
        values["mixed_precision"] = "no"  # which YAML takes for a boolean
    return values


def start(args: TrainingArguments) -> Accelerator:
    """Return the Accelerator of a run, seed it, and make its output folder.

    Raises:
        ValueError: if the launcher started several processes that would not work together, each
            taking itself for the main one.
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
    Path(output).mkdir(parents=True, exist_ok=True)
    return accelerator
