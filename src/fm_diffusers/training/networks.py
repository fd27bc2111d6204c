r"""Networks of the size of a data set: a U-Net and a diffusion transformer (DiT).

Both are diffusers' own and are called alike, `network(x_t, timestep, label)`; the label `k` of
`k` classes stands for "no class".

References: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation",
https://arxiv.org/abs/1505.04597; Peebles, Xie, "Scalable Diffusion Models with Transformers",
https://arxiv.org/abs/2212.09748.
"""

from dataclasses import dataclass, field

from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import nn


@dataclass
class NetworkArguments:
    """Sizes of a network, as flags of a training script."""

    backbone: str = field(default="unet", metadata={"help": "unet or transformer (a DiT)."})
    dropout: float = field(default=0.0, metadata={"help": "Of the network's layers."})
    block_out_channels: list[int] = field(
        default_factory=lambda: [32, 64, 64], metadata={"help": "Widths of the U-Net's levels."}
    )
    layers_per_block: int = 1
    patch_size: int = field(default=2, metadata={"help": "Of the transformer."})
    num_layers: int = 6
    num_attention_heads: int = 4
    attention_head_dim: int = 32

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"--backbone must be one of {[*BACKBONES]}, got {self.backbone!r}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"--dropout must lie in [0, 1], got {self.dropout}")
        if not self.block_out_channels or any(width % 8 for width in self.block_out_channels):
            raise ValueError(
                f"--block_out_channels must be multiples of 8, got {self.block_out_channels}"
            )


def make_unet(
    args: NetworkArguments, shape: tuple[int, int, int], num_classes: int
) -> UNet2DModel:
    """Return a U-Net with attention at its lowest level only, which is fast on a CPU as well."""
    channels, *size = shape
    levels = len(args.block_out_channels)
    if any(side % 2 ** (levels - 1) for side in size):
        raise ValueError(
            f"images of side {max(size)} cannot be halved {levels - 1} times: choose another "
            "--resolution or fewer --block_out_channels"
        )
    return UNet2DModel(
        sample_size=size[0] if size[0] == size[1] else tuple(size),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=args.layers_per_block,
        block_out_channels=tuple(args.block_out_channels),
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
    if height != width or height % args.patch_size:
        raise ValueError(
            f"a transformer takes square images whose side is a multiple of --patch_size "
            f"{args.patch_size}, got {height} x {width}: choose another --resolution"
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
