"""Train a text-to-image flow: "a handwritten seven".

    accelerate launch examples/train_text_to_image.py --output_dir outputs/mnist-text

It is `train_mnist.py` with one feature more: the U-Net attends to the states of a text encoder.
Captions come from `--caption_column`, or from the class names of the data set by `--template`. The
text encoder is any of the Hub's that transformers knows (`--text_encoder openai/clip-vit-base-
patch32`; it stays as it is), or by default a small CLIP text model with a vocabulary of the
captions' own words, which is trained along and needs no network:

    pipe = FlowMatchingPipeline.from_pretrained("outputs/mnist-text")
    pipe("a handwritten seven", guidance_scale=2.0).images

Captions that are longer than the text encoder takes are cut, as prompts are, with a warning.
"""

import warnings
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from train_mnist import train
from transformers import PreTrainedTokenizerBase

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.flow_map_networks import with_two_times
from fm_diffusers.pipelines.conditions import tokenize
from fm_diffusers.training.arguments import ImageArguments, check_output, parse, start
from fm_diffusers.training.captions import warn_of_long
from fm_diffusers.training.command_line import plain_errors
from fm_diffusers.training.data import ImageData
from fm_diffusers.training.flow import FlowArguments, coupled_noise, flow_loss, scaled
from fm_diffusers.training.flow_maps import warn_of_rounding
from fm_diffusers.training.networks import UNET_WIDTHS
from fm_diffusers.training.pictures import sample_grid
from fm_diffusers.training.publishing import publish
from fm_diffusers.training.pushing import create_repository
from fm_diffusers.training.splits import hold_out, load_data
from fm_diffusers.training.text_networks import Prompted, make_text_encoder, make_text_unet
from fm_diffusers.training.tuning import adopt, check_data

DIGITS = "zero one two three four five six seven eight nine".split()


@dataclass
class TextArguments(ImageArguments, FlowArguments):
    """Command line."""

    output_dir: str = "outputs/mnist-text"
    caption_column: str = field(
        default="", metadata={"help": "Captions; by default --template of the class names."}
    )
    label_column: str = "label"
    template: str = field(
        default="a handwritten {}", metadata={"help": "Caption of a class; digits become words."}
    )
    text_encoder: str = field(
        default="", metadata={"help": "Hub id or folder; by default a small one is trained along."}
    )
    train_text_encoder: bool = field(
        default=False,
        metadata={"help": "Train that of --text_encoder or --init_from too; a new one always is."},
    )
    prompt_dropout: float = field(
        default=0.1, metadata={"help": "Share of samples trained without prompt, for guidance."}
    )
    block_out_channels: list[int] | None = field(default=None, metadata=UNET_WIDTHS)
    layers_per_block: int | None = field(default=None, metadata={"help": "By default 1."})

    def __post_init__(self) -> None:
        FlowArguments.__post_init__(self)
        ImageArguments.__post_init__(self)
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"--prompt_dropout must lie in [0, 1], got {self.prompt_dropout}")
        if self.init_from is not None and self.text_encoder:
            raise ValueError(
                f"--text_encoder {self.text_encoder} contradicts --init_from {self.init_from}, "
                "whose network attends to its own: drop it"
            )
        if not self.caption_column and (
            self.template.count("{}") != 1 or set("{}") & {*self.template.replace("{}", "")}
        ):
            raise ValueError(
                f"--template must hold {{}} once, for the class, and no other brace, got "
                f"{self.template!r}"
            )
        if not (self.caption_column or self.label_column):
            raise ValueError(
                "--label_column is empty and no --caption_column is named: prompts come from one "
                "of them"
            )


def class_captions(args: TextArguments, data: ImageData) -> list[str]:
    """Return the caption of every class."""
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    words = [DIGITS[int(name)] if name in map(str, range(10)) else name for name in names]
    return [args.template.format(word) for word in words]


def known_captions(args: TextArguments, data: ImageData) -> list[str]:
    """Return the captions of all classes or images, or of the first batch of a stream."""
    if not args.caption_column:
        return class_captions(args, data)
    if data.captions is not None:
        return data.captions
    if not (args.text_encoder or args.init_from):
        raise ValueError(
            "a stream does not tell the words of its captions in advance: name a --text_encoder, "
            "or drop --streaming"
        )
    for batch in data.loader(args.train_batch_size):
        return batch["caption"]
    raise ValueError(f"the stream has no batch of --train_batch_size {args.train_batch_size}")


def check_words(
    args: TextArguments, tokenizer: PreTrainedTokenizerBase, captions: list[str]
) -> None:
    """Warn of captions with words that the tokenizer of `--init_from` does not know."""
    unknown, others = tokenizer.unk_token_id, (tokenizer.pad_token_id, tokenizer.eos_token_id)
    if unknown is None or unknown in others:  # there it stands for something else as well
        return
    strange = [text for text in dict.fromkeys(captions) if unknown in tokenizer(text).input_ids]
    if strange:
        warnings.warn(
            f"{len(strange)} captions have words that {args.init_from} does not know and takes "
            f"for one, such as {strange[0]!r}",
            stacklevel=2,
        )


def main(args: TextArguments) -> None:
    accelerator = start(args)
    warn_of_rounding(args.objective, accelerator.mixed_precision)
    repo_id = create_repository(args, accelerator)
    base, args = adopt(args, "train_text_to_image.py") if args.init_from else (None, args)
    column = args.caption_column or None
    columns = {"label_column": None if column else args.label_column, "caption_column": column}
    with accelerator.main_process_first():
        data = load_data(args, **columns)
        held_out = hold_out(args, data, **columns)
    captions = known_captions(args, data)
    check_output(args)
    if base is None:
        told = captions, args.text_encoder, args.train_text_encoder
        tokenizer, text_encoder = make_text_encoder(*told)
        scheduler, states = args.scheduler(), text_encoder.config.hidden_size
        sizes = args.block_out_channels, args.layers_per_block or 1
        unet = make_text_unet(*sizes, data.shape, states)
    else:
        check_data(args, args.init_from, base, data)
        check_words(args, base.tokenizer, captions)
        tokenizer, unet, scheduler = base.tokenizer, base.unet, base.scheduler
        text_encoder = base.text_encoder.requires_grad_(args.train_text_encoder)

    unet = with_two_times(unet) if args.objective == "mean_flow" else unet
    warn_of_long(tokenizer, captions, args.streaming)

    def tokens_of(texts: list[str]) -> Tensor:
        return tokenize(tokenizer, texts).ids.to(accelerator.device)

    known = tokens_of(captions if not column else [""])  # the captions of classes, once

    def loss_of(network: nn.Module, batch: dict[str, Any]) -> Tensor:
        z = scaled(args, batch["image"])
        tokens = tokens_of(batch["caption"]) if column else known[batch["label"]]
        labels = torch.unique(tokens, dim=0, return_inverse=True)[1]  # equal captions, one class
        eps = coupled_noise(args, z, labels)
        dropped = torch.rand(len(z), device=z.device) < args.prompt_dropout
        tokens = torch.where(dropped[:, None], tokens_of([""]), tokens)
        return flow_loss(args, scheduler, network, z, eps, tokens)

    def pipeline(network: Prompted) -> FlowMatchingPipeline:
        return FlowMatchingPipeline(
            unet=network.unet,
            scheduler=scheduler,
            text_encoder=network.text_encoder,
            tokenizer=tokenizer,
        )

    def draw(network: Prompted) -> Image.Image:
        shown = list(islice(cycle(captions), 10))
        return sample_grid(pipeline(network), {"prompt": shown})

    outcome = train(
        args,
        accelerator,
        Prompted(unet, text_encoder),
        data.loader(args.train_batch_size, args.dataloader_num_workers),
        loss_of,
        draw,
        held_out,
    )
    if outcome is not None and accelerator.is_main_process:
        network, figures = outcome
        figures = {"objective": args.objective, "coupling": args.coupling} | figures
        asked = {"prompt": [text for text in captions if text][:100] or [""]}
        pipe, picture = pipeline(network), draw(network)
        publish(args, pipe, picture, figures, args.dataset_name, repo_id, asked)
    accelerator.end_training()


if __name__ == "__main__":
    with plain_errors():
        main(parse(TextArguments))
