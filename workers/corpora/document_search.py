"""What looking for documents of so many tokens has found so far, and when no more are looked at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from workers.corpora.prose import LongText

SHORT_CHARACTERS = 16_000_000
"""Characters of documents that turn out to be too short, after which no more are looked at."""
LOOKED_CHARACTERS = 256_000_000
"""Characters of all documents that are looked at, after which no more are."""


@dataclass(frozen=True)
class Document:
    """A document that is long enough for something: its tokens, or where it lies."""

    number: int
    ids: np.ndarray | None
    """[tokens] int32; None for a long one, of which only passages are read."""
    long: LongText | None = None


@dataclass
class Search:
    """What was found of documents of so many tokens, in the order in which they were looked at."""

    length: int
    found: list[Document] = field(default_factory=list)
    short: dict[int, int] = field(default_factory=dict)
    """Tokens of those that are too short; characters where these alone tell that."""
    seen: set[int] = field(default_factory=set)
    characters: int = 0
    """Of all that were looked at."""
    short_characters: int = 0
    """Of those that are too short."""
    exhausted: bool = False
    """Whether all there are were looked at."""

    @property
    def spent(self) -> bool:
        """Whether so much was looked at that no more is."""
        return self.characters > LOOKED_CHARACTERS or self.short_characters > SHORT_CHARACTERS

    @property
    def longest(self) -> int:
        """Tokens of the longest one that is too short."""
        return max(self.short.values(), default=0)

    @property
    def repeated(self) -> int:
        """How many that were found have the tokens of one before them; long ones are not compared."""
        texts = [
            hashlib.sha256(document.ids.tobytes()).digest()
            for document in self.found
            if document.ids is not None
        ]
        return len(texts) - len(set(texts))

    def end_in_words(self) -> str:
        """Where no more were looked at, though there were more: after how many characters; else nothing."""
        if not self.spent:
            return ""
        limit = SHORT_CHARACTERS if self.short_characters > SHORT_CHARACTERS else LOOKED_CHARACTERS
        return f"; no more were looked at after {limit:,} characters"
