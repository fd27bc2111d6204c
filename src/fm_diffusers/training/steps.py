r"""How many steps a run has, and the factor of its learning rate at each of them.

Most schedules depend on where they end: `cosine` over 40 steps is at its half after 20, `cosine`
over 20 is at 0. So a run that is prolonged is the run that would have been asked for at the start,
bit for bit, where the schedule does not depend on the end (`constant`, `constant_with_warmup`), or
where the end of the schedule was said beforehand with `--lr_scheduler_steps`.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fm_diffusers.training.arguments import TrainingArguments

#: Schedules that are the same wherever they end.
ENDLESS = ("constant", "constant_with_warmup")
EPOCHS = 10  # of a run that is not told how long it is
WARMUP = 200  # steps of the warm-up where it is not given, in runs of at least twice as many


@dataclass(frozen=True)
class Steps:
    """The numbers of steps of a run, after what is said has been completed and checked.

    Attributes:
        run: steps of the run.
        warmup: steps after which the learning rate has its full height.
        schedule: steps of the whole schedule; more than `run` if that is its first part.
    """

    run: int
    warmup: int
    schedule: int

    def rate(self, args: TrainingArguments, optimizer: Optimizer) -> LambdaLR:
        """Return the schedule of the learning rate of an optimizer."""
        return get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=self.warmup,
            num_training_steps=self.schedule,
        )

    def record(self, args: TrainingArguments) -> dict[str, Any]:
        """Return what the rates of the steps depend on."""
        end = None if args.lr_scheduler in ENDLESS else self.schedule
        return {"lr_warmup_steps": self.warmup, "lr_scheduler_steps": end}


def plan_steps(args: TrainingArguments, loader: DataLoader[Any], processes: int = 1) -> Steps:
    """Return the steps of a run over a loader.

    Args:
        args: of the run.
        loader: as Accelerate prepared it, with the batches of one process.
        processes: that train together.

    Raises:
        ValueError: if numbers contradict each other: an epoch without a batch for every process,
            a step of more batches than an epoch has, a schedule that ends before the run, a
            warm-up of `constant`.

    Numbers that can be honoured in another way than they read give a warning: epochs beside
    steps, intervals that are longer than the run, a warm-up that does not end within the schedule.
    """
    epoch = epoch_length(args, loader, processes)
    epochs = args.num_train_epochs or EPOCHS
    in_epochs = None if epoch is None else epochs * epoch
    run = args.max_train_steps or in_epochs
    if run is None:
        raise ValueError("a stream has no epochs to count: set --max_train_steps")
    if None not in (args.max_train_steps, args.num_train_epochs) and run != in_epochs:
        counted = "" if in_epochs is None else f", which are {in_epochs} steps"
        warnings.warn(
            f"--max_train_steps {run} is what counts, not --num_train_epochs {epochs}{counted}",
            stacklevel=2,
        )
    schedule = run if args.lr_scheduler_steps is None else args.lr_scheduler_steps
    if schedule < run:
        raise ValueError(
            f"--lr_scheduler_steps {schedule} end before the {run} steps of the run: they are the "
            "length of the whole schedule, of which a run is all or the first part"
        )
    warn_of_intervals(args, run)
    return Steps(run, warmup_of(args, schedule), schedule)


def epoch_length(args: TrainingArguments, loader: DataLoader[Any], processes: int) -> int | None:
    """Return the steps of an epoch; None for a stream, which does not know."""
    if not hasattr(loader.dataset, "__len__"):
        return None
    if not len(loader):
        raise ValueError(
            f"--train_batch_size {args.train_batch_size} on {processes} processes "
            f"exceeds the {len(loader.dataset)} samples of an epoch: choose a smaller one"
        )
    if args.gradient_accumulation_steps > len(loader):
        raise ValueError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps} exceed the "
            f"{len(loader)} batches of an epoch, at whose end a step is taken: choose fewer"
        )
    return math.ceil(len(loader) / args.gradient_accumulation_steps)


def warmup_of(args: TrainingArguments, schedule: int) -> int:
    """Return the steps of the warm-up."""
    given = args.lr_warmup_steps
    if args.lr_scheduler == "constant":
        if given:
            raise ValueError(
                f"--lr_scheduler constant has no warm-up, got --lr_warmup_steps {given}: say "
                "--lr_scheduler constant_with_warmup, or drop it"
            )
        return 0
    if given is None:
        return WARMUP if schedule >= 2 * WARMUP else 0
    if given and given >= schedule:
        warnings.warn(
            f"--lr_warmup_steps {given} are not fewer than the {schedule} steps of the schedule, "
            f"and the rate would not get beyond {(schedule - 1) / given:.2g} of --learning_rate: "
            f"the warm-up is {schedule // 10} steps, a tenth. Choose fewer, or say by "
            "--lr_scheduler_steps that this run is the first part of a longer one",
            stacklevel=3,
        )
        return schedule // 10
    return given


def warn_of_intervals(args: TrainingArguments, run: int) -> None:
    """Warn of what happens at the end only, because its interval is longer than the run."""
    names = ("logging_steps", "validation_steps", "checkpointing_steps")
    beyond = [f"--{name} {getattr(args, name)}" for name in names if getattr(args, name) > run]
    if beyond:
        warnings.warn(
            f"{', '.join(beyond)} lie beyond the {run} steps of the run: what they ask for is "
            "done once, at its end",
            stacklevel=3,
        )


def take_rates(
    args: TrainingArguments, optimizer: Optimizer, lr_scheduler: LambdaLR, ema: EMAModel
) -> None:
    """Put the rates of the command line in place of those that a checkpoint has brought."""
    ema.decay = args.ema_decay
    lr_scheduler.base_lrs = [args.learning_rate for _ in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = args.learning_rate
        group["lr"] = args.learning_rate * factor(lr_scheduler.last_epoch)
        group["weight_decay"] = args.adam_weight_decay
