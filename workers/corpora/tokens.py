"""The tokens of a dataset that is one text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from workers.corpora.entry import CorpusError
from workers.texts.sampling import Sample
from workers.texts.text_tokens import SpecialTokens, TextTokens, open_tokenizer
from workers.texts.windows import Window, plan_windows, sampled_numbers


class Lack(NamedTuple):
    """What a dataset has instead of what is needed, and what to do about it."""

    has: str
    way: str = ""


@dataclass(frozen=True)
class Corpus:
    """One text."""

    name: str
    text: str
    sample: Sample = "spread"
    seed: int = 0
    read_as: dict[str, Any] = field(default_factory=dict)
    """What run.json says of how it was read, where it is made of rows."""
    read_notes: Sequence[str] = ()
    """What a plan says of that."""

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the text's SHA-256:
        the same name may hold other text elsewhere (pydocs: per Python version)."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What run.json says of how it was read."""
        return {"documents": "one text", "sample": self.sample} | self.read_as

    def notes(self) -> list[str]:
        """What a plan says of how it is read."""
        return list(self.read_notes)


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of a whole text under one tokenizer."""

    ids: np.ndarray
    """[tokens] int32."""
    special_spelled: int = 0
    """Special tokens that the text spells."""
    sample: Sample = "spread"
    seed: int = 0

    @property
    def tokens(self) -> int:
        """How many were read: all."""
        return len(self.ids)

    @property
    def largest_id(self) -> int:
        """Of all its tokens."""
        return int(self.ids.max(initial=0))

    def windows(self, window: int, stride: int, limit: int, *, bos: bool) -> tuple[Window, ...]:
        """``plan_windows`` of this text."""
        numbers = {"sample": self.sample, "seed": self.seed}
        return tuple(plan_windows(len(self.ids), window, stride, limit, bos=bos, **numbers))

    def held(self, window: Window, length: int) -> np.ndarray:
        """The first ``length`` tokens of a window."""
        return self.ids[window.start : window.start + length]

    def document_of(self, window: Window) -> int | None:
        """None: one text has no documents."""
        return None

    def prompts(self, length: int, count: int) -> list[np.ndarray]:
        """At most ``count`` stretches of ``length`` tokens that do not overlap."""
        numbers = sampled_numbers(len(self.ids) // max(1, length), count, self.sample, self.seed)
        return [self.ids[number * length : (number + 1) * length] for number in numbers]

    def filler(self, length: int) -> np.ndarray:
        """Text for the haystacks of retrieval: all of it, of which each question takes a part of its own."""
        return self.ids

    def beginning(self, length: int) -> np.ndarray:
        """At most its first ``length`` tokens."""
        return self.ids[:length]

    def lacking(self, length: int, count: int, *, apart: bool) -> Lack | None:
        """Why it cannot give one stretch of ``length`` tokens, or ``count`` of them that lie ``apart``; None
        where it can."""
        needed = length * count if apart else length
        return None if len(self.ids) >= needed else Lack(f"only {len(self.ids)} tokens")

    def notes(self, name: str, model: str) -> list[str]:
        """Nothing that a plan need say."""
        return []


def tokenize_text(corpus: Corpus, tokenizer_file: str, special: SpecialTokens = "literal") -> TokenizedCorpus:
    """The whole text's ids without special tokens before or behind it.

    Raises CorpusError where the text spells special tokens, which are to be letters, and the tokenizer cannot
    read them so.
    """
    tokenizer = open_tokenizer(tokenizer_file, special)
    ids = tokenizer.encode(corpus.text).ids
    spelled = special_tokens_spelled(tokenizer, corpus.text, ids, corpus.name, special)
    return TokenizedCorpus(ids, spelled, corpus.sample, corpus.seed)


def special_tokens_spelled(
    tokenizer: TextTokens, text: str, ids: np.ndarray, name: str, special: SpecialTokens
) -> int:
    """How many special tokens the text of these ids spells. Raises CorpusError as ``tokenize_text`` does."""
    spelled = tokenizer.spelled_special(text)
    if spelled and special == "literal" and (misread := tokenizer.misread(ids)):
        raise CorpusError(
            f"dataset {name!r} spells {', '.join(misread[:5])}, which this tokenizer reads as control tokens "
            "even where they are to be letters; take them out of the text, or say special_tokens_in_text: "
            "parse"
        )
    return spelled
