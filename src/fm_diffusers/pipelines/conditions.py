r"""What a network is told beside the time: a class label, the states of a text, or nothing.

Networks are called `network(x_t, timestep, condition)`. The condition holds, for every sample,
its label, shape `(batch,)`, for a `UNet2DModel` or a `DiTTransformer2DModel`; the states of its
prompt, shape `(batch, tokens, width)`, for a `UNet2DConditionModel`; it is None for an
unconditional network. One condition stands for "nothing in particular": the last label, or the
empty prompt. Training shows it now and then, and classifier-free guidance leads away from it,

.. math:: u_t(x|\varnothing) + w\, (u_t(x|c) - u_t(x|\varnothing)).

Reference: Ho, Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598.
"""

import warnings
from dataclasses import dataclass, fields, replace
from threading import Lock
from typing import Any, NamedTuple

import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from fm_diffusers.pipelines import arguments
from fm_diffusers.pipelines.guidance import leads_away
from fm_diffusers.pipelines.outputs import taken

NO_LENGTH = 10**9  # transformers writes 1e30 where a tokenizer has no greatest length
_TOKENIZING = Lock()  # tokenizers write their padding down in themselves


class Tokens(NamedTuple):
    """Tokens of texts, shape `(texts, length)`, and what was cut off each, "" if nothing."""

    ids: Tensor
    lost: list[str]


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    texts: list[str],
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Return the states of texts, shape `(len(texts), tokenizer.model_max_length, width)`.

    Texts are padded to `tokenizer.model_max_length` and no token is masked, neither in the encoder
    nor in the network, as in Stable Diffusion 3 and Flux. So the states of a text are the same in
    every batch, and the padding is what the network saw in training. Longer texts are cut, with a
    warning of what is lost.

    Args:
        tokenizer: of the encoder; its `model_max_length` is the number of states.
        text_encoder: any of transformers with a `last_hidden_state`: CLIP's, T5's, BERT.
        texts: the texts.
        device: of the tokens; by default the encoder's.

    Raises:
        ValueError: for a tokenizer without a length, or an encoder that returns something else.

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
    tokens = tokenize(tokenizer, texts)
    for text, lost in zip(texts, tokens.lost, strict=True):
        if lost:
            warnings.warn(
                f"a prompt may have tokenizer.model_max_length={tokenizer.model_max_length} "
                f"tokens, {text!r} has more: {lost!r} is cut off",
                stacklevel=2,
            )
    return states_of(text_encoder, tokens.ids.to(device or text_encoder.device), texts)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tokens:
    """Return the tokens of texts, all of `tokenizer.model_max_length`, and what was cut off.

    Raises:
        ValueError: for a tokenizer without a length.
    """
    length = tokenizer.model_max_length
    if length > NO_LENGTH:
        raise ValueError(
            "the tokenizer must say how many states a text has, but has no model_max_length: set "
            "tokenizer.model_max_length, 77 for example, before training"
        )
    with _TOKENIZING:
        options = {"padding": "max_length", "max_length": length}
        whole = tokenizer(texts, **options).input_ids
        lost = [
            cut_off(tokenizer, text) if len(row) > length else ""
            for text, row in zip(texts, whole, strict=True)
        ]
        ids = tokenizer(texts, truncation=True, **options).input_ids if any(lost) else whole
    return Tokens(torch.tensor(ids), lost)


def cut_off(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the end of a text that is too long, or its beginning if that is what is cut."""
    kept = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    part = slice(kept, None) if tokenizer.truncation_side == "right" else slice(None, -kept)
    if not tokenizer.is_fast:
        return tokenizer.decode(found.input_ids[part])
    places = found.offset_mapping[part]
    return text[places[0][0] : places[-1][1]]


def states_of(text_encoder: PreTrainedModel, ids: Tensor, texts: list[str]) -> Tensor:
    """Return the states of the tokens of texts, shape `(*ids.shape, width)`.

    Raises:
        ValueError: for an encoder that returns something else.
    """
    output = text_encoder(input_ids=ids)
    states = output.get("last_hidden_state") if isinstance(output, ModelOutput) else output
    shape = (*ids.shape, text_encoder.config.hidden_size)
    states = taken(states, "text_encoder", (shape,), "a state for every token of every text")
    if not states.isfinite().all():
        raise ValueError(
            "the text_encoder's states must be finite, got NaN or infinite numbers for "
            f"{texts[:1]}: check its weights; half precision may overflow where torch.float32 "
            "and torch.bfloat16 do not"
        )
    return states


REPEATS = ("num_images_per_label", "num_images_per_prompt")
#: Arguments that may be None, and what takes the others.
OPTIONAL = {
    "class_labels": arguments.labels,
    "batch_size": arguments.count,
    "prompt": arguments.texts,
    "negative_prompt": arguments.texts,
    "prompt_embeds": arguments.states,
    "negative_prompt_embeds": arguments.states,
}


@dataclass(frozen=True)
class Asked:
    """The images that a call asks for, by arguments of the pipeline with the same names.

    Raises:
        ValueError: for values of the wrong kind: labels that are no flat list, prompts that are no
            texts, states that are no finite tensor, counts below 1, a guidance that is no number.

    Example:
        >>> asked = Asked(prompt=["a cat", "a dog"], num_images_per_prompt=3)
        >>> asked.count
        6
        >>> asked.cycled(7).prompt
        ['a cat', 'a cat', 'a cat', 'a dog', 'a dog', 'a dog', 'a cat']
    """

    class_labels: int | str | list[int | str] | Tensor | None = None
    num_images_per_label: int = 1
    batch_size: int | None = None
    prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    negative_prompt: str | list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    guidance_scale: float | None = None
    guider: BaseGuidance | None = None

    def __post_init__(self) -> None:
        kept: dict[str, Any] = {n: arguments.count(n, getattr(self, n)) for n in REPEATS}
        for name, take in OPTIONAL.items():
            if (value := getattr(self, name)) is not None:
                kept[name] = take(name, value)
        if self.guidance_scale is not None:
            scale = arguments.number("guidance_scale", self.guidance_scale, "1 is no guidance")
            kept["guidance_scale"] = scale
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        if self.guider is not None and self.guidance_scale is not None:
            name = type(self.guider).__name__
            raise ValueError(
                f"guidance_scale={self.guidance_scale} was given beside the guider {name}, which "
                "has a scale of its own: pass guider=guider.new(guidance_scale="
                f"{self.guidance_scale}), or leave out one of the two"
            )

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
    def scale(self) -> float:
        """The scale of classifier-free guidance, by default 1, which is none."""
        return 1.0 if self.guidance_scale is None else self.guidance_scale

    @property
    def guided(self) -> bool:
        """Whether the network is told the condition of nothing, too."""
        return self.scale != 1 if self.guider is None else leads_away(self.guider)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, with their values."""
        return {name: getattr(self, name) for name in self.used}

    def for_images(self, number: int) -> "Asked":
        """Return what is asked for with so many images that are changed: one sample for each."""
        nothing = self.items is None and self.batch_size is None
        return replace(self, batch_size=number) if nothing else self

    def repeated(self, repeats: int) -> "Asked":
        """Return what is asked for when each image is drawn `repeats` times."""
        if self.items is None:
            return replace(self, batch_size=self.count * repeats)
        name = "num_images_per_prompt" if self.class_labels is None else "num_images_per_label"
        return replace(self, **{name: getattr(self, name) * repeats})

    def cycled(self, count: int) -> "Asked":
        """Return what the first `count` images are asked for, beginning anew at the end."""
        if self.items is None:
            return replace(self, batch_size=count)
        sources = self._conditions() | {
            "negative_prompt": self.negative_prompt,
            "negative_prompt_embeds": self.negative_prompt_embeds,
        }
        taken: dict[str, Any] = {
            name: [value[i // self.repeats % len(value)] for i in range(count)]
            for name, value in sources.items()
            if value is not None
        }
        stacked = {
            name: torch.stack(value) for name, value in taken.items() if name.endswith("embeds")
        }
        each: dict[str, Any] = {"num_images_per_label": 1, "num_images_per_prompt": 1}
        return replace(self, **taken | stacked | each)

    def _conditions(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("class_labels", "prompt", "prompt_embeds")}
