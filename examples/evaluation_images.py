"""The real images of `evaluate.py`: for its classifier, to compare with, and further ones."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.data import load_images
from fm_diffusers.training.publishing import conditioning
from fm_diffusers.training.tuning import class_map

#: Images that are compared with others: a manifold is made of balls to the third neighbour.
FEWEST = 4


@dataclass(frozen=True)
class Real:
    """Real images in uint8, with labels and, where the data set has them, captions.

    Attributes:
        images: of the data set.
        labels: its own numbers of the classes.
        captions: of the images.
        numbers: the pipeline's number of every class.
    """

    images: Tensor
    labels: Tensor
    captions: list[str] | None
    numbers: Tensor

    def __getitem__(self, order: Tensor) -> "Real":
        captions = self.captions and [self.captions[i] for i in order.tolist()]
        return Real(self.images[order], self.labels[order], captions, self.numbers)

    @property
    def scaled(self) -> Tensor:
        """The images in [-1, 1]."""
        return self.images.float() / 127.5 - 1

    def conditions(self, pipe: FlowMatchingPipeline) -> dict[str, list]:
        """Return what a pipeline is asked with for these images."""
        if conditioning(pipe) == "prompt" and self.captions is None:
            raise ValueError("the pipeline takes prompts: name their column by --caption_column")
        return {
            "prompt": {"prompt": self.captions},
            "class": {"class_labels": self.numbers[self.labels].tolist()},
            None: {},
        }[conditioning(pipe)]


def load(args: Any, pipe: FlowMatchingPipeline, split: str) -> Real:
    """Return the images of a split, shuffled, and how its classes are asked for."""
    data = load_images(
        args.dataset_name,
        config_name=args.dataset_config_name,
        split=split,
        image_column=args.image_column,
        label_column=args.label_column,
        caption_column=args.caption_column,
        resolution=args.resolution,
        image_mode=args.image_mode,
    )
    if data.labels is None or data.images is None:
        raise ValueError(
            f"{args.dataset_name!r} must have labels, for the classifier whose features are "
            "compared (--label_column), and fit into memory (--resolution)"
        )
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(args.seed))
    numbers = torch.tensor(class_map(args.model, pipe, data)[0])
    return Real(data.images, data.labels, data.captions, numbers)[order[: args.max_real_images]]


def load_all(args: Any, pipe: FlowMatchingPipeline) -> list[Real]:
    """Return the images for the classifier, those to compare with, and further ones."""
    known = load(args, pipe, args.dataset_split)
    half = torch.arange(len(known.images)).chunk(2)
    held_out = known[half[-1]] if args.test_split is None else load(args, pipe, args.test_split)
    known = known[half[0]] if args.test_split is None else known
    count = len(held_out.images)
    if count < 2 * FEWEST:
        raise ValueError(
            f"{count} images of {args.dataset_name!r} are held out to compare with, at least "
            f"{2 * FEWEST} are needed: raise --max_real_images {args.max_real_images}, or choose "
            "a larger split or --test_split"
        )
    return [known, *(held_out[part] for part in torch.arange(count).chunk(2))]
