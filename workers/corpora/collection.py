"""Documents of a dataset, of which no more are read than are asked for, in whatever order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.corpora.compressed import EXPANDED
from workers.corpora.entry import CorpusError, unreadable
from workers.corpora.prose import WHOLE_DOCUMENT, HeldBytes, LongText
from workers.corpora.rows import Block, Row
from workers.corpora.text_rule import plain
from workers.corpora.values import Census, value_kind
from workers.texts.sampling import Sample, in_order

BETWEEN = "\n\n"
"""What stands between documents that are joined."""


@dataclass
class Collection:
    """Rows, or files of prose, each a document; blocks of rows joined to one text each; or one long text."""

    name: str
    """As rows call it: ``DatasetEntry.label``."""
    fingerprint: str
    blocks: Sequence[Block]
    what: str
    """``rows``, ``files``, or ``text`` for a single long one."""
    column: str | None = None
    sample: Sample = "spread"
    seed: int = 0
    joined: bool = False
    count: int | None = None
    """How many rows or files there are, where that is known."""
    compressed: bool = False
    """Whether files are, of whose content only the first 64 MB are read."""
    in_turn: int | None = None
    """How many blocks are looked at before any behind them:
    the beginnings of files that are read from their start."""
    small: bool = False
    """Whether its rows are held: they are read once, and counted whether they are needed or not."""
    file_notes: Sequence[str] = ()
    """What a plan says of files that are not read."""
    census: Census = field(default_factory=Census)
    _held: dict[int, list[tuple[int, str | LongText]]] = field(default_factory=dict)

    @property
    def has_documents(self) -> bool:
        """Whether windows have documents that they do not cross."""
        return self.what != "text" and not self.joined

    def block_order(self, wanted: int) -> Iterator[int]:
        """The blocks in the order in which the sample looks at them for so many documents."""
        for first in range(0, len(self.blocks), self.width):
            count = min(self.width, len(self.blocks) - first)
            yield from (first + number for number in in_order(count, wanted, self.sample, self.seed))

    @property
    def width(self) -> int:
        """Among how many blocks a sample chooses first."""
        return self.in_turn or max(1, len(self.blocks))

    def look_through(self) -> None:
        """Read and count all rows. Raises CorpusError where none holds text."""
        for number in range(len(self.blocks)):
            self.texts(number)
        self.check_some_text()

    def check_some_text(self) -> None:
        """Raises CorpusError where rows were looked at and none holds text."""
        if self.census.looked_at and not self.census.kinds["text"]:
            column = f"its column {self.column!r}" if self.column else "it"
            raise CorpusError(
                f"dataset {self.name!r} holds no text: {column} is {self.census.words()} in the "
                f"{self.census.looked_at:,} {self.what} that were looked at; name a column of text (column: "
                "NAME), or make it one text per row"
            )

    def texts(self, block: int) -> list[tuple[int, str | LongText]]:
        """The documents of a block that hold text, by number. Raises CorpusError where it cannot be read."""
        if block in self._held:
            return self._held[block]
        try:
            texts: list[tuple[int, str | LongText]] = list(self._texts(self.blocks[block].rows()))
        except OSError as error:
            raise unreadable(self.name, error) from None

        parts = [text for _, text in texts if isinstance(text, str)]
        if self.joined and parts:  # a long text is a block of its own
            first = texts[0][0]
            joined = BETWEEN.join(parts)
            texts = [(first, joined if self.small else self._bounded(joined, first))]

        if self.small:
            self._held[block] = texts
        return texts

    def _texts(self, rows: Sequence[Row]) -> Iterator[tuple[int, str | LongText]]:
        for number, value in rows:
            if isinstance(value, LongText):
                self.census.count(number, "text")
                yield number, value
                continue
            kind = value_kind(value)
            text, surrogates = plain(value) if isinstance(value, str) else ("", 0)
            self.census.count(number, kind, surrogates)
            if kind == "text":
                yield number, text if self.joined else self._bounded(text, number)

    def _bounded(self, text: str, number: int) -> str | LongText:
        if 4 * len(text) <= WHOLE_DOCUMENT or len(data := text.encode()) <= WHOLE_DOCUMENT:
            return text
        return LongText(HeldBytes(data), f"dataset {self.name!r}, document {number}")

    def facts(self) -> dict[str, Any]:
        """What run.json says of how it was read."""
        return {
            "documents": {"text": "one text"}.get(self.what, "joined" if self.joined else "separate"),
            "column": self.column,
            "sample": self.sample,
            self.what if self.what != "text" else "texts": self.count,
            "looked_at": self.census.looked_at,
            "skipped": dict(self.census.skipped),
            "surrogates_replaced": self.census.surrogates,
        }

    def notes(self) -> list[str]:
        """What a plan says of how it is read."""
        cut = [
            f"{self.name}: of each compressed file at most the first {EXPANDED:,} bytes of its content are "
            "read"
        ]
        cut = cut if self.compressed else []
        if self.what == "text":
            return [
                f"{self.name} is long: each of its windows is a passage that is read and tokenized for "
                "itself",
                *self.file_notes,
                *cut,
            ]

        there = (
            self.what
            if self.count is None
            else f"{self.count:,} {self.what if self.count != 1 else self.what[:-1]}"
        )
        of = f" of column {self.column!r}" if self.column else ""
        way = "joined by blank lines" if self.joined else "documents that no window crosses"
        return [
            f"{self.name}: {there}{of}, {way}",
            *self.file_notes,
            *cut,
            *skipped_notes(self.name, self.what, self.census),
        ]


def skipped_notes(name: str, what: str, census: Census) -> list[str]:
    """What a plan says of rows without text, and of halves of surrogate pairs."""
    skipped = sum(census.skipped.values())
    notes = []
    if skipped:
        notes.append(
            f"{name}: {skipped:,} of {census.looked_at:,} {what} looked at hold no text and are skipped "
            f"({census.words()})"
        )
    if census.surrogates:
        halves = "half of a surrogate pair" if census.surrogates == 1 else "halves of surrogate pairs"
        notes.append(f"{name}: {census.surrogates:,} {halves} became U+FFFD")
    return notes
