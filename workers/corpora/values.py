"""What a row holds, counted by kind: texts are used, anything else is skipped and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Missing:
    """What a row holds that lacks the column."""


MISSING = Missing()

WORDS = {
    "missing": "without the column",
    "null": "null",
    "empty": "empty",
    "list": "a list",
    "object": "an object",
    "number": "a number",
    "boolean": "true or false",
    "other": "of another type",
}
"""Kinds of values that are no text, and how they are called."""


def value_kind(value: object) -> str:
    """``text``, or one of ``WORDS``. A text of white space alone is empty."""
    if isinstance(value, str):
        return "text" if value.strip() else "empty"
    if value is MISSING:
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds: dict[Any, str] = {int: "number", float: "number", list: "list", dict: "object"}
    return kinds.get(type(value), "other")


@dataclass
class Census:
    """The rows that were looked at, each once."""

    kinds: Counter[str] = field(default_factory=Counter)
    surrogates: int = 0
    """Halves of surrogate pairs that became U+FFFD."""
    _seen: set[int] = field(default_factory=set)

    def count(self, number: int, kind: str, surrogates: int = 0) -> None:
        """A row by its number; one that was counted before counts no more."""
        if number not in self._seen:
            self._seen.add(number)
            self.kinds[kind] += 1
            self.surrogates += surrogates

    @property
    def looked_at(self) -> int:
        """How many rows."""
        return len(self._seen)

    @property
    def skipped(self) -> Mapping[str, int]:
        """Those that hold no text, by kind."""
        return {kind: self.kinds[kind] for kind in WORDS if self.kinds[kind]}

    def words(self) -> str:
        """``1 null, 2 empty``."""
        return ", ".join(f"{count:,} {WORDS[kind]}" for kind, count in self.skipped.items())
