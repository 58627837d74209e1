"""Files of rows, block by block: each block is read for itself, so that only those that are needed are
read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from workers.corpora.columns import Column, text_column
from workers.corpora.compressed import expanded
from workers.corpora.entry import shown_path
from workers.corpora.files import SourceFile

BLOCK = 4_000_000
"""Bytes of rows that are read at once, about."""
COUNTED = 8_000_000
"""Bytes of several compressed files, of CSV or JSON, up to which all are read in order to number their
rows."""
LOOKED_FILES = 100
"""Files in which a column is looked for that the first one lacks."""
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


def row_blocks(
    files: Sequence[SourceFile], column: str | None, dataset: str
) -> tuple[str, Sequence[Block], int | None]:
    """The column of text, its blocks, and how many rows there are where that is known.

    Raises CorpusError where files cannot be read as what they are called, or no column can be told to be the
    text.
    """
    source = _source(files, dataset)
    columns, looked = source.columns, 1
    if column is not None and column not in {own.name for own in columns}:
        columns, looked = _also_elsewhere(column, source)
    chosen = text_column(column, columns, dataset, _looked_at(files, looked))
    return chosen, source.blocks_of(chosen), source.rows


def _also_elsewhere(column: str, source: RowSource) -> tuple[Sequence[Column], int]:
    """The columns of the first file and one that a later one has, and at how many files was looked for it."""
    looked = 1
    for _, columns in itertools.islice(source.others, LOOKED_FILES - 1):
        looked += 1
        if found := [own for own in columns if own.name == column]:
            return [*source.columns, *found], looked
    return source.columns, looked


def _looked_at(files: Sequence[SourceFile], looked: int) -> str:
    """``the first rows of a.jsonl``, and of so many others."""
    others = ""
    if len(files) > 1:
        of = f"{looked - 1:,} of {len(files) - 1:,}" if looked < len(files) else f"{len(files) - 1:,}"
        others = f" and of {of} other {'file' if len(files) == 2 else 'files'}"
    return f"the first rows of {shown_path(files[0].name)}{others}"


def _source(files: Sequence[SourceFile], dataset: str) -> RowSource:
    from workers.corpora.line_rows import line_source
    from workers.corpora.parquet_rows import parquet_source
    from workers.corpora.whole_rows import whole_source

    kind = files[0].kind
    if kind == "parquet":
        return parquet_source(files)
    if kind == "json lines" or (kind == "json" and not _is_array(files[0])):
        return line_source(files, dataset)
    return whole_source(files, dataset)


def _is_array(file: SourceFile) -> bool:
    """Whether a JSON file is one list; else it is read as one object per line, as files of this ending often
    are."""
    return beginning(file, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def beginning(file: SourceFile, size: int) -> bytes:
    """The first bytes of what a file holds."""
    if file.compressed:
        return expanded(file.path, size)[0]
    with file.path.open("rb") as stream:
        return stream.read(size)


def first_numbers(counts: Iterable[int] | None, files: int) -> list[int]:
    """The number of each file's first row, from the rows of each; where those are not counted, file number
    times 2^40."""
    if counts is None:
        return [number << UNCOUNTED for number in range(files)]
    numbers = [0]
    for count in counts:
        numbers.append(numbers[-1] + count)
    return numbers[:-1]
