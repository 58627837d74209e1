"""Facts hidden in documents: how a document says one, how a question asks for it, and where it lies."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[str], list[int]]

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
    """One hidden fact: ``value`` (digits) belongs to ``name``;
    ``depth`` in [0, 1] is its place in the filler."""

    name: str
    value: str
    depth: float
    distracts: bool = False
    """Nobody asks for it: in a passkey document it is a secret number, as in the documents of needles."""


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
    whole = encode(text)
    spans = []
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
    ids = list(intro)
    spans = [(0, 0)] * len(facts)
    used = 0
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


def encode_question(encode: Encode, kind: str, fact: Fact) -> tuple[list[int], list[int]]:
    """Token ids of the question and of its answer,
    split so that together they are the tokens of the joined text."""
    text = question_text(kind, fact)
    question = encode(text)
    joined = encode(f"{text} {fact.value}")
    if joined[: len(question)] == question:
        return question, joined[len(question) :]
    return question, encode(f" {fact.value}")
