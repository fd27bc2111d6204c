"""Labels and prompts of a call, checked and turned into the condition of a pipeline's network."""

import torch
from torch import Tensor

from fm_diffusers.pipelines.conditions import (
    LABEL_COUNTS,
    TAKES,
    Asked,
    check_network,
    encode_text,
    label_rows,
    text_width,
)


class Conditioning:
    """The part of a pipeline that turns labels and prompts into its network's condition."""

    @property
    def network_takes_labels(self) -> bool:
        """Whether the network is called with labels, be it only that for "no class"."""
        return text_width(self.network) is None and label_rows(self.network) > 0

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for; 0 for networks without."""
        if not self.network_takes_labels or self.config.null_label is not None:
            return self.config.null_label or 0
        return next(self.network.config[k] for k in LABEL_COUNTS if k in self.network.config)

    @property
    def takes(self) -> str:
        """What the network can be told, a name in `TAKES`."""
        if text_width(self.network) is not None:
            return "text"
        return "labels" if self.num_classes else "nothing"

    def check_components(self, null_label: int | None) -> None:
        """Raise a `ValueError` for a component or a null label that does not fit."""
        check_network(self.network)
        rows, width = label_rows(self.network), text_width(self.network)
        if null_label is not None and (width or rows != null_label + 1):
            raise ValueError(
                f"null_label must be the last of the network's classes, got {null_label} for "
                f"{rows} labels; None is for networks without one"
            )
        channels = self.network.config.in_channels
        if self.vae is not None and self.vae.config.latent_channels != channels:
            raise ValueError(
                f"the vae has latent_channels={self.vae.config.latent_channels}, but the network "
                f"has in_channels={channels}: they must be equal"
            )
        if (self.text_encoder is None) != (self.tokenizer is None):
            raise ValueError("pass text_encoder and tokenizer together, or neither")
        states = None if self.text_encoder is None else self.text_encoder.config.hidden_size
        if states not in (None, width):
            raise ValueError(
                f"the text encoder's states have width {states}, but the network takes "
                f"{width or 'no text'}: it must be one with cross_attention_dim={states}"
            )

    def check_conditions(self, asked: Asked) -> None:
        """Raise a `ValueError` for what the network cannot be told, saying what to pass."""
        takes, items, batch_size = TAKES[self.takes], asked.items, asked.batch_size
        for name in asked.used:
            if name not in (*takes.arguments, "batch_size", "guidance_scale"):
                raise ValueError(
                    f"{name} was given, but the network {takes.words}: {takes.way_out}"
                )
        for name in ("num_images_per_label", "num_images_per_prompt", "batch_size"):
            number = getattr(asked, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if items is None and asked.repeats != 1:
            raise ValueError(f"{asked.repeats} images of nothing: {takes.way_out}, or batch_size")
        if items is not None and (batch_size is not None or len(items) == 0):
            raise ValueError(
                f"give {takes.arguments[0]}, at least one, or batch_size, got {items} and "
                f"{batch_size}; {takes.arguments[1]} draws more images of each"
            )
        text = self.takes == "text"
        (self._check_text if text else self._check_labels)(asked)
        null = asked.negative_prompt_embeds if text else self.config.null_label
        if asked.guided and (items is None or null is None and self.text_encoder is None):
            raise ValueError(
                f"guidance_scale={asked.guidance_scale} needs {takes.guidance}; 1 is no guidance"
            )

    def _check_labels(self, asked: Asked) -> None:
        labels, last = asked.class_labels, self.num_classes - 1
        if labels is None and self.num_classes and self.config.null_label is None:
            raise ValueError(
                "the network is class-conditional and has no null label: pass class_labels, "
                f"each in 0..{last}"
            )
        wrong = [k for k in labels or [] if type(k) is not int or k not in range(last + 1)]
        if wrong:
            raise ValueError(f"class_labels must be integers in 0..{last}, got {wrong}")

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
        if negative and not asked.guided:
            raise ValueError(f"{negative[0]} does nothing at guidance_scale=1: drop it, or guide")
        if asked.negative_prompt and len(asked.negative_prompt) not in (1, len(asked.items or [])):
            raise ValueError(
                f"negative_prompt must be one text or one for each of the {len(asked.items)} "
                f"prompts, got {len(asked.negative_prompt)}"
            )

    def encode_condition(self, asked: Asked) -> Tensor | None:
        """Return the condition of every image, preceded by as many null ones if it is guided."""
        if self.takes != "text":
            repeats = asked.num_images_per_label
            return self.encode_labels(asked.class_labels, repeats, asked.count, asked.guided)
        embeds, negative = self.encode_prompt(
            [""] * asked.count if asked.items is None else asked.prompt,
            asked.num_images_per_prompt,
            asked.guided,
            asked.negative_prompt,
            asked.prompt_embeds,
            asked.negative_prompt_embeds,
        )
        return embeds if negative is None else torch.cat([negative, embeds])

    def encode_labels(
        self, labels: list[int] | None, num_images_per_label: int, batch_size: int, guide: bool
    ) -> Tensor | None:
        """Return the labels of the batch, preceded by as many null labels where it is guided."""
        if not self.network_takes_labels:
            return None
        null = torch.full(
            (batch_size,), self.config.null_label or 0, device=self._execution_device
        )
        if labels is None:
            return null
        labels = torch.tensor(labels, device=null.device).repeat_interleave(num_images_per_label)
        return torch.cat([null, labels]) if guide else labels

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = False,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the states of prompts for each image, and those that guidance starts from.

        Args:
            prompt: texts.
            num_images_per_prompt: how often each is repeated.
            do_classifier_free_guidance: whether the second states are wanted; else they are None.
            negative_prompt: their texts, one for all or one for each; by default empty.
            prompt_embeds: states in place of `prompt`, shape `(prompts, tokens, width)`.
            negative_prompt_embeds: states in place of `negative_prompt`, of the same shape.

        Raises:
            ValueError: for two kinds of states that have different shapes.
        """
        device, dtype = self._execution_device, self.network.dtype

        def states(texts: str | list[str]) -> Tensor:
            texts = [texts] if isinstance(texts, str) else texts
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
        both = [x.to(device, dtype).repeat_interleave(num_images_per_prompt, 0) for x in both]
        return both[0], both[1] if do_classifier_free_guidance else None
