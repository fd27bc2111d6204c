r"""Training that begins with a saved pipeline: `--init_from` in full, `--model` by adapters.

What the pipeline says of itself holds: its network, its path and prediction, its size and
channels, its classes. A flag that says otherwise is refused.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from diffusers import AutoencoderKL
from torch import nn

from fm_diffusers.flow_map_networks import distilled_guidance, is_of_two_times
from fm_diffusers.pipeline import FlowMatchingPipeline
from fm_diffusers.pipelines.images import MODES
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.training.data import ImageData
from fm_diffusers.training.flow import FlowArguments, LossArguments, of_coupled_noise
from fm_diffusers.training.flow_maps import last_start
from fm_diffusers.training.networks import DEFAULTS, keep_labels

Arguments = TypeVar("Arguments", bound=LossArguments)

#: Which script trains which pipelines, by what their networks take and whether they have a vae.
SCRIPTS = {
    ("labels", False): "train_mnist.py",
    ("nothing", False): "train_mnist.py",
    ("labels", True): "train_latent.py",
    ("nothing", True): "train_latent.py",
    ("text", False): "train_text_to_image.py",
}


def load_pipeline(args: Arguments, name: str) -> tuple[FlowMatchingPipeline, Arguments]:
    """Return a pipeline whose training goes on, and the arguments with its size and channels.

    Args:
        args: of the script.
        name: a folder or a Hub id.
    """
    pipe = FlowMatchingPipeline.from_pretrained(name)
    if pipe.scheduler.config.get("calibration"):
        warnings.warn(f"the calibration of {name} was of its network: it is dropped", stacklevel=2)
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, calibration=None)
    check_map(args, name, pipe)
    args.check_bounds(pipe.scheduler)
    mode = {count: name for name, count in MODES.items()}.get(image_channels(pipe))
    height = pipe.sample_shape(None, None)[1]
    side = height and height * pipe.vae_scale_factor
    of_images: Any = args
    size, mode = of_images.resolution or side, of_images.image_mode or mode
    return pipe, replace(of_images, resolution=size, image_mode=mode)


def check_map(args: LossArguments, name: str, pipe: FlowMatchingPipeline) -> None:
    """Let a pipeline step by the flow map that it is to learn, if it is.

    Raises:
        ValueError: for a flow map whose map would not be trained, or that data do not show.
    """
    learns = getattr(args, "objective", None) == "mean_flow"
    if is_of_two_times(pipe.network) and not learns:
        raise ValueError(
            f"{name} is a flow map, of which this training would change the slope alone and leave "
            "the map as it was: train it by train_mnist.py, train_latent.py or "
            "train_text_to_image.py with --objective mean_flow, or take its teacher"
        )
    if (learned := distilled_guidance(pipe.network)) is not None:
        raise ValueError(
            f"{name} has learned guidance_scale={learned}, which --objective mean_flow would "
            "unlearn, since data know no guidance: take its teacher"
        )
    if learns:
        pipe.scheduler = GaussianFlowScheduler.from_config(
            pipe.scheduler.config, solver="flow_map"
        )
        last_start(pipe.scheduler)  # raises if there is no map


def image_channels(pipe: FlowMatchingPipeline) -> int:
    """Return the channels of the images that a pipeline draws."""
    config: Any = (pipe.network if pipe.vae is None else pipe.vae).config
    return config.in_channels


def adopt(args: FlowArguments, script: str) -> tuple[FlowMatchingPipeline, FlowArguments]:
    """Return the pipeline of `--init_from`, and the arguments with what they leave to it.

    Raises:
        ValueError: if the pipeline is one of another script, or a flag contradicts it.
    """
    pipe, args = load_pipeline(args, str(args.init_from))
    fitting = SCRIPTS.get((pipe.takes, pipe.vae is not None), "train_lora.py, with --model")
    if fitting != script:
        raise ValueError(f"{args.init_from} is not a pipeline of {script}: train it by {fitting}")
    backbone = "unet" if pipe.transformer is None else "transformer"
    config = pipe.scheduler.config
    own: Any = pipe.network.config
    said = {"path": config.path, "prediction_type": config.prediction_type, "backbone": backbone}
    said["path_kwargs"] = json.dumps(dict(config.path_kwargs or {}))
    said |= {name: own.get(name) for name in [*DEFAULTS, "block_out_channels"]}
    given = args.public()
    for name, value in said.items():
        if given.get(name) is not None and plain(given[name]) != plain(value):
            raise ValueError(
                f"--{name} {given[name]} contradicts {args.init_from}, which has {value}: drop it"
            )
    kept = {name: said[name] for name in ("path", "path_kwargs", "prediction_type")}
    kept |= {"backbone": backbone} if "backbone" in given else {}
    for part in (pipe.vae, pipe.text_encoder):
        if part is not None:
            part.requires_grad_(False).eval()
    keep_labels(pipe.network).requires_grad_(True).train()
    if args.coupling != "independent":
        pipe.scheduler = of_coupled_noise(pipe.scheduler)
    elif pipe.scheduler.path.coupled:
        warnings.warn(
            f"{args.init_from} was trained with coupled noise, and --coupling independent may not "
            "undo that in full: the pipeline still refuses an SDE",
            stacklevel=2,
        )
    return pipe, replace(args, **kept)


def load_autoencoder(flag: str, name: str, subfolder: str | None = None) -> AutoencoderKL:
    """Return a saved autoencoder, or that of a saved pipeline.

    Raises:
        ValueError: for a folder that is neither.
    """
    folder = Path(name, subfolder or "")
    if not subfolder and (folder / "model_index.json").is_file():
        subfolder, folder = "vae", folder / "vae"
    if Path(name).is_dir() and not (folder / "config.json").is_file():
        inside = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
        raise ValueError(
            f"--{flag} {name} holds no autoencoder, there is no {folder / 'config.json'}: name "
            f"the folder that save_pretrained wrote{f', such as {inside}' if inside else ''}"
        )
    try:
        return AutoencoderKL.from_pretrained(name, subfolder=subfolder)
    except OSError as error:
        raise ValueError(
            f"--{flag} {name}: there is no such folder, and no autoencoder of that name was found "
            "on the Hub: pass a folder, as train_autoencoder.py writes it, or a Hub id"
        ) from error


def plain(value: Any) -> Any:
    """Return a value as JSON has it, so that tuples and texts of JSON compare."""
    try:
        return json.loads(value) if isinstance(value, str) else json.loads(json.dumps(value))
    except json.JSONDecodeError:
        return value


def check_data(args: Any, name: str, pipe: FlowMatchingPipeline, data: ImageData) -> None:
    """Raise a `ValueError` if images have other channels than the pipeline `name`."""
    channels, mode = image_channels(pipe), args.image_mode
    if data.shape[0] != channels:
        way_out = "choose another --image_mode" if mode is None else f"drop --image_mode {mode}"
        raise ValueError(
            f"{name} takes {channels} channels, the images have {data.shape[0]}: {way_out}"
        )


def check_classes(args: Any, pipe: FlowMatchingPipeline, data: ImageData) -> None:
    """Raise a `ValueError` unless there are as many classes as the network was trained with."""
    if data.num_classes != pipe.num_classes:
        raise ValueError(
            f"{args.dataset_name} has {data.num_classes} classes, the network of "
            f"{args.init_from} knows {pipe.num_classes}: choose another --label_column ('' is for "
            "networks without classes), or train without --init_from"
        )
    warn_of_null(pipe, args.init_from, args.label_dropout)


def class_map(
    name: str, pipe: FlowMatchingPipeline, data: ImageData
) -> tuple[list[int], dict[int, str] | None]:
    """Return the pipeline's number of every class of the data, and the names that come of it.

    Where the pipeline knows all names of the data, a class keeps its number in the pipeline,
    whatever its number in the data; else classes of the same number are the same.
    """
    same, known = [*range(data.num_classes)], pipe.config.id2label
    if known is None or data.id2label is None:
        return same, known or data.id2label
    found = [pipe.labels.get(text.strip()) for text in data.class_names or ()]
    numbers = [n for n in found if n is not None]
    if len(numbers) == len(found) == len({*numbers}):
        return numbers, known
    warnings.warn(
        f"the classes of {name}, {some(known)}, are not those of the data, "
        f"{some(data.id2label)}: classes of the same number are taken for the same",
        stacklevel=3,
    )
    return same, known | data.id2label


def some(id2label: dict[int, str]) -> str:
    """Return a few names for a message."""
    return ", ".join([*id2label.values()][:5]) + ", ..." * (len(id2label) > 5)


def warn_of_null(pipe: FlowMatchingPipeline, name: str, dropout: float) -> None:
    """Warn if no label can be dropped."""
    if pipe.num_classes and pipe.config.null_label is None and dropout:
        warnings.warn(
            f"the network of {name} has no label for 'no class': --label_dropout {dropout} drops "
            "none",
            stacklevel=3,
        )


def network_of(
    pipe: FlowMatchingPipeline, network: nn.Module, **others: Any
) -> FlowMatchingPipeline:
    """Return the pipeline with another network, and other components, in the place of its own."""
    name = "unet" if pipe.transformer is None else "transformer"
    return FlowMatchingPipeline(**pipe.components | {name: network, **others})
