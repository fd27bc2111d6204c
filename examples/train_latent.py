"""Train a class-conditional flow in the latent space of an autoencoder.

    accelerate launch examples/train_latent.py --vae stabilityai/sd-vae-ft-mse --image_mode RGB \
        --resolution 256 --dataset_name <images> --backbone transformer

It is `train_mnist.py` with one feature more: the data of the flow are codes,
`z = (encode(x) - shift_factor) scaling_factor`, drawn anew from the autoencoder's posterior in
every batch, and the pipeline decodes what it samples. `examples/train_autoencoder.py` trains a
small autoencoder for a data set of its own:

    accelerate launch examples/train_autoencoder.py --output_dir outputs/autoencoder
    accelerate launch examples/train_latent.py --vae outputs/autoencoder
"""

from dataclasses import dataclass, field

import torch
import train_mnist
from torch import Tensor

from fm_diffusers.training.arguments import parse
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.tuning import load_autoencoder


@dataclass
class LatentArguments(train_mnist.Arguments):
    """Command line: that of `train_mnist.py`, and the autoencoder."""

    output_dir: str = "outputs/latent"
    vae: str | None = field(
        default=None,
        metadata={"help": "An AutoencoderKL, folder or Hub id; by default outputs/autoencoder."},
    )
    vae_subfolder: str = field(default="", metadata={"help": "Of the folder, `vae` in pipelines."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None:
            self.vae = self.vae or "outputs/autoencoder"
        elif self.vae is not None:
            raise ValueError(
                f"--vae {self.vae} contradicts --init_from {self.init_from}, whose codes are of "
                "its own: drop it"
            )


def main(args: LatentArguments) -> None:
    flag, name, subfolder = "vae", args.vae, args.vae_subfolder or None
    if args.init_from is not None:
        flag, name, subfolder = "init_from", args.init_from, "vae"
    vae = load_autoencoder(flag, name, subfolder)
    vae.requires_grad_(False).eval()
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        channels = vae.config.in_channels
        if images.shape[1] != channels:
            raise ValueError(
                f"--{flag} {name} takes {channels} channels, the images have {images.shape[1]}: "
                "choose --image_mode L (1), RGB (3) or RGBA (4)"
            )
        return (vae.to(images.device).encode(images).latent_dist.sample() - shift) * scale

    train_mnist.main(args, encode, vae=vae)


if __name__ == "__main__":
    with plain_errors():
        main(parse(LatentArguments))
