"""The text on which a unit's model is checked: as long as what the unit measures, and made of its own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.work import GenerationWork, PerplexityWork, RetrievalWork, WorkUnit

TEXTS = 3
"""Of the longest ones so many at most."""


def check_text(unit: WorkUnit) -> np.ndarray | None:
    """[texts, length] ids of the longest texts of a unit; None for the harness's tasks, whose texts only running them brings."""
    work = unit.work
    if isinstance(work, PerplexityWork):
        return (work.tokens if work.checked is None else work.checked)[:TEXTS].astype(np.int64)
    if isinstance(work, GenerationWork):
        return np.stack([continued(prompt, len(prompt) + work.new_tokens) for prompt in work.prompts[:TEXTS]])
    if isinstance(work, RetrievalWork):
        texts = [question.prompt_ids + question.answer_ids for question in work.questions]
        longest = max(map(len, texts))
        return np.array([text for text in texts if len(text) == longest][:TEXTS], dtype=np.int64)
    return None


def continued(prompt: Sequence[int], length: int) -> np.ndarray:
    """The prompt, begun again at its end until it is as long as what will have been generated."""
    return np.resize(np.asarray(prompt, dtype=np.int64), length)
