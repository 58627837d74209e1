"""Rows of Parquet files, of which only the column of text is read, a part of a row group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.corpora.columns import Column
from workers.corpora.entry import CorpusError, shown_path
from workers.corpora.files import SourceFile
from workers.corpora.rows import BLOCK, Block, Row, RowSource, first_numbers

BATCH = 256
"""Rows that are decoded at once."""
BUFFER = 1 << 20
"""Bytes of a file that are held while it is decoded."""


@dataclass(frozen=True)
class ParquetBlock:
    """``count`` rows of a row group from its row ``skipped`` on."""

    path: Path
    group: int
    column: str
    skipped: int
    count: int
    first_number: int

    def rows(self) -> Sequence[Row]:
        """Their values; what lies before them in the row group is decoded and let go."""
        read: list[Row] = []
        passed = 0
        last = self.skipped + self.count

        try:
            with pq.ParquetFile(self.path, buffer_size=BUFFER, pre_buffer=False) as file:
                for batch in file.iter_batches(
                    BATCH, row_groups=[self.group], columns=[self.column], use_threads=False
                ):
                    if passed >= last:
                        break
                    begin = max(passed, self.skipped)
                    inside = batch.slice(max(0, self.skipped - passed), max(0, last - begin))
                    first = self.first_number + begin - self.skipped
                    read += [Row(first + i, value) for i, value in enumerate(inside.column(0).to_pylist())]
                    passed += batch.num_rows
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise _broken(self.path, error) from None

        return read


def parquet_source(files: Sequence[SourceFile]) -> RowSource:
    """Rows of files, whose footers alone are read here. Raises CorpusError where one is no Parquet file or
    lacks the column."""
    footers = [_footer(file) for file in files]
    numbers = first_numbers((footer.num_rows for footer in footers), len(files))

    columns = [_columns(footer) for footer in footers]

    def blocks_of(column: str) -> list[Block]:
        blocks: list[Block] = []
        for file, footer, number in zip(files, footers, numbers, strict=True):
            if column not in footer.schema.to_arrow_schema().names:
                raise CorpusError(f"{shown_path(file.path)} has no column {column!r}, which other files have")
            blocks += _blocks(file.path, footer, column, number)
        return blocks

    others = zip(files[1:], columns[1:], strict=True)
    return RowSource(columns[0], blocks_of, sum(footer.num_rows for footer in footers), others)


def _columns(footer: Any) -> list[Column]:
    return [Column(field.name, _kind(field.type)) for field in footer.schema.to_arrow_schema()]


def _footer(file: SourceFile) -> Any:
    if file.compressed:
        raise CorpusError(
            f"{shown_path(file.path)}: Parquet files are compressed inside; expand this one first"
        )
    try:
        return pq.read_metadata(file.path)
    except (OSError, pa.ArrowException) as error:
        raise _broken(file.path, error) from None


def _broken(path: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{shown_path(path)} cannot be read as Parquet ({' '.join(str(error).split())[:120]})")


def _blocks(path: Path, footer: Any, column: str, first_number: int) -> list[Block]:
    """Row groups, those of long texts in parts of about ``BLOCK`` bytes."""
    blocks: list[Block] = []
    for group in range(footer.num_row_groups):
        described = footer.row_group(group)
        chunks = (described.column(i) for i in range(described.num_columns))
        size = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column
        )
        step = max(1, described.num_rows * BLOCK // max(size, BLOCK))

        for start in range(0, described.num_rows, step):
            count = min(step, described.num_rows - start)
            blocks.append(ParquetBlock(path, group, column, start, count, first_number + start))
        first_number += described.num_rows
    return blocks


def _kind(type_: Any) -> str:
    """``text``, or what a column holds in words."""
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value):
        return "text"
    if pa.types.is_nested(value):
        return "objects" if pa.types.is_struct(value) else "lists"
    if pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_decimal(value):
        return "numbers"
    return "nothing" if pa.types.is_null(value) else str(value)
