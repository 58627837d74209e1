"""Files of rows, block by block: each is read for itself, so that only those that are needed are read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from workers.corpora.columns import Column, text_column
from workers.corpora.compressed import expanded
from workers.corpora.entry import shown_path
from workers.corpora.files import SourceFile
from workers.corpora.line_rows import line_source
from workers.corpora.rows import Block, RowSource
from workers.corpora.whole_rows import whole_source

LOOKED_FILES = 100
"""Files in which a column is looked for that the first one lacks."""


def row_blocks(
    files: Sequence[SourceFile], column: str | None, dataset: str
) -> tuple[str, Sequence[Block], int | None]:
    """The column of text, its blocks, and how many rows there are where that is known.

    Raises CorpusError where files cannot be read as what they are called, or no column can be told to be the
    text.
    """
    source = _source(files, dataset)
    columns = source.columns
    looked = 1
    if column is not None and column not in {each.name for each in columns}:
        columns, looked = _also_elsewhere(column, source)
    chosen = text_column(column, columns, dataset, _looked_at(files, looked))
    return chosen, source.blocks_of(chosen), source.rows


def _also_elsewhere(column: str, source: RowSource) -> tuple[Sequence[Column], int]:
    """The columns of the first file and one that a later one has, and at how many files was looked for it."""
    looked = 1
    for _, columns in itertools.islice(source.others, LOOKED_FILES - 1):
        looked += 1
        if named := [each for each in columns if each.name == column]:
            return [*source.columns, *named], looked
    return source.columns, looked


def _looked_at(files: Sequence[SourceFile], looked: int) -> str:
    """``the first rows of a.jsonl``, and of so many others."""
    others = ""
    if len(files) > 1:
        of = f"{looked - 1:,} of {len(files) - 1:,}" if looked < len(files) else f"{len(files) - 1:,}"
        others = f" and of {of} other {'file' if len(files) == 2 else 'files'}"
    return f"the first rows of {shown_path(files[0].name)}{others}"


def _source(files: Sequence[SourceFile], dataset: str) -> RowSource:
    kind = files[0].kind
    if kind == "parquet":
        from workers.corpora.parquet_rows import parquet_source  # pyarrow's reader takes long to import

        return parquet_source(files)
    if kind == "json lines" or (kind == "json" and not _is_array(files[0])):
        return line_source(files, dataset)
    return whole_source(files, dataset)


def _is_array(file: SourceFile) -> bool:
    """Whether a JSON file is one list;
    else it is read as one object per line, as files of this ending often are."""
    return _beginning(file, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _beginning(file: SourceFile, size: int) -> bytes:
    """The first bytes of what a file holds."""
    if file.compressed:
        return expanded(file.path, size)[0]
    with file.path.open("rb") as stream:
        return stream.read(size)
