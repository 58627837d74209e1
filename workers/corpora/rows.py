"""What rows of a dataset are, whatever files they lie in: blocks that are each read for themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from workers.corpora.columns import Column
from workers.corpora.files import SourceFile

BLOCK = 4_000_000
"""Bytes of rows that are read at once, about."""
COUNTED = 8_000_000
"""Bytes of several compressed files, of CSV or JSON, up to which all are read to number their rows."""
UNCOUNTED = 40
"""Bits of a row's number that are its place in a file where the rows of the files before are not counted."""


class Row(NamedTuple):
    """A row's number in the dataset, and what its column of text holds."""

    number: int
    value: object


class Block(Protocol):
    """Neighbouring rows that are read together."""

    def rows(self) -> Sequence[Row]:
        """All of them. Raises CorpusError where they cannot be read."""
        ...


@dataclass(frozen=True)
class RowSource:
    """The rows of some files."""

    columns: Sequence[Column]
    blocks_of: Callable[[str], Sequence[Block]]
    """A column's blocks."""
    rows: int | None = None
    """How many there are; None where that was not counted."""
    others: Iterable[tuple[SourceFile, Sequence[Column]]] = ()
    """The columns of the files but the first, each read when its turn comes."""


def first_numbers(counts: Iterable[int] | None, files: int) -> list[int]:
    """The number of each file's first row, from the rows of each;
    where those are not counted, file number times 2^40."""
    if counts is None:
        return [number << UNCOUNTED for number in range(files)]
    numbers = [0]
    for count in counts:
        numbers.append(numbers[-1] + count)
    return numbers[:-1]
