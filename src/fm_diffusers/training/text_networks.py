"""Networks of prompts: a U-Net that attends to a text encoder, and a small text encoder."""

from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from fm_diffusers.training.networks import choose_widths


def make_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words of the captions."""
    lower, split = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for text in captions for word, _ in split.pre_tokenize_str(text.lower())}
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    longest = max(len(split.pre_tokenize_str(text)) for text in captions)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=max(longest + 2, 16),
    )


def make_text_encoder(
    captions: list[str], name: str = "", trained: bool = False
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return a tokenizer and a text encoder: a saved one, or a small one of these captions.

    Args:
        captions: whose words the small one knows.
        name: a Hub id or a folder; empty for a small one, which is to be trained.
        trained: whether the saved one is trained too.
    """
    if name:
        model = AutoModel.from_pretrained(name)
        model = getattr(model, "text_model", model)  # of CLIP, without its half for images
        return AutoTokenizer.from_pretrained(name), model.requires_grad_(trained)
    tokenizer = make_tokenizer(captions)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, CLIPTextModel(config)


def make_text_unet(
    widths: list[int] | None, layers: int, shape: tuple[int, int, int], states: int
) -> UNet2DConditionModel:
    """Return a U-Net that attends to the states of a text encoder at its lower levels.

    Args:
        widths: channels of every level; None chooses them by the size.
        layers: of a level.
        shape: channels, height and width of what it takes.
        states: width of the text encoder's states.
    """
    chosen = choose_widths(widths, shape[1:])
    levels = len(chosen)
    return UNet2DConditionModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=layers,
        block_out_channels=chosen,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=states,
    )


class Prompted(nn.Module):
    """A U-Net that is given tokens, and the text encoder that turns them into states.

    Args:
        unet: attends to the states.
        text_encoder: returns them first.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: PreTrainedModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def train(self, mode: bool = True) -> "Prompted":
        """Switch dropout on or off; in a frozen text encoder it stays off."""
        super().train(mode)
        learns = any(weight.requires_grad for weight in self.text_encoder.parameters())
        self.text_encoder.train(mode and learns)
        return self

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, return_dict: bool, **told: Tensor
    ) -> tuple[Tensor]:
        """Return what the U-Net predicts, shape of `x`; tokens have the shape (batch, length)."""
        states = self.text_encoder(input_ids=tokens).last_hidden_state
        return self.unet(x, t, states, **told, return_dict=return_dict)
