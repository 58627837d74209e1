"""Retrieval questions in a model's tokens: whether its tokenizer can say them, and the lengths that were
asked for hold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipeline.store.schema import answer_room
from pipeline.sweepfile.sweep_keys import RetrievalTask
from workers.models.model_files import ModelFacts
from workers.texts.facts import (
    NAMES,
    PASSKEY_FILLER,
    PASSKEY_INTRO,
    Fact,
    encode_question,
    fact_text,
    hide_facts,
    question_text,
)
from workers.texts.questions import least_context
from workers.texts.text_tokens import TextTokens, open_tokenizer

SHOWN = 60
"""Characters of a text that a message shows."""


def faults(task: RetrievalTask, facts: ModelFacts, bos: int | None) -> Iterator[str]:
    """What the tokenizer cannot say, and lengths that cannot hold BOS, the facts and the question asked
    for."""
    start = [] if bos is None else [bos]
    tokens = open_tokenizer(facts.tokenizer_file)
    for kind, digits in itertools.product(task.kinds, task.digits):
        fault = unspeakable(tokens, kind, digits)
        if fault:
            yield (
                f"retrieval: {facts.name} cannot be asked {kind} questions of {digits} digits: "
                f"its tokenizer {fault}"
            )
            continue

        for distractors in task.distractors:
            least = least_context(tokens.inside, kind, digits, distractors, start)
            for length in task.context_tokens:
                if length < least:
                    yield (
                        f"retrieval.context_tokens: {length} is too short for a {kind} of {digits} digits "
                        f"and {distractors} distractors under the tokenizer of {facts.name}; "
                        f"at least {least}"
                    )


def unspeakable(tokens: TextTokens, kind: str, digits: int) -> str | None:
    """What a tokenizer makes of a kind of question that is not what it asks; None where every sample comes
    back as it was.

    A sample for each name, in which each digit comes: document, question and
    answer, each in the pieces that questions are made of, are decoded together.
    Whitespace where a text begins is left out, a tokenizer may drop it.
    """
    facts = [Fact(name, _value(number, digits), 0.5) for number, name in enumerate(NAMES)]
    asked = [encode_question(tokens.inside, kind, fact) for fact in facts]

    given: dict[tuple[int, ...], str] = {}
    for fact, (_, answer) in zip(facts, asked, strict=True):
        if (other := given.setdefault(tuple(answer), fact.value)) != fact.value:
            return f"gives {other} and {fact.value} the same ids"
        if len(answer) > answer_room([digits]):
            return (
                f"makes {len(answer)} tokens of {fact.value}, and there is room for {answer_room([digits])}"
            )

    found = (
        _misread(tokens, kind, fact, question + answer)
        for fact, (question, answer) in zip(facts, asked, strict=True)
    )
    return next(filter(None, found), None)


def _misread(tokens: TextTokens, kind: str, fact: Fact, asked: list[int]) -> str | None:
    """Whether a document with a fact and somebody's number,
    the question and its answer come back as other text."""
    distractor = Fact(NAMES[NAMES.index(fact.name) - 1], fact.value[::-1], 1.0, distracts=True)
    facts = [fact, distractor]
    before = PASSKEY_INTRO if kind == "passkey" else ""
    filler = tokens.inside(PASSKEY_FILLER)

    own = sum(len(tokens.inside(text)) for text in (before, *(fact_text(kind, each) for each in facts)))
    body, _ = hide_facts(tokens.inside, kind, facts, own + 2 * len(filler), filler)
    wanted = before + "".join(PASSKEY_FILLER + fact_text(kind, each) for each in facts)
    wanted = (wanted + f"{question_text(kind, fact)} {fact.value}").lstrip()
    said = tokens.text(body + asked).lstrip()

    if said == wanted:
        return None
    same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said, wanted, strict=False))
    )
    part = slice(max(0, same - SHOWN // 2), same + SHOWN // 2)
    return f"makes {said[part]!r} of {wanted[part]!r}"


def _value(number: int, digits: int) -> str:
    """A number of so many digits; among ten in a row each digit stands at each place, but 0 never first."""
    return str(number % 9 + 1) + "".join(str((number + place) % 10) for place in range(1, digits))
