"""Where a long text is read:
in so many passages, each of which holds one window or prompt and is tokenized for itself.

The text is divided into slots of equal length, about as many as there could be windows, and a sample takes
some of them. In a slot the passage begins where the first line does that does not begin with white space,
else at the first single space between words, which it includes, else at the first character: a tokenizer that
splits there gives it the tokens of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workers.corpora.prose import LongText, whole_characters
from workers.corpora.text_rule import prose
from workers.texts.sampling import Sample, in_order
from workers.texts.text_tokens import TextTokens

MOST_BYTES, LEAST_BYTES = 16, 6
"""Bytes of a slot per token that it should hold: the first where there is room, else at least the second."""
MARGIN = 1024
"""Bytes of a slot in which its passage may begin and end."""
SEARCHED = 512
"""Bytes that are looked through for a line break, and for a space."""
LINE_START = re.compile(rb"\n(?=\S)")
WORD_START = re.compile(rb"(?<=\S) (?=\S)")
"""A line that begins with no white space, and a single space between words: tokens may join more of it."""
UNSURE = 8
"""Last tokens of a passage that are not used: they might go on behind it."""
SPARE_TRIES = 16


@dataclass(frozen=True)
class Passage:
    """A stretch of a long text."""

    first_byte: int
    ids: np.ndarray
    """[tokens] int32."""


def slot_bytes(size: int, length: int, count: int) -> int:
    """How long a slot is in a text of ``size`` bytes of which ``count`` stretches of ``length`` tokens are
    wanted."""
    return max(LEAST_BYTES * length, min(MOST_BYTES * length, size // max(1, count) - MARGIN)) + MARGIN


def passages(
    text: LongText, tokenizer: TextTokens, length: int, count: int, sample: Sample, seed: int
) -> Iterator[tuple[Passage, str]]:
    """At most ``count`` passages of at least ``length`` tokens with what they say, in the order in which the
    sample takes them.

    Raises CorpusError where one is no UTF-8 text.
    """
    step = min(text.source.size, slot_bytes(text.source.size, length, count))
    slots = text.source.size // step
    found = 0
    for tried, slot in enumerate(in_order(slots, count, sample, seed)):
        if found == count or tried == 4 * count + SPARE_TRIES:
            return
        first_byte, said = _said(text, slot * step, step)
        ids = _ids(tokenizer, said, first_byte)
        ends = slot == slots - 1 and slots * step == text.source.size
        usable = ids if ends else ids[: max(0, len(ids) - UNSURE)]
        if len(usable) >= length:
            found += 1
            yield Passage(first_byte, usable[:length]), said


def _said(text: LongText, start: int, length: int) -> tuple[int, str]:
    """The passage in a slot, and its first byte."""
    data = text.source.read(start, length)
    cut = _beginning(data) if start else 0
    return start + cut, prose(whole_characters(data[cut:]), text.place, start + cut)


def _beginning(data: bytes) -> int:
    line = LINE_START.search(data, 0, SEARCHED)
    if line is not None:
        return line.end()
    word = WORD_START.search(data, 0, SEARCHED)
    if word is not None:
        return word.start()
    return next((i for i, byte in enumerate(data[:4]) if not 0x80 <= byte < 0xC0), 0)


def _ids(tokenizer: TextTokens, said: str, first_byte: int) -> np.ndarray:
    """As it stands inside the text, or begins it."""
    if first_byte == 0:
        return tokenizer.encode(said).ids
    return np.asarray(tokenizer.inside(said), dtype=np.int32)
