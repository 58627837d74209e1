"""Retrieval questions in a model's tokens: whether the lengths that were asked for can hold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import Tokenizer

from pipeline.sweep_keys import RetrievalTask
from workers.model_files import ModelFacts
from workers.retrieval import Encode, least_context


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
    tokenizer = Tokenizer.from_file(facts.tokenizer_file)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
