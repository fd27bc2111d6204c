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
from diffusers import AutoencoderKL
from torch import Tensor

from fm_diffusers.training.arguments import parse


@dataclass
class LatentArguments(train_mnist.Arguments):
    """Command line: that of `train_mnist.py`, and the autoencoder."""

    output_dir: str = "outputs/latent"
    vae: str = field(
        default="outputs/autoencoder", metadata={"help": "An AutoencoderKL: folder or Hub id."}
    )
    vae_subfolder: str = field(default="", metadata={"help": "Of the folder, `vae` in pipelines."})


def main(args: LatentArguments) -> None:
    vae = AutoencoderKL.from_pretrained(args.vae, subfolder=args.vae_subfolder or None)
    vae.requires_grad_(False).eval()
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        channels = vae.config.in_channels
        if images.shape[1] != channels:
            raise ValueError(
                f"--vae {args.vae} takes {channels} channels, the images have {images.shape[1]}: "
                "choose --image_mode L (1), RGB (3) or RGBA (4)"
            )
        return (vae.to(images.device).encode(images).latent_dist.sample() - shift) * scale

    train_mnist.main(args, encode, vae=vae)


if __name__ == "__main__":
    main(parse(LatentArguments))
