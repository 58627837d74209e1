"""What a generated text is like:
how long it is, how much it repeats, how long it goes the dense cell's way."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

REPEATED = 4
"""Tokens in a row that are a repetition when they come again (seq-rep-4: Welleck et al. 2019, arXiv
1908.04319, section 6)."""

Text = Sequence[int]


def end_tokens(model: nn.Module) -> set[int]:
    """Ids that end a text, as the model's own configuration says."""
    config: Any = model.generation_config if hasattr(model, "generation_config") else model.config
    ids = config.eos_token_id
    if ids is None:
        return set()
    return {ids} if isinstance(ids, int) else set(ids)


def length(text: Text, ends: Collection[int]) -> int:
    """Tokens before the first that ends the text."""
    return next((i for i, token in enumerate(text) if token in ends), len(text))


def repetition(text: Text) -> float | None:
    """Share of the runs of 4 tokens that were there before; None for fewer than 4 tokens."""
    runs = list(zip(*(text[i:] for i in range(REPEATED)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else None


def agreement(text: Text, dense: Text) -> int:
    """Tokens before the first that differs."""
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, dense, strict=False))
    )


def text_figures(
    texts: Sequence[Text], dense: Sequence[Text], ends: Collection[int]
) -> dict[str, float | None]:
    """The ``text_...`` columns of a batch of texts, beside the dense cell's on the same prompts."""
    lengths = [length(text, ends) for text in texts]
    shown = [text[: lengths[i]] for i, text in enumerate(texts)]
    other = [text[: length(text, ends)] for text in dense]
    repeated = [share for text in shown if (share := repetition(text)) is not None]
    return {
        "text_length": statistics.fmean(lengths),
        "text_ended": statistics.fmean(lengths[i] < len(text) for i, text in enumerate(texts)),
        "text_repetition": statistics.fmean(repeated) if repeated else None,
        "text_agreement": statistics.fmean(agreement(text, other[i]) for i, text in enumerate(shown)),
    }
