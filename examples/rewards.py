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

if TYPE_CHECKING:
    from finetune_reward import RewardArguments

Reward = Callable[[Tensor, list[Any]], Tensor]


@dataclass(frozen=True)
class Asking:
    """The conditions that images are drawn with.

    Attributes:
        pipe: the pipeline.
        name: the argument of a call, `class_labels` or `prompt`; "" asks for nothing.
        values: classes or prompts; [None] for nothing.
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
        asking = cls(pipe, name, values)
        pipe.check_inputs(asking.asked(values))
        return asking

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
        """Return what a picture of 40 images is asked for."""
        return {self.name: self.cycled(40)} if self.name else {"batch_size": 40}


def ink(images: Tensor, asked: list[Any]) -> Tensor:
    """Return the mean brightness of images, from 0 to 1."""
    return ((images.clamp(-1, 1) + 1) / 2).flatten(1).mean(1)


@torch.no_grad()
def class_probability(
    classifier: Classifier, wanted: int | None, images: Tensor, asked: list[Any]
) -> Tensor:
    """Return the probability of a class, or of the one that each image was asked for."""
    labels = asked if wanted is None else [wanted] * len(images)
    probabilities = classifier(images.clamp(-1, 1)).softmax(1)
    index = torch.tensor(labels, device=images.device)
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
    wanted = asking.values if args.reward_class is None else [args.reward_class]
    if any(type(k) is not int or not 0 <= k < data.num_classes for k in wanted):
        raise ValueError(
            f"--reward class knows classes from 0 to {data.num_classes - 1}, and images are asked "
            f"for by {wanted}: say by --reward_class which one is wanted"
        )
    images, labels = data.images.to(device).float() / 127.5 - 1, data.labels.to(device)
    return partial(
        class_probability, train_classifier(images, labels, seed=args.seed), args.reward_class
    )


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
