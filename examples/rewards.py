"""What `finetune_reward.py` asks for, and what it rewards."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from train_mnist import load_data

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.evaluation import Classifier, train_classifier
from fm_diffusers.pipelines.conditions import Asked
from fm_diffusers.pipelines.labels import numbers_of, owners
from fm_diffusers.training.tuning import class_map

if TYPE_CHECKING:
    from finetune_reward import RewardArguments

Reward = Callable[[Tensor, list[Any]], Tensor]


@dataclass(frozen=True)
class Asking:
    """The conditions that images are drawn with.

    Attributes:
        pipe: the pipeline.
        name: the argument of a call, `class_labels` or `prompt`; "" asks for nothing.
        values: numbers of classes, or prompts; [None] for nothing.
    """

    pipe: FlowMatchingPipeline
    name: str
    values: list[Any]

    @classmethod
    def of(cls, args: "RewardArguments", pipe: FlowMatchingPipeline) -> "Asking":
        """Return what the command line says.

        Raises:
            ValueError: for conditions that the network does not take.
        """
        given = {"class_labels": args.class_labels, "prompt": args.prompts}
        given = {name: values for name, values in given.items() if values is not None}
        if len(given) + args.unconditional > 1:
            raise ValueError("give one of --class_labels, --prompts and --unconditional")
        if args.unconditional or not given and not pipe.num_classes:
            given = {"": [None]}
        name, values = next(iter(given.items()), ("class_labels", [*range(pipe.num_classes)]))
        if name == "class_labels":
            values = [number_or_name(value, pipe.config.id2label) for value in values]
        pipe.check_inputs(cls(pipe, name, values).asked(values))
        return cls(pipe, name, pipe.get_label_ids(values) if name == "class_labels" else values)

    def asked(self, values: list[Any]) -> Asked:
        """Return the call that asks for one image of each of the values."""
        return Asked(**{self.name: values}) if self.name else Asked(batch_size=len(values))

    def cycled(self, count: int) -> list[Any]:
        """Return as many values, one after the other."""
        return [*islice(cycle(self.values), count)]

    @torch.no_grad()
    def encode(self, values: list[Any]) -> Tensor | None:
        """Return what the network is told."""
        return self.pipe.encode_condition(self.asked(values))

    def shown(self) -> dict[str, Any]:
        """Return what a row of ten images is asked for."""
        return {self.name: self.cycled(10)} if self.name else {"batch_size": 10}


def number_or_name(value: int | str, id2label: dict[int, str] | None) -> int | str:
    """Return a class of the command line: a name if there is such a name, else a number."""
    named = isinstance(value, str) and (not value.isdecimal() or value in owners(id2label or {}))
    return value if named else int(value)


def ink(images: Tensor, asked: list[Any]) -> Tensor:
    """Return the mean brightness of images, from 0 to 1."""
    return ((images.clamp(-1, 1) + 1) / 2).flatten(1).mean(1)


@torch.no_grad()
def class_probability(
    classifier: Classifier, classes: dict[Any, int], images: Tensor, asked: list[Any]
) -> Tensor:
    """Return the probability of the class that is wanted of what each image was asked for."""
    probabilities = classifier(images.clamp(-1, 1)).softmax(1)
    index = torch.tensor([classes[one] for one in asked], device=images.device)
    return probabilities.gather(1, index[:, None])[:, 0]


def load_reward(args: "RewardArguments", asking: Asking, device: torch.device) -> Reward:
    """Return the reward that the command line names; it checks what it returns.

    Raises:
        ValueError: for a reward that is none, or that does not fit what is asked for.
    """
    if args.reward_class is not None and args.reward != "class":
        raise ValueError(f"--reward_class is of --reward class, got {args.reward!r}")
    if args.reward == "ink":
        reward = ink
    elif args.reward == "class":
        reward = load_classifier(args, asking, device)
    else:
        reward = import_function(args.reward)
    return partial(checked, args.reward, reward)


def load_classifier(args: "RewardArguments", asking: Asking, device: torch.device) -> Reward:
    """Train a classifier of the data set, and return its probability of a class."""
    data = load_data(args, label_column=args.label_column or None)
    if data.labels is None or data.images is None:
        raise ValueError(
            f"--dataset_name {args.dataset_name} must have labels, for the classifier of --reward "
            "class (--label_column), and fit into memory (--resolution)"
        )
    drawn = (asking.pipe.network if asking.pipe.vae is None else asking.pipe.vae).config
    if data.shape[0] != drawn.in_channels:
        raise ValueError(
            f"{args.model} draws {drawn.in_channels} channels, {args.dataset_name} has "
            f"{data.shape[0]}: choose another --image_mode"
        )
    if args.reward_class is not None:
        wanted = number_or_name(args.reward_class, data.id2label)
        (wanted,) = numbers_of(wanted, data.id2label, data.num_classes, "--reward_class")
        classes = dict.fromkeys(asking.values, wanted)
    else:
        numbers, _ = class_map(args.model, asking.pipe, data)
        classes = {number: own for own, number in enumerate(numbers)}
    if not set(asking.values) <= set(classes):
        raise ValueError(
            f"--reward class knows classes from 0 to {data.num_classes - 1}, and images are asked "
            f"for by {asking.values}: say by --reward_class which one is wanted"
        )
    images, labels = data.images.to(device).float() / 127.5 - 1, data.labels.to(device)
    return partial(class_probability, train_classifier(images, labels, seed=args.seed), classes)


def import_function(name: str) -> Reward:
    """Return the function that `module:function` names."""
    module, _, function = name.partition(":")
    sys.path.append("")  # modules of the working directory, as `python -m` finds them
    try:
        found = getattr(importlib.import_module(module), function, None) if function else None
    except ModuleNotFoundError as error:
        raise ValueError(f"--reward {name}: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(
            f"--reward must be class, ink or module:function, a function of images and of what "
            f"they were asked for, got {name!r}"
        )
    return found


def checked(name: str, reward: Reward, images: Tensor, asked: list[Any]) -> Tensor:
    """Return rewards, one finite number for each image."""
    rewards = torch.as_tensor(reward(images, asked), device=images.device).detach().float()
    if rewards.shape != (len(images),) or not rewards.isfinite().all():
        raise ValueError(
            f"--reward {name} must return a finite number for each of the {len(images)} images, "
            f"got shape {tuple(rewards.shape)}: {rewards.flatten()[:5].tolist()}"
        )
    return rewards
