"""Passkey and needle documents: a fact hidden in filler, and the question that asks for it.

Sources: passkey after Mohtashami & Jaggi 2023 (arXiv 2305.16300, section 4.2), as used by Devoto et al. 2024 (arXiv
2406.11430, section 4); needle after Kamradt 2023, "Needle in a haystack". Everything is built from token ids, so a document
has exactly the asked number of tokens in any tokenizer. The same generator makes training documents for the embedded
reference models and the questions that evaluate them; the seeds differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[str], list[int]]

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

NAMES: tuple[str, ...] = (
    "Amsterdam", "Athens", "Bangkok", "Barcelona", "Beirut", "Belgrade", "Berlin", "Bombay", "Boston", "Brussels", "Budapest",
    "Cairo", "Calcutta", "Chicago", "Copenhagen", "Cork", "Damascus", "Delhi", "Denver", "Dresden", "Dublin", "Edinburgh",
    "Florence", "Geneva", "Genoa", "Glasgow", "Hamburg", "Havana", "Helsinki", "Houston", "Jerusalem", "Kyoto", "Leeds", "Lima",
    "Lisbon", "London", "Lyon", "Madrid", "Manila", "Melbourne", "Milan", "Moscow", "Munich", "Nairobi", "Naples", "Oslo",
    "Oxford", "Paris", "Perth", "Prague", "Quebec", "Rome", "Seville", "Sofia", "Stockholm", "Sydney", "Tokyo", "Toronto",
    "Tunis", "Venice", "Vienna", "Warsaw", "York", "Zurich",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One hidden fact: ``value`` (digits) belongs to ``name``; ``depth`` in [0, 1] is its place in the filler."""

    name: str
    value: str
    depth: float


@dataclass(frozen=True)
class Question:
    """A prompt of exactly ``context_tokens`` tokens whose continuation should be ``answer_ids``."""

    kind: str
    context_tokens: int
    depth: float
    index: int
    prompt_ids: list[int]
    answer_ids: list[int]
    expected: str
    fact_span: tuple[int, int]
    """Positions [start, end) in the prompt of the fact that holds the answer."""


def encode_question(encode: Encode, kind: str, fact: Fact) -> tuple[list[int], list[int]]:
    """Token ids of the question and of its answer, split so that together they are the tokens of the joined text."""
    text = PASSKEY_QUESTION if kind == "passkey" else NEEDLE_QUESTION.format(name=fact.name)
    question = encode(text)
    joined = encode(f"{text} {fact.value}")
    if joined[: len(question)] == question:
        return question, joined[len(question) :]
    return question, encode(f" {fact.value}")


def hide_facts(
    encode: Encode, kind: str, facts: Sequence[Fact], length: int, filler: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Lay ``facts`` out in filler so that the whole has exactly ``length`` tokens.

    ``filler`` is the text around needles (ids, repeated when too short); passkeys bring their own.
    Returns the ids and the span of each fact, in the order given. Raises ValueError where the facts alone are longer.
    """
    template = PASSKEY_FACT if kind == "passkey" else NEEDLE_FACT
    intro = encode(PASSKEY_INTRO) if kind == "passkey" else []
    around = encode(PASSKEY_FILLER) if kind == "passkey" else list(filler)
    pieces = [encode(template.format(name=fact.name, value=fact.value)) for fact in facts]
    room = length - len(intro) - sum(map(len, pieces))
    if room < 0 or not around:
        raise ValueError(f"a {kind} document of {length} tokens has no room for {len(facts)} facts ({-room} tokens too many)")
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
    encode: Encode, kind: str, context_tokens: int, depth: float, index: int, seed: int, filler: Sequence[int], digits: int = 5
) -> Question:
    """The ``index``-th question of a kind, length and depth; equal arguments give equal questions.

    Raises ValueError where ``context_tokens`` cannot hold intro, fact and question.
    """
    if kind not in KINDS:
        raise ValueError(f"retrieval kind must be one of {', '.join(KINDS)} (got {kind!r})")
    rng = random.Random(f"kvsweep/{seed}/{kind}/{context_tokens}/{depth}/{index}")
    fact = draw_fact(rng, depth, digits)
    start = rng.randrange(len(filler)) if filler else 0
    question, answer = encode_question(encode, kind, fact)
    turned = [*filler[start:], *filler[:start]]
    body, (span,) = hide_facts(encode, kind, [fact], context_tokens - len(question), turned)
    return Question(kind, context_tokens, depth, index, body + question, answer, fact.value, span)
