"""Captions that are longer than a text encoder takes: cut in training as prompts are in a call."""

import warnings

from transformers import PreTrainedTokenizerBase

from fm_diffusers.pipelines.conditions import tokenize


def warn_of_long(
    tokenizer: PreTrainedTokenizerBase, captions: list[str], first_of_stream: bool = False
) -> None:
    """Warn, once for all, of captions that are cut.

    Args:
        tokenizer: of the encoder, it says how many tokens a text may have.
        captions: all of them, or those of the first batch of a stream.
        first_of_stream: whether others may follow.
    """
    texts = [*dict.fromkeys(captions)]
    cut = {text: lost for text, lost in zip(texts, tokenize(tokenizer, texts).lost, strict=True)}
    cut = {text: lost for text, lost in cut.items() if lost}
    if cut:
        text, lost = next(iter(cut.items()))
        number = sum(text in cut for text in captions)
        of = "the first" if first_of_stream else "all"
        warnings.warn(
            f"{number} of {of} {len(captions)} captions have more than the "
            f"{tokenizer.model_max_length} tokens of the text encoder and are cut, such as "
            f"{text!r}, which loses {lost!r}",
            stacklevel=2,
        )
