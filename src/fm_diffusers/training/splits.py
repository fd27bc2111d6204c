r"""The images of a script: those that are trained on, and those that `--validation_split` keeps.

A share is kept of the rows in an order that follows from the seed, so that a resumed run, and
every process, keeps the same ones.
"""

from typing import Any

from fm_diffusers.training.arguments import ImageArguments
from fm_diffusers.training.data import ImageData, load_images
from fm_diffusers.training.held_out import HeldOut, held_out_share


def load_data(
    args: ImageArguments,
    split: str | None = None,
    like: ImageData | None = None,
    **columns: Any,
) -> ImageData:
    """Return the images with the columns named, as the arguments say.

    Args:
        args: of the script.
        split: other than `--dataset_split`.
        like: what is trained on, for images that are held out of it.
        **columns: `label_column`, `caption_column`.
    """
    share = held_out_share(args.validation_split) if args.validation_split else None
    trained = 1.0 - (share or 0.0)
    return load_images(
        args.dataset_name,
        config_name=args.dataset_config_name,
        split=split or args.dataset_split,
        image_column=args.image_column,
        resolution=args.resolution,
        image_mode=args.image_mode,
        streaming=args.streaming and like is None,
        skip_broken=args.skip_broken_images,
        memory_limit=int(args.memory_limit * 2**30),
        shuffle_seed=args.seed,
        share=(0.0, trained) if like is None else (trained % 1.0, 1.0),
        like=like,
        **columns,
    )


def hold_out(args: ImageArguments, data: ImageData, **columns: Any) -> HeldOut | None:
    """Return the images that `--validation_split` keeps from training on `data`."""
    if args.validation_split is None:
        return None
    named = held_out_share(args.validation_split) is None
    kept = load_data(args, args.validation_split if named else None, data, **columns)
    return HeldOut(kept.dataset, kept.dataset.collate, args.train_batch_size, args.seed)
