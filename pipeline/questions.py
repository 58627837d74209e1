"""Retrieval questions in a model's tokens: whether the lengths that were asked for can hold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipeline.sweep_keys import RetrievalTask
from workers.model_files import ModelFacts
from workers.retrieval import Encode, least_context
from workers.text_tokens import open_tokenizer


def faults(task: RetrievalTask, facts: ModelFacts) -> Iterator[str]:
    """Lengths that cannot hold the facts and the question asked for."""
    encode = encoder(facts)
    for kind, digits, distractors in itertools.product(task.kinds, task.digits, task.distractors):
        least = least_context(encode, kind, digits, distractors)
        for length in task.context_tokens:
            if length < least:
                yield (
                    f"retrieval.context_tokens: {length} is too short for a {kind} of {digits} digits and {distractors} "
                    f"distractors under the tokenizer of {facts.name}; at least {least}"
                )


def encoder(facts: ModelFacts) -> Encode:
    """Text to ids without special tokens."""
    return open_tokenizer(facts.tokenizer_file).ids
