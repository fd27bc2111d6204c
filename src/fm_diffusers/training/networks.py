r"""Networks of the size of a data set: a U-Net and a diffusion transformer (DiT).

Both are diffusers' own and are called alike, `network(x_t, timestep, label)`; the label `k` of
`k` classes stands for "no class".

References: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation",
https://arxiv.org/abs/1505.04597; Peebles, Xie, "Scalable Diffusion Models with Transformers",
https://arxiv.org/abs/2212.09748.
"""

import warnings
from dataclasses import dataclass, field

from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from fm_diffusers.training.command_line import unused

UNET_WIDTHS = {
    "help": "Widths of the U-Net's levels; by default of 32 64 64 the last, as many as the sides "
    "can be halved."
}
#: Sizes that are not said, but for `block_out_channels`, which depend on the images.
DEFAULTS = {
    "dropout": 0.0,
    "layers_per_block": 1,
    "patch_size": 2,
    "num_layers": 6,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
}
#: The only backbone that reads a size.
OWNERS = {
    "block_out_channels": "unet",
    "layers_per_block": "unet",
    "patch_size": "transformer",
    "num_layers": "transformer",
    "num_attention_heads": "transformer",
    "attention_head_dim": "transformer",
}
WIDTHS = (32, 64, 64)


@dataclass
class NetworkArguments:
    """Sizes of a network, as flags of a training script."""

    backbone: str | None = field(
        default=None,
        metadata={"choices": ["unet", "transformer"], "help": "By default unet; or a DiT."},
    )
    dropout: float | None = field(default=None, metadata={"help": "Of the layers; by default 0."})
    block_out_channels: list[int] | None = field(default=None, metadata=UNET_WIDTHS)
    layers_per_block: int | None = field(default=None, metadata={"help": "By default 1."})
    patch_size: int | None = field(
        default=None, metadata={"help": "Of the transformer; by default 2."}
    )
    num_layers: int | None = field(default=None, metadata={"help": "By default 6."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "By default 4."})
    attention_head_dim: int | None = field(default=None, metadata={"help": "By default 32."})

    def __post_init__(self) -> None:
        self.backbone = self.backbone or "unet"
        for told in unused(self, "backbone", OWNERS, DEFAULTS):
            warnings.warn(told, stacklevel=3)
        for name, value in DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.backbone not in BACKBONES:
            raise ValueError(f"--backbone must be one of {[*BACKBONES]}, got {self.backbone!r}")
        assert self.dropout is not None
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"--dropout must lie in [0, 1], got {self.dropout}")
        widths = self.block_out_channels
        if widths is not None and (not widths or any(w % 8 or w < 8 for w in widths)):
            raise ValueError(f"--block_out_channels must be multiples of 8, got {widths}")


def trained_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network that require a gradient."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def choose_widths(given: list[int] | None, size: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths of a U-Net's levels, of which every one but the first halves the sides.

    By default they are the last of 32, 64, 64, as many as the sides can be halved.

    Raises:
        ValueError: if the sides cannot be halved as often as given widths ask for.

    Example:
        >>> choose_widths(None, (28, 28)), choose_widths(None, (14, 14))
        ((32, 64, 64), (64, 64))
    """
    if given is None:
        levels = [n for n in range(1, len(WIDTHS) + 1) if not any(s % 2 ** (n - 1) for s in size)]
        return WIDTHS[-max(levels) :]
    halvings = len(given) - 1
    if any(side % 2**halvings for side in size):
        raise ValueError(
            f"images of side {max(size)} cannot be halved {halvings} times: choose another "
            "--resolution or fewer --block_out_channels"
        )
    return tuple(given)


def make_unet(
    args: NetworkArguments, shape: tuple[int, int, int], num_classes: int
) -> UNet2DModel:
    """Return a U-Net with attention at its lowest level only, which is fast on a CPU as well."""
    channels, *size = shape
    widths = choose_widths(args.block_out_channels, size)
    levels = len(widths)
    return UNet2DModel(
        sample_size=size[0] if size[0] == size[1] else tuple(size),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=args.layers_per_block,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
        dropout=args.dropout,
        num_class_embeds=num_classes + 1 if num_classes else None,
    )


def make_transformer(
    args: NetworkArguments, shape: tuple[int, int, int], num_classes: int
) -> DiTTransformer2DModel:
    """Return a DiT; its label embedding has one row more than `num_classes`, for "no class"."""
    channels, height, width = shape
    assert args.patch_size is not None
    if height != width or height % args.patch_size:
        raise ValueError(
            f"a transformer takes square images whose side is a multiple of --patch_size "
            f"{args.patch_size}, got {height} x {width}: choose another --resolution, or "
            "--patch_size 1"
        )
    transformer = DiTTransformer2DModel(
        num_attention_heads=args.num_attention_heads,
        attention_head_dim=args.attention_head_dim,
        in_channels=channels,
        out_channels=channels,
        num_layers=args.num_layers,
        dropout=args.dropout,
        sample_size=height,
        patch_size=args.patch_size,
        num_embeds_ada_norm=num_classes,
    )
    return keep_labels(transformer)


def keep_labels(network: nn.Module) -> nn.Module:
    """Turn off the label dropout of a DiT's blocks, which each draws anew; scripts have their own.

    It is no part of what is saved, so a loaded network has it again.
    """
    for layer in network.modules():
        if isinstance(layer, LabelEmbedding):
            layer.dropout_prob = 0.0
    return network


#: Networks by the name of the pipeline's component.
BACKBONES = {"unet": make_unet, "transformer": make_transformer}
