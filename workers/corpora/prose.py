"""Files of prose: each is one text, a long one of which only passages are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.corpora.compressed import expanded
from workers.corpora.entry import shown_path
from workers.corpora.files import SourceFile
from workers.corpora.rows import Row
from workers.corpora.text_rule import MARK, prose, without_mark

WHOLE_TEXT = 4_000_000
"""Bytes of the one text of a dataset up to which it is tokenized whole; of a longer one passages are."""
WHOLE_DOCUMENT = 1_000_000
"""The same of a document, of which a dataset has many."""


class ByteSource(Protocol):
    """Bytes of which any stretch can be read."""

    @property
    def size(self) -> int:
        """How many."""
        ...

    def read(self, start: int, length: int) -> bytes:
        """At most ``length`` bytes from ``start`` on."""
        ...


@dataclass(frozen=True)
class FileBytes:
    """A file, open only while it is read."""

    path: Path
    size: int

    def read(self, start: int, length: int) -> bytes:
        """At most ``length`` bytes from ``start`` on."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)


@dataclass(frozen=True)
class HeldBytes:
    """Bytes in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """How many."""
        return len(self.data)

    def read(self, start: int, length: int) -> bytes:
        """At most ``length`` bytes from ``start`` on."""
        return self.data[start : start + length]


@dataclass(frozen=True)
class LongText:
    """A text that is never held or tokenized whole (``passages.py``)."""

    source: ByteSource
    place: str
    """The file, for messages."""


@dataclass(frozen=True)
class ProseFile:
    """A file of prose as a row of its own."""

    file: SourceFile
    number: int
    longest: int
    """Bytes of a text that is read whole."""

    def rows(self) -> Sequence[Row]:
        """The one row."""
        return [Row(self.number, file_text(self.file, self.longest))]


def file_text(file: SourceFile, longest: int) -> str | LongText:
    """What a file says, by the rule of ``text_rule.py``;
    a text of more than ``longest`` bytes is left where it is.

    Raises CorpusError where it is no UTF-8, or damaged.
    """
    place = shown_path(file.path)
    if file.compressed:
        data, whole = expanded(file.path)
        data = data if whole else whole_characters(data)
    elif file.size > longest:
        source = FileBytes(file.path, file.size)
        without_mark(source.read(0, len(MARK)), place)  # refuses UTF-16 at once
        return LongText(source, place)
    else:
        data = file.path.read_bytes()
    return LongText(HeldBytes(data), place) if len(data) > longest else prose(data, place)


def whole_characters(data: bytes) -> bytes:
    """UTF-8 that was cut off anywhere, without a last character of which only the beginning is there."""
    for back in range(1, min(4, len(data)) + 1):
        lead = data[-back]
        if lead < 0x80:
            return data

        if lead >= 0xC0:
            # a character's first byte says of how many bytes it is: 110x of 2, 1110 of 3, 1111 of 4
            needed = 4
            if lead < 0xE0:
                needed = 2
            elif lead < 0xF0:
                needed = 3
            return data if needed == back else data[:-back]
    return data
