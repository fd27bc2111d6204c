r"""What a network is told beside the time: a class label, the states of a text, or nothing.

Networks are called `network(x_t, timestep, condition)`. The condition holds, for every sample,
its label, shape `(batch,)`, for a `UNet2DModel` or a `DiTTransformer2DModel`; the states of its
prompt, shape `(batch, tokens, width)`, for a `UNet2DConditionModel`; it is None for an
unconditional network. One condition stands for "nothing in particular": the last label, or the
empty prompt. Training shows it now and then, and classifier-free guidance leads away from it,

.. math:: u_t(x|\varnothing) + w\, (u_t(x|c) - u_t(x|\varnothing)).

Reference: Ho, Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598.
"""

import inspect
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
NO_LENGTH = 10**9  # transformers writes 1e30 where a tokenizer has no greatest length


def label_rows(network: nn.Module) -> int:
    """Return the number of labels that a network knows, "no class" included; 0 for none.

    Example:
        >>> from diffusers import DiTTransformer2DModel
        >>> sizes = {"num_attention_heads": 1, "attention_head_dim": 4, "num_layers": 1}
        >>> label_rows(DiTTransformer2DModel(**sizes, num_embeds_ada_norm=10))
        11
    """
    counts = [(network.config.get(key), more) for key, more in LABEL_COUNTS.items()]
    return next((count + more for count, more in counts if count is not None), 0)


def text_width(network: nn.Module) -> int | None:
    """Return the width of the states that a network attends to; None if it takes no text."""
    width = network.config.get("encoder_hid_dim") or network.config.get("cross_attention_dim")
    return width[0] if isinstance(width, list | tuple) else width


def check_network(network: nn.Module) -> None:
    """Raise a `ValueError` for a network that is called otherwise than ours."""
    arguments = [*inspect.signature(unwrap_module(network).forward).parameters]
    if arguments[1:2] != ["timestep"]:
        raise ValueError(
            "the network must be called as (sample, timestep, class_labels or "
            f"encoder_hidden_states), but {type(network).__name__} is as {tuple(arguments[:3])}: "
            "wrap it in a module that reorders them"
        )
    channels = network.config.in_channels
    if network.config.get("out_channels") not in (None, channels, 2 * channels):
        raise ValueError(
            f"the network must return its in_channels={channels} channels, or twice as many of "
            f"which the second half is a variance, got out_channels={network.config.out_channels}"
        )


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    texts: list[str],
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Return the states of texts, shape `(len(texts), tokenizer.model_max_length, width)`.

    Texts are padded to `tokenizer.model_max_length` and no token is masked, neither in the encoder
    nor in the network, as in Stable Diffusion 3 and Flux. So the states of a text are the same in
    every batch, and the padding is what the network saw in training.

    Args:
        tokenizer: of the encoder; its `model_max_length` is the number of states.
        text_encoder: any of transformers with a `last_hidden_state`: CLIP's, T5's, BERT.
        texts: the texts.
        device: of the tokens; by default the encoder's.

    Raises:
        ValueError: for texts that are too long, or a tokenizer without a length.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "seven": 2}, "<pad>"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(
        ...     tokenizer_object=words, pad_token="<pad>", model_max_length=4
        ... )
        >>> size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> encoder = BertModel(BertConfig(vocab_size=3, **size))
        >>> encode_text(tokenizer, encoder, ["seven", "a seven"]).shape
        torch.Size([2, 4, 8])
    """
    length = tokenizer.model_max_length
    if length > NO_LENGTH:
        raise ValueError(
            "the tokenizer must say how many states a text has, but has no model_max_length: set "
            "tokenizer.model_max_length, 77 for example, before training"
        )
    tokens = tokenizer(texts, padding="max_length", max_length=length).input_ids
    for text, row in zip(texts, tokens, strict=True):
        if len(row) > length:
            raise ValueError(
                f"a prompt must have at most tokenizer.model_max_length={length} tokens, got "
                f"{len(row)}: shorten {text!r}"
            )
    ids = torch.tensor(tokens, device=device or text_encoder.device)
    return text_encoder(input_ids=ids).last_hidden_state


@dataclass
class Asked:
    """The images that a call asks for, by arguments of the pipeline with the same names.

    Raises:
        ValueError: for prompts that are no texts.

    Example:
        >>> asked = Asked(prompt=["a cat", "a dog"], num_images_per_prompt=3)
        >>> asked.count
        6
        >>> asked.cycled(7).prompt
        ['a cat', 'a cat', 'a cat', 'a dog', 'a dog', 'a dog', 'a cat']
    """

    class_labels: int | list[int] | Tensor | None = None
    num_images_per_label: int = 1
    batch_size: int | None = None
    prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    negative_prompt: str | list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        labels = self.class_labels
        if labels is not None:
            labels = labels.tolist() if isinstance(labels, Tensor) else labels
            self.class_labels = np.asarray(labels).reshape(-1).tolist()
        for name in ("prompt", "negative_prompt"):
            texts = getattr(self, name)
            texts = [texts] if isinstance(texts, str) else texts
            of_texts = isinstance(texts, list | tuple) and all(isinstance(x, str) for x in texts)
            if texts is not None and not of_texts:
                raise ValueError(f"{name} must be a text or a list of texts, got {texts!r}")
            setattr(self, name, texts)

    @property
    def used(self) -> list[str]:
        """The arguments that differ from their defaults."""
        values = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        return [n for n, value, default in values if isinstance(value, Tensor) or value != default]

    @property
    def items(self) -> list[int] | list[str] | Tensor | None:
        """The conditions, one for each image or group of images; None if there are none."""
        return next((v for v in self._conditions().values() if v is not None), None)

    @property
    def repeats(self) -> int:
        """Number of images of each condition."""
        return self.num_images_per_label * self.num_images_per_prompt

    @property
    def count(self) -> int:
        """Number of images."""
        return (self.batch_size or 1) if self.items is None else len(self.items) * self.repeats

    @property
    def guided(self) -> bool:
        """Whether the network is asked twice."""
        return self.guidance_scale != 1

    def cycled(self, count: int) -> "Asked":
        """Return what the first `count` images are asked for, beginning anew at the end."""
        if self.items is None:
            return replace(self, batch_size=count)
        sources = self._conditions() | {
            "negative_prompt": self.negative_prompt,
            "negative_prompt_embeds": self.negative_prompt_embeds,
        }
        taken = {
            name: [value[i // self.repeats % len(value)] for i in range(count)]
            for name, value in sources.items()
            if value is not None
        }
        stacked = {
            name: torch.stack(value) for name, value in taken.items() if name.endswith("embeds")
        }
        each = {"num_images_per_label": 1, "num_images_per_prompt": 1}
        return replace(self, **taken | stacked | each)

    def _conditions(self) -> dict[str, list | Tensor | None]:
        return {k: getattr(self, k) for k in ("class_labels", "prompt", "prompt_embeds")}
