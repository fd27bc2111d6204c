"""Labels and prompts of a call, checked and turned into the condition of a pipeline's network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.pipelines import arguments
from fm_diffusers.pipelines.conditions import Asked, encode_text
from fm_diffusers.pipelines.guidance import check_guider
from fm_diffusers.pipelines.labels import numbers_of
from fm_diffusers.pipelines.networks import TAKES, count_classes, takes_labels, text_width
from fm_diffusers.pipelines.outputs import shown
from fm_diffusers.pipelines.precision import compute_dtype
from fm_diffusers.pipelines.two_times import check_learned


@dataclass(frozen=True)
class Conditioning:
    """What turns labels and prompts into a network's condition.

    Args:
        network: the network.
        null_label: the label that stands for "no class"; None if there is none.
        text_encoder: turns prompts into states; None without one.
        tokenizer: of the text encoder.
        id2label: names of the classes by number; None if they have none.
    """

    network: nn.Module
    null_label: int | None
    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    id2label: dict[int, str] | None = None

    @property
    def takes_labels(self) -> bool:
        """Whether the network is called with labels, be it only that for "no class"."""
        return takes_labels(self.network)

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for; 0 for networks without."""
        return count_classes(self.network, self.null_label)

    @property
    def takes(self) -> str:
        """What the network can be told, a name in `TAKES`."""
        if text_width(self.network) is not None:
            return "text"
        return "labels" if self.num_classes else "nothing"

    def named(self, condition: Any, **arguments: Any) -> dict[str, Any]:
        """Return the arguments of a call, with the condition that was given first by its name.

        Args:
            condition: labels for a network that takes labels, prompts for one that takes text.
            **arguments: those that were given by name.

        Raises:
            ValueError: for a condition that the network has no use for, or that was given twice.
        """
        if condition is None:
            return arguments
        takes = TAKES[self.takes]
        if not takes.arguments:
            raise ValueError(
                f"the condition {shown(condition)} was given, but the network {takes.words}: "
                f"{takes.way_out}"
            )
        name = takes.arguments[0]
        if arguments.get(name) is not None:
            raise ValueError(
                f"{name} was given twice, first in the call {shown(condition)}, and by name "
                f"{shown(arguments[name])}: give one of them"
            )
        return arguments | {name: condition}

    def numbers(self, labels: Any) -> list[int]:
        """Return the numbers of classes that are asked for by number or by name."""
        return numbers_of(labels, self.id2label, self.num_classes)

    def guides(self, asked: Asked) -> bool:
        """Whether the network, unless it has learned guidance, is told no condition too."""
        return asked.guided and distilled_guidance(self.network) is None

    def check(self, asked: Asked) -> None:
        """Raise a `ValueError` for what the network cannot be told, saying what to pass."""
        takes, items, batch_size = TAKES[self.takes], asked.items, asked.batch_size
        for name in asked.used:
            if name not in (*takes.arguments, "batch_size", "guidance_scale", "guider"):
                raise ValueError(
                    f"{name} was given, but the network {takes.words}: {takes.way_out}"
                )
        if items is None and asked.repeats != 1:
            raise ValueError(f"{asked.repeats} images of nothing: {takes.way_out}, or batch_size")
        if items is not None and (batch_size is not None or len(items) == 0):
            raise ValueError(
                f"give {takes.arguments[0]}, at least one, or batch_size, got {items} and "
                f"{batch_size}; {takes.arguments[1]} draws more images of each"
            )
        text = self.takes == "text"
        (self._check_text if text else self._check_labels)(asked)
        null = asked.negative_prompt_embeds if text else self.null_label
        check_learned(self.network, asked)
        if self.guides(asked) and (items is None or null is None and self.text_encoder is None):
            guider = f"guidance_scale={asked.scale}"
            if asked.guider is not None:
                guider = f"{type(asked.guider).__name__} of {asked.guider.guidance_scale}"
            raise ValueError(f"{guider} needs {takes.guidance}; 1 is no guidance")
        if asked.guider is not None:
            check_guider(asked.guider, self.network)

    def _check_labels(self, asked: Asked) -> None:
        labels, last = asked.class_labels, self.num_classes - 1
        if labels is None and self.num_classes and self.null_label is None:
            raise ValueError(
                "the network is class-conditional and has no null label: pass class_labels, "
                f"each in 0..{last}"
            )
        if labels is not None:
            self.numbers(labels)

    def _check_text(self, asked: Asked) -> None:
        width, prompts = text_width(self.network), asked.prompt
        for name in ("prompt", "negative_prompt"):
            texts = getattr(asked, name)
            if texts is not None and getattr(asked, f"{name}_embeds") is not None:
                raise ValueError(f"give {name} or {name}_embeds, not both")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            states = getattr(asked, name)
            if states is not None and (states.ndim != 3 or states.shape[2] != width):
                raise ValueError(
                    f"{name} must have the shape (prompts, tokens, {width}), got "
                    f"{tuple(states.shape)}: they are what encode_prompt returns"
                )
        texts = [asked.negative_prompt] + [prompts] * (asked.prompt_embeds is None)
        if self.text_encoder is None and (asked.items is None or any(texts)):
            raise ValueError("the pipeline has no text_encoder: pass prompt_embeds")
        negative = [name for name in asked.used if name.startswith("negative")]
        if negative and not self.guides(asked):
            raise ValueError(f"{negative[0]} does nothing at guidance_scale=1: drop it, or guide")
        number = 0 if asked.items is None else len(asked.items)
        if asked.negative_prompt is not None and len(asked.negative_prompt) not in (1, number):
            raise ValueError(
                f"negative_prompt must be one text or one for each of the {number} prompts, got "
                f"{len(asked.negative_prompt)}"
            )

    def encode(self, asked: Asked, device: torch.device) -> Tensor | None:
        """Return the condition of every image, preceded by as many null ones if it is guided."""
        if self.takes != "text":
            counts = (asked.num_images_per_label, asked.count)
            return self.encode_labels(asked.class_labels, *counts, self.guides(asked), device)
        embeds, negative = self.encode_prompt(
            device,
            [""] * asked.count if asked.items is None else asked.prompt,
            asked.num_images_per_prompt,
            self.guides(asked),
            asked.negative_prompt,
            asked.prompt_embeds,
            asked.negative_prompt_embeds,
        )
        return embeds if negative is None else torch.cat([negative, embeds])

    def encode_labels(
        self,
        labels: int | str | list[int | str] | Tensor | None,
        num_images_per_label: int,
        batch_size: int,
        guide: bool,
        device: torch.device,
    ) -> Tensor | None:
        """Return the labels of the batch, preceded by as many null labels where it is guided."""
        if not self.takes_labels:
            return None
        null = torch.full((batch_size,), self.null_label or 0, device=device)
        if labels is None:
            return null
        numbers = torch.tensor(self.numbers(labels), device=null.device)
        numbers = numbers.repeat_interleave(num_images_per_label)
        return torch.cat([null, numbers]) if guide else numbers

    def encode_prompt(
        self,
        device: torch.device,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = False,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the states of prompts for each image, and those that guidance starts from.

        Args:
            device: of the states.
            prompt: texts.
            num_images_per_prompt: how often each is repeated.
            do_classifier_free_guidance: whether the second states are wanted; else they are None.
            negative_prompt: their texts, one for all or one for each; by default empty.
            prompt_embeds: states in place of `prompt`, shape `(prompts, tokens, width)`.
            negative_prompt_embeds: states in place of `negative_prompt`, of the same shape.

        Raises:
            ValueError: for nothing to encode, states that are not wanted, or two kinds of states
                that have different shapes.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give prompt or prompt_embeds, one of them")
        unwanted = not (negative_prompt is None and negative_prompt_embeds is None)
        if unwanted and not do_classifier_free_guidance:
            raise ValueError(
                "negative prompts do nothing without guidance: drop them, or pass "
                "do_classifier_free_guidance=True"
            )

        def states(texts: str | list[str] | None) -> Tensor:
            if self.text_encoder is None:
                raise ValueError("the pipeline has no text_encoder: pass prompt_embeds")
            texts = arguments.texts("prompt", texts)
            return encode_text(self.tokenizer, self.text_encoder, texts, device)

        embeds = states(prompt) if prompt_embeds is None else prompt_embeds
        both = [embeds]
        if do_classifier_free_guidance:
            negative = negative_prompt_embeds
            if negative is None:
                negative = states(negative_prompt or "")
                negative = negative.expand(len(embeds), -1, -1) if len(negative) == 1 else negative
            both.append(negative)
            if negative.shape != embeds.shape:
                raise ValueError(
                    "negative_prompt_embeds must have the shape of the prompts' "
                    f"{tuple(embeds.shape)}, got {tuple(negative.shape)}"
                )
        both = [
            x.to(device, compute_dtype(self.network)).repeat_interleave(num_images_per_prompt, 0)
            for x in both
        ]
        return both[0], both[1] if do_classifier_free_guidance else None
