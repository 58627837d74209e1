"""Passkey and needle documents: facts hidden in filler, and the questions that ask for them.

Sources: passkey after Mohtashami & Jaggi 2023 (arXiv 2305.16300, section 4.2), as used by Devoto et al. 2024
(arXiv 2406.11430, section 4); needle after Kamradt 2023, "Needle in a haystack". Everything is built from
token ids, so a document has exactly the asked number of tokens in any tokenizer. The same generator makes
training documents for the embedded reference models and the questions that evaluate them; the seeds differ.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workers.texts.facts import (
    NAMES,
    NEEDLE_FACT,
    NEEDLE_QUESTION,
    PASSKEY_FACT,
    PASSKEY_INTRO,
    PASSKEY_QUESTION,
    Encode,
    Fact,
    answer_spans,
    draw_fact,
    encode_question,
    hide_facts,
)

Filler = Sequence[int] | np.ndarray
"""Ids of the text around needles."""

KINDS = ("passkey", "needle")

FILLERS = 16
"""Longest contexts whose tokens are read of a dataset that is not read whole."""
QUESTION_TOKENS = 96
"""Room for a question in any tokenizer: the longest has fewer bytes."""


@dataclass(frozen=True)
class Question:
    """A context and a question, ``context_tokens`` tokens together,
    whose continuation should be ``answer_ids``."""

    kind: str
    context_tokens: int
    digits: int
    distractors: int
    depth: float
    index: int
    context_ids: list[int]
    """Questions about one document hold the same list."""
    question_ids: list[int]
    answer_ids: list[int]
    expected: str
    answer_spans: tuple[tuple[int, int], ...]
    """Positions [start, end) in the context of the answer's own tokens; a passkey's fact says it twice."""

    @property
    def prompt_ids(self) -> list[int]:
        """Context and question."""
        return self.context_ids + self.question_ids

    @property
    def text_tokens(self) -> int:
        """How many of the model's own tokens are read as text: a space and one token per digit, or the right
        answer's if more.

        In whatever pieces a tokenizer says the digits, so many tokens hold them all.
        """
        return max(len(self.answer_ids), len(self.expected) + 1)


def says(text: str, expected: str) -> bool:
    """Whether the digits of a text, in order and whatever stands between them, begin with the expected ones.

    What follows them is not judged, as it is not by ids.
    """
    return re.sub("[^0-9]", "", text).startswith(expected)


def build_question(
    encode: Encode,
    kind: str,
    context_tokens: int,
    depth: float,
    index: int,
    seed: int,
    filler: Filler,
    digits: int = 5,
    distractors: int = 0,
    start: Sequence[int] = (),
) -> Question:
    """The ``index``-th question of a kind, length and depth, its context behind ``start``; equal arguments
    give equal questions.

    Raises ValueError where ``context_tokens`` cannot hold intro, facts and question.
    """
    if kind not in KINDS:
        raise ValueError(f"retrieval kind must be one of {', '.join(KINDS)} (got {kind!r})")
    rng = random.Random(f"kvsweep/{seed}/{kind}/{context_tokens}/{depth}/{index}")
    fact = draw_fact(rng, depth, digits)
    around = _turned(filler, rng.randrange(len(filler)) if len(filler) else 0, context_tokens)
    facts = [fact, *_distractors(rng, distractors, digits, [fact])]
    question, answer = encode_question(encode, kind, fact)
    body, spans = hide_facts(encode, kind, facts, context_tokens - len(question), around, start)
    where = answer_spans(encode, kind, fact, spans[0][0])
    return Question(
        kind, context_tokens, digits, distractors, depth, index, body, question, answer, fact.value, where
    )


def build_shared(
    encode: Encode,
    context_tokens: int,
    depths: Sequence[float],
    index: int,
    seed: int,
    filler: Filler,
    digits: int,
    distractors: int,
    start: Sequence[int] = (),
) -> list[Question] | None:
    """Needle questions about every depth of one document, each a distractor to the others;
    None where that cannot be.

    It can where the distractors asked for are enough, and enough names have as many tokens as the first: with
    questions of one length the document is the same for all. Equal arguments give equal questions. Raises
    ValueError as ``build_question`` does.
    """
    if len(depths) < 2 or distractors < len(depths) - 1:
        return None
    rng = random.Random(f"kvsweep/{seed}/shared/{context_tokens}/{'/'.join(map(str, depths))}/{index}")
    names = rng.sample(NAMES, len(NAMES))
    lengths = {name: len(encode(NEEDLE_QUESTION.format(name=name))) for name in names}
    alike = [name for name in names if lengths[name] == lengths[names[0]]]
    if len(alike) < len(depths):
        return None
    asked: list[Fact] = []
    for depth, name in zip(depths, alike, strict=False):
        asked += [_unlike(rng, depth, digits, name, asked)]
    others = _distractors(rng, distractors - len(asked) + 1, digits, asked)
    around = _turned(filler, rng.randrange(len(filler)) if len(filler) else 0, context_tokens)
    body, spans = hide_facts(
        encode, "needle", [*asked, *others], context_tokens - lengths[alike[0]], around, start
    )
    questions = []
    for fact, span in zip(asked, spans, strict=False):
        question, answer = encode_question(encode, "needle", fact)
        shape = ("needle", context_tokens, digits, distractors, fact.depth, index)
        where = answer_spans(encode, "needle", fact, span[0])
        questions.append(Question(*shape, body, question, answer, fact.value, where))
    return questions


def build_questions(
    encode: Encode,
    kind: str,
    context_tokens: int,
    depths: Sequence[float],
    digits: Sequence[int],
    distractors: Sequence[int],
    questions: int,
    seed: int,
    filler: Filler,
    start: Sequence[int] = (),
    documents: range | None = None,
) -> Iterator[Question]:
    """All questions of a kind and length, at every depth of one document after the other;
    or those of some documents alone."""
    every = itertools.product(digits, distractors, range(questions))
    chosen = itertools.islice(every, documents.start, documents.stop) if documents is not None else every

    for number, others, index in chosen:
        arguments = (index, seed, filler, number, others, start)
        shared = build_shared(encode, context_tokens, depths, *arguments) if kind == "needle" else None
        yield from shared or (
            build_question(encode, kind, context_tokens, depth, *arguments) for depth in depths
        )


def filler_tokens(context_tokens: Sequence[int]) -> int:
    """How much of a dataset that is not read whole is the text around needles: most questions stand in text
    of their own."""
    return FILLERS * max(context_tokens)


def least_context(encode: Encode, kind: str, digits: int, distractors: int, start: Sequence[int] = ()) -> int:
    """Tokens that hold the longest facts and question of a kind behind ``start``; documents this long can
    always be made."""
    value = "8" * digits
    needles = [len(encode(NEEDLE_FACT.format(name=name, value=value))) for name in NAMES]
    if kind == "needle":
        questions = [len(encode(NEEDLE_QUESTION.format(name=name))) for name in NAMES]
        return len(start) + (distractors + 1) * max(needles) + max(questions) + 1
    passkey = (
        len(encode(PASSKEY_INTRO))
        + len(encode(PASSKEY_FACT.format(value=value)))
        + len(encode(PASSKEY_QUESTION))
    )
    return len(start) + passkey + distractors * max(needles) + 1


def _turned(filler: Filler, start: int, length: int) -> list[int]:
    """``length`` ids of the filler from ``start`` on, or all of a shorter one, begun again at its end."""
    again = min(start, max(0, start + length - len(filler)))
    return [int(token) for part in (filler[start : start + length], filler[:again]) for token in part]


def _distractors(rng: random.Random, count: int, digits: int, facts: Sequence[Fact]) -> list[Fact]:
    """Facts anywhere in the document with names and values of their own."""
    free = [name for name in NAMES if name not in {fact.name for fact in facts}]
    drawn = list(facts)
    for name in rng.sample(free, count):
        drawn.append(replace(_unlike(rng, rng.random(), digits, name, drawn), distracts=True))
    return drawn[len(facts) :]


def _unlike(rng: random.Random, depth: float, digits: int, name: str, facts: Sequence[Fact]) -> Fact:
    """A fact with another value than those."""
    while (fact := draw_fact(rng, depth, digits, name)).value in {other.value for other in facts}:
        pass
    return fact
