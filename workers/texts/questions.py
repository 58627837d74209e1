"""Passkey and needle documents: a fact hidden in filler, and the question that asks for it.

Sources: passkey after Mohtashami & Jaggi 2023 (arXiv 2305.16300, section 4.2), as used by Devoto et al. 2024
(arXiv 2406.11430, section 4); needle after Kamradt 2023, "Needle in a haystack". Everything is built from
token ids, so a document has exactly the asked number of tokens in any tokenizer. The same generator makes
training documents for the embedded reference models and the questions that evaluate them; the seeds differ.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

Encode = Callable[[str], list[int]]
Filler = Sequence[int] | np.ndarray
"""Ids of the text around needles."""

KINDS = ("passkey", "needle")

PASSKEY_INTRO = (
    "There is important information hidden inside a lot of irrelevant text. "
    "Find it and remember it. You will be asked about it.\n"
)
PASSKEY_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
PASSKEY_FACT = "\nThe pass key is {value}. Remember it. {value} is the pass key.\n"
PASSKEY_QUESTION = "\nWhat is the pass key? The pass key is"

NEEDLE_FACT = "\nThe secret number of {name} is {value}.\n"
NEEDLE_QUESTION = "\nWhat is the secret number of {name}? The secret number of {name} is"

FILLERS = 16
"""Longest contexts whose tokens are read of a dataset that is not read whole."""
QUESTION_TOKENS = 96
"""Room for a question in any tokenizer: the longest has fewer bytes."""

NAMES: tuple[str, ...] = (
    "Amsterdam", "Athens", "Bangkok", "Barcelona", "Beirut", "Belgrade", "Berlin", "Bombay", "Boston",
    "Brussels", "Budapest", "Cairo", "Calcutta", "Chicago", "Copenhagen", "Cork", "Damascus", "Delhi",
    "Denver", "Dresden", "Dublin", "Edinburgh", "Florence", "Geneva", "Genoa", "Glasgow", "Hamburg", "Havana",
    "Helsinki", "Houston", "Jerusalem", "Kyoto", "Leeds", "Lima", "Lisbon", "London", "Lyon", "Madrid",
    "Manila", "Melbourne", "Milan", "Moscow", "Munich", "Nairobi", "Naples", "Oslo", "Oxford", "Paris",
    "Perth", "Prague", "Quebec", "Rome", "Seville", "Sofia", "Stockholm", "Sydney", "Tokyo", "Toronto",
    "Tunis", "Venice", "Vienna", "Warsaw", "York", "Zurich",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One hidden fact: ``value`` (digits) belongs to ``name``; ``depth`` in [0, 1] is its place in the
    filler."""

    name: str
    value: str
    depth: float
    distracts: bool = False
    """Nobody asks for it: in a passkey document it is somebody's secret number, as in the documents of
    needles."""


@dataclass(frozen=True)
class Question:
    """A context and a question, ``context_tokens`` tokens together, whose continuation should be
    ``answer_ids``."""

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


def encode_question(encode: Encode, kind: str, fact: Fact) -> tuple[list[int], list[int]]:
    """Token ids of the question and of its answer, split so that together they are the tokens of the joined
    text."""
    text = question_text(kind, fact)
    question = encode(text)
    joined = encode(f"{text} {fact.value}")
    if joined[: len(question)] == question:
        return question, joined[len(question) :]
    return question, encode(f" {fact.value}")


def says(text: str, expected: str) -> bool:
    """Whether the digits of a text, in order and whatever stands between them, begin with the expected ones.

    What follows them is not judged, as it is not by ids.
    """
    return re.sub("[^0-9]", "", text).startswith(expected)


def question_text(kind: str, fact: Fact) -> str:
    """How a kind asks for a fact, up to where the answer begins."""
    return PASSKEY_QUESTION if kind == "passkey" else NEEDLE_QUESTION.format(name=fact.name)


def fact_text(kind: str, fact: Fact) -> str:
    """How a document of a kind says a fact."""
    template = PASSKEY_FACT if kind == "passkey" and not fact.distracts else NEEDLE_FACT
    return template.format(name=fact.name, value=fact.value)


def answer_spans(encode: Encode, kind: str, fact: Fact, start: int) -> tuple[tuple[int, int], ...]:
    """Where a fact that begins at position ``start`` says its value: the tokens that the text around a value
    does not have.

    A token that holds a part of the value and something else counts as the value's.
    """
    text = fact_text(kind, fact)
    whole, spans = encode(text), []
    for found in re.finditer(fact.value, text):
        before, after = encode(text[: found.start()]), encode(text[found.end() :])
        first = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, before, strict=False))
        )
        last = sum(
            1
            for _ in itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(whole[::-1], after[::-1], strict=False)
            )
        )
        spans.append((start + first, start + len(whole) - last))
    return tuple(spans)


def hide_facts(
    encode: Encode,
    kind: str,
    facts: Sequence[Fact],
    length: int,
    filler: Sequence[int],
    start: Sequence[int] = (),
) -> tuple[list[int], list[tuple[int, int]]]:
    """Lay ``facts`` out in filler so that the whole has exactly ``length`` tokens.

    ``filler`` is the text around needles (ids, repeated when too short); passkeys bring their own. ``start``:
    ids that stand before everything else, as BOS does. Returns the ids and the span of each fact, in the
    order given. Raises ValueError where the facts alone are longer.
    """
    intro = [*start, *(encode(PASSKEY_INTRO) if kind == "passkey" else [])]
    around = encode(PASSKEY_FILLER) if kind == "passkey" else list(filler)
    pieces = [encode(fact_text(kind, fact)) for fact in facts]
    room = length - len(intro) - sum(map(len, pieces))
    if room < 0 or not around:
        raise ValueError(
            f"a {kind} document of {length} tokens has no room for {len(facts)} facts ({-room} tokens too "
            "many)"
        )
    padding = (around * (room // len(around) + 1))[:room]
    ids, spans, used = list(intro), [(0, 0)] * len(facts), 0
    for i in sorted(range(len(facts)), key=lambda i: facts[i].depth):
        cut = round(facts[i].depth * room)
        ids += padding[used:cut]
        used = cut
        spans[i] = (len(ids), len(ids) + len(pieces[i]))
        ids += pieces[i]
    return ids + padding[used:], spans


def draw_fact(rng: random.Random, depth: float, digits: int, name: str | None = None) -> Fact:
    """A fact with a random value of ``digits`` digits that does not start with 0."""
    value = str(rng.randint(10 ** (digits - 1), 10**digits - 1))
    return Fact(name or rng.choice(NAMES), value, depth)


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
    """Needle questions about every depth of one document, each a distractor to the others; None where that
    cannot be.

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
    found = []
    for fact, span in zip(asked, spans, strict=False):
        question, answer = encode_question(encode, "needle", fact)
        shape = ("needle", context_tokens, digits, distractors, fact.depth, index)
        where = answer_spans(encode, "needle", fact, span[0])
        found.append(Question(*shape, body, question, answer, fact.value, where))
    return found


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
    """All questions of a kind and length, at every depth of one document after the other; or those of some
    documents alone."""
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
    own = (
        len(encode(PASSKEY_INTRO))
        + len(encode(PASSKEY_FACT.format(value=value)))
        + len(encode(PASSKEY_QUESTION))
    )
    return len(start) + own + distractors * max(needles) + 1


def _turned(filler: Filler, start: int, length: int) -> list[int]:
    """``length`` ids of the filler from ``start`` on, or all of a shorter one, begun again at its end."""
    again = min(start, max(0, start + length - len(filler)))
    return [int(token) for part in (filler[start : start + length], filler[:again]) for token in part]


def _distractors(rng: random.Random, count: int, digits: int, facts: Sequence[Fact]) -> list[Fact]:
    """Facts anywhere in the document with names and values of their own."""
    free = [name for name in NAMES if name not in {fact.name for fact in facts}]
    found = list(facts)
    for name in rng.sample(free, count):
        found.append(replace(_unlike(rng, rng.random(), digits, name, found), distracts=True))
    return found[len(facts) :]


def _unlike(rng: random.Random, depth: float, digits: int, name: str, facts: Sequence[Fact]) -> Fact:
    """A fact with another value than those."""
    while (fact := draw_fact(rng, depth, digits, name)).value in {other.value for other in facts}:
        pass
    return fact
