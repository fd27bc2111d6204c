"""What a pipeline asks of its components: how a network is called, and what it can be told."""

import inspect
import warnings
from typing import Any, NamedTuple

from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from fm_diffusers.pipelines.arguments import is_whole
from fm_diffusers.pipelines.labels import by_number


class Takes(NamedTuple):
    """What a network can be told: in words, by which arguments, and what guidance needs."""

    words: str
    way_out: str
    arguments: tuple[str, ...]
    guidance: str = "class_labels and a network trained with a null label"


#: Kinds of networks.
TAKES = {
    "labels": Takes(
        "takes class labels", "pass class_labels", ("class_labels", "num_images_per_label")
    ),
    "text": Takes(
        "takes text",
        "pass prompt or prompt_embeds",
        (
            "prompt",
            "num_images_per_prompt",
            "prompt_embeds",
            "negative_prompt",
            "negative_prompt_embeds",
        ),
        "a prompt, and a text_encoder or negative_prompt_embeds",
    ),
    "nothing": Takes("is unconditional", "drop them", ()),
}
#: How a configuration counts class labels, and how many rows more the embedding has.
LABEL_COUNTS = {"num_class_embeds": 0, "num_embeds_ada_norm": 1}


def label_rows(network: nn.Module) -> int:
    """Return the number of labels that a network knows, "no class" included; 0 for none.

    Example:
        >>> from diffusers import DiTTransformer2DModel
        >>> sizes = {"num_attention_heads": 1, "attention_head_dim": 4, "num_layers": 1}
        >>> label_rows(DiTTransformer2DModel(**sizes, num_embeds_ada_norm=10))
        11
    """
    config: Any = network.config
    counts = [(config.get(key), more) for key, more in LABEL_COUNTS.items()]
    return next((count + more for count, more in counts if count is not None), 0)


def text_width(network: nn.Module) -> int | None:
    """Return the width of the states that a network attends to; None if it takes no text."""
    config: Any = network.config
    width = config.get("encoder_hid_dim") or config.get("cross_attention_dim")
    return width[0] if isinstance(width, list | tuple) else width


def takes_labels(network: nn.Module) -> bool:
    """Return whether a network is called with labels, be it only that for "no class"."""
    return text_width(network) is None and label_rows(network) > 0


def count_classes(network: nn.Module, null_label: int | None) -> int:
    """Return the number of classes that can be asked for; 0 for networks without."""
    if not takes_labels(network) or null_label is not None:
        return null_label or 0
    config: Any = network.config
    return next(config[k] for k in LABEL_COUNTS if k in config)


def check_network(network: nn.Module) -> None:
    """Raise a `ValueError` for a network that is called otherwise than ours."""
    signature = inspect.signature(unwrap_module(network).forward)
    arguments = [*signature.parameters]
    try:
        signature.bind("sample", "timestep", "condition", return_dict=False)
        called_so = arguments[1] == "timestep"
    except TypeError:
        called_so = False
    if not called_so:
        raise ValueError(
            "the network must be called as (sample, timestep, class_labels or "
            "encoder_hidden_states, return_dict=False), but "
            f"{type(network).__name__} is as {tuple(arguments[:3])}: "
            "wrap it in a module that reorders them"
        )
    config: Any = getattr(network, "config", {})
    if "in_channels" not in config:
        raise ValueError(
            "the network must have a config with in_channels and sample_size, as the models of "
            f"diffusers do, but {type(network).__name__} has none: make it a ModelMixin and "
            "ConfigMixin"
        )
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if size is not None and not all(is_whole(side) and side > 0 for side in sides):
        raise ValueError(
            "the network's sample_size must be the side of its samples, or their height and "
            f"width, got {size!r}: None is for a network of any size"
        )
    channels = config.in_channels
    if config.get("out_channels") not in (None, channels, 2 * channels):
        raise ValueError(
            f"the network must return its in_channels={channels} channels, or twice as many of "
            f"which the second half is a variance, got out_channels={config.out_channels}"
        )


def check_size(network: nn.Module, size: tuple[int, ...], factor: int) -> None:
    """Raise a `ValueError` for a height and a width of samples that a network cannot take.

    Args:
        network: a `UNet2DModel` halves them in every block but the last, a
            `DiTTransformer2DModel` cuts squares into patches, others take any.
        size: height and width of samples.
        factor: pixels of an image for each of them, along a side.
    """
    inner = unwrap_module(network)
    if isinstance(inner, UNet2DModel):
        multiple = 2 ** (len(inner.config.block_out_channels) - 1)
        if any(side % multiple for side in size):
            height, width = (side * factor for side in size)
            raise ValueError(
                f"height and width must be multiples of {multiple * factor} pixels, since the "
                f"U-Net halves samples {len(inner.config.block_out_channels) - 1} times, got "
                f"{height} and {width}: samples of {tuple(size)}"
            )
    elif isinstance(inner, DiTTransformer2DModel):
        patch = inner.config.patch_size
        if size[0] != size[1] or size[0] % patch:
            raise ValueError(
                f"a transformer takes square images, samples of a multiple of {patch}: got "
                f"{tuple(size)}"
            )


def warn_of_size(network: nn.Module, size: tuple[int, ...], factor: int) -> None:
    """Warn of images of another height and width than a network was made for.

    Args:
        network: whose configuration may have a `sample_size`, of samples.
        size: height and width of the images, as samples.
        factor: pixels of an image for each of a sample, along a side.
    """
    own = unwrap_module(network).config.get("sample_size")
    sides = (own, own) if isinstance(own, int) else own
    if sides is not None and tuple(size) != tuple(sides):
        found, known = (" x ".join(str(factor * side) for side in each) for each in (size, sides))
        warnings.warn(
            f"the image has {found} pixels, and the network was made for {known}: it is taken as "
            "it is, but what comes out may be of little use. Resize it first",
            stacklevel=2,
        )


def check_components(pipe: Any) -> None:
    """Raise a `ValueError` for components, a null label or names that do not fit together."""
    if pipe.scheduler is None or (pipe.unet is None) == (pipe.transformer is None):
        raise ValueError("a pipeline needs a scheduler, and a unet or a transformer, not both")
    check_network(pipe.network)
    rows, width = label_rows(pipe.network), text_width(pipe.network)
    null_label = pipe.config.null_label
    if null_label is not None and (type(null_label) is not int or width or rows != null_label + 1):
        raise ValueError(
            f"null_label must be the last of the network's classes, got {null_label!r} for "
            f"{rows} labels; None is for networks without one"
        )
    by_number(pipe.config.get("id2label"), count_classes(pipe.network, null_label))
    channels = pipe.network.config.in_channels
    if pipe.vae is not None and pipe.vae.config.latent_channels != channels:
        raise ValueError(
            f"the vae has latent_channels={pipe.vae.config.latent_channels}, but the network "
            f"has in_channels={channels}: they must be equal"
        )
    if (pipe.text_encoder is None) != (pipe.tokenizer is None):
        raise ValueError("pass text_encoder and tokenizer together, or neither")
    states = None if pipe.text_encoder is None else pipe.text_encoder.config.hidden_size
    if states not in (None, width):
        raise ValueError(
            f"the text encoder's states have width {states}, but the network takes "
            f"{width or 'no text'}: it must be one with cross_attention_dim={states}"
        )
