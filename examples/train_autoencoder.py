"""Train a small `AutoencoderKL` on images, for `examples/train_latent.py`.

    accelerate launch examples/train_autoencoder.py --output_dir outputs/autoencoder

It is `train_mnist.py` with another network and another loss,

    E |x - D(z)|^2 + w KL(q(z|x) || N(0, I)),      z ~ q(z|x),

and what is saved is a plain `AutoencoderKL` whose `scaling_factor` gives the codes of the data the
standard deviation 1.

Reference: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
https://arxiv.org/abs/2112.10752.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor, nn
from train_mnist import load_data, train

from fm_diffusers.training.arguments import ImageArguments, TrainingArguments, parse, start
from fm_diffusers.training.flow import scaled


@dataclass
class AutoencoderArguments(ImageArguments, TrainingArguments):
    """Command line."""

    output_dir: str = "outputs/autoencoder"
    latent_channels: int = 4
    block_out_channels: list[int] = field(
        default_factory=lambda: [32, 64, 64],
        metadata={"help": "Widths of the levels; every level but the first halves the side."},
    )
    kl_weight: float = field(default=1e-4, metadata={"help": "w, a pixel's share of the KL."})

    def __post_init__(self) -> None:
        TrainingArguments.__post_init__(self)
        ImageArguments.__post_init__(self)


def make_autoencoder(args: AutoencoderArguments, shape: tuple[int, int, int]) -> AutoencoderKL:
    """Return an autoencoder of images of `shape`."""
    levels = len(args.block_out_channels)
    if any(side % 2 ** (levels - 1) for side in shape[1:]):
        raise ValueError(
            f"images of {shape[1]} x {shape[2]} cannot be halved {levels - 1} times: choose "
            "another --resolution or fewer --block_out_channels"
        )
    return AutoencoderKL(
        in_channels=shape[0],
        out_channels=shape[0],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(args.block_out_channels),
        latent_channels=args.latent_channels,
        norm_num_groups=8,
        sample_size=shape[1],
        mid_block_add_attention=False,
    )


class Autoencoding(nn.Module):
    """An autoencoder that returns the reconstruction and the KL divergence of each image.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `D(z)` of a `z` drawn from `q(z|x)`, and `KL(q(z|x) || N(0, I))`."""
        posterior = self.vae.encode(x).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior.kl()


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """Set the factor that gives the codes of the images the standard deviation 1."""
    codes = vae.encode(images).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / codes.std().item(), 5))
    return vae


def main(args: AutoencoderArguments) -> None:
    accelerator = start(args)
    with accelerator.main_process_first():
        data = load_data(args, label_column=None)
    shown = next(iter(data.loader(min(args.train_batch_size, 64))))["image"]
    shown = shown.to(accelerator.device).float() / 127.5 - 1

    def loss_of(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        x = scaled(args, batch["image"])
        reconstruction, kl = network(x)
        return (reconstruction - x).square().mean() + args.kl_weight * kl.mean() / x[0].numel()

    @torch.no_grad()
    def draw(network: nn.Module) -> Image.Image:
        codes = network.vae.encode(shown[:20]).latent_dist.mean
        both = torch.cat([shown[:20], network.vae.decode(codes).sample])
        pixels = (127.5 * both + 127.5).round().clamp(0, 255).byte().cpu()
        images = [Image.fromarray(x.permute(1, 2, 0).squeeze(-1).numpy()) for x in pixels]
        return make_image_grid(images, rows=2, cols=len(images) // 2)

    network, figures = train(
        args,
        accelerator,
        Autoencoding(make_autoencoder(args, data.shape)),
        data.loader(args.train_batch_size, args.dataloader_num_workers),
        loss_of,
        draw,
    )
    if accelerator.is_main_process:
        folder = Path(args.output_dir)
        standardise(network.vae, shown).save_pretrained(folder)
        draw(network).save(folder / "reconstructions.png")
        (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(f"saved {folder}: {figures}")
    accelerator.end_training()


if __name__ == "__main__":
    main(parse(AutoencoderArguments))
