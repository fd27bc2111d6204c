"""Train a small `AutoencoderKL` on images, for `examples/train_latent.py`.

    accelerate launch examples/train_autoencoder.py --output_dir outputs/autoencoder

It is `train_mnist.py` with another network and another loss,

    E |x - D(z)|^2 + w KL(q(z|x) || N(0, I)),      z ~ q(z|x),

and what is saved is a plain `AutoencoderKL` whose `scaling_factor` gives the codes of the data the
standard deviation 1.

Reference: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
https://arxiv.org/abs/2112.10752.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from train_mnist import train

from fm_diffusers.pipelines.hub import forget_origins
from fm_diffusers.training.arguments import (
    ImageArguments,
    TrainingArguments,
    check_output,
    parse,
    start,
)
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.finished import saved_whole
from fm_diffusers.training.flow import scaled
from fm_diffusers.training.publishing import write_record
from fm_diffusers.training.pushing import create_repository, push
from fm_diffusers.training.sheets import contact_sheet
from fm_diffusers.training.splits import hold_out, load_data
from fm_diffusers.training.tuning import load_autoencoder, plain


@dataclass
class AutoencoderArguments(ImageArguments, TrainingArguments):
    """Command line."""

    output_dir: str = "outputs/autoencoder"
    init_from: str | None = field(
        default=None,
        metadata={"help": "A saved autoencoder, or a pipeline with one, to train further."},
    )
    latent_channels: int | None = field(default=None, metadata={"help": "By default 4."})
    block_out_channels: list[int] | None = field(
        default=None,
        metadata={
            "help": "Widths of the levels, by default 32 64 64; every level but the first halves "
            "the side."
        },
    )
    kl_weight: float = field(default=1e-4, metadata={"help": "w, a pixel's share of the KL."})

    def __post_init__(self) -> None:
        TrainingArguments.__post_init__(self)
        ImageArguments.__post_init__(self)
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"--kl_weight must be at least 0, got {self.kl_weight}")


def make_autoencoder(args: AutoencoderArguments, shape: tuple[int, int, int]) -> AutoencoderKL:
    """Return an autoencoder of images of `shape`."""
    widths = args.block_out_channels or [32, 64, 64]
    levels = len(widths)
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
        block_out_channels=tuple(widths),
        latent_channels=args.latent_channels or 4,
        norm_num_groups=8,
        sample_size=shape[1],
        mid_block_add_attention=False,
    )


def adopt(args: AutoencoderArguments, shape: tuple[int, int, int]) -> AutoencoderKL:
    """Return the autoencoder of `--init_from`; raise a `ValueError` if it is another."""
    vae = load_autoencoder("init_from", args.init_from)
    said = {"latent_channels": args.latent_channels, "block_out_channels": args.block_out_channels}
    for name, value in said.items():
        if value is not None and value != (own := plain(vae.config[name])):
            raise ValueError(f"--{name} {value} contradicts {args.init_from}, which has {own}")
    if vae.config.in_channels != shape[0]:
        raise ValueError(
            f"{args.init_from} takes {vae.config.in_channels} channels, the images have "
            f"{shape[0]}: choose --image_mode L (1), RGB (3) or RGBA (4)"
        )
    if any(side % 2 ** (len(vae.config.block_out_channels) - 1) for side in shape[1:]):
        raise ValueError(
            f"images of {shape[1]} x {shape[2]} cannot be halved as {args.init_from} does: choose "
            "another --resolution"
        )
    return vae.train()


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
    check_output(args)
    accelerator = start(args)
    repo_id = create_repository(args, accelerator)
    with accelerator.main_process_first():
        data = load_data(args, label_column=None)
        held_out = hold_out(args, data, label_column=None)
    vae = make_autoencoder(args, data.shape) if args.init_from is None else adopt(args, data.shape)
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
        count = len(images) // 2
        parts = {"images": images[:count], "what comes back": images[count:]}
        return contact_sheet(parts, count * [""])

    outcome = train(
        args,
        accelerator,
        Autoencoding(vae),
        data.loader(args.train_batch_size, args.dataloader_num_workers),
        loss_of,
        draw,
        held_out,
    )
    if outcome is not None and accelerator.is_main_process:
        (network, figures), folder = outcome, Path(args.output_dir)
        own = {"kind": "autoencoder", "shape": [*data.shape], **figures}
        with saved_whole(folder, [network]) as partial:
            standardise(network.vae, shown).save_pretrained(partial)
            forget_origins(partial)
            draw(network).save(partial / "reconstructions.png")
            write_record(partial, args, own, args.dataset_name, repo_id)
        print(f"saved {folder}: {figures}")
        if repo_id is not None:
            push(folder, repo_id, f"Train for {figures['steps']} steps", args.hub_token)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(AutoencoderArguments))
