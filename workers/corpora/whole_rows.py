"""Rows of CSV and of JSON lists, files that can only be read from their start:
each is read whole, when its turn comes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.corpora.columns import Column
from workers.corpora.compressed import EXPANDED, expanded
from workers.corpora.entry import CorpusError, shown_path
from workers.corpora.files import SourceFile
from workers.corpora.line_rows import LOOKED, kinds_in_words
from workers.corpora.rows import COUNTED, Block, Row, RowSource, first_numbers
from workers.corpora.text_rule import decoded, without_mark
from workers.corpora.values import MISSING, value_kind


@dataclass(frozen=True)
class WholeFile:
    """All rows of one file."""

    file: SourceFile
    column: str
    first_number: int

    def rows(self) -> Sequence[Row]:
        """The column of each; MISSING where one object of a JSON list lacks it that others of the list have.

        Raises CorpusError where no row has it: a header without it, or a list of other things.
        """
        records_of_file = records(self.file)
        if records_of_file and not any(self.column in row for row in records_of_file):
            raise CorpusError(
                f"{shown_path(self.file.path)} has no column {self.column!r}, which other files have"
            )
        return [
            Row(self.first_number + i, row.get(self.column, MISSING)) for i, row in enumerate(records_of_file)
        ]


def whole_source(files: Sequence[SourceFile], dataset: str) -> RowSource:
    """Rows of CSV files or JSON lists. Raises CorpusError where one is too large, damaged, or has no rows."""
    first = records(files[0])
    if not first:
        raise CorpusError(f"dataset {dataset!r} holds no rows")
    counted = sum(file.size for file in files) <= COUNTED
    counts = [len(first), *(len(records(file)) for file in files[1:])] if counted or len(files) == 1 else None
    numbers = first_numbers(counts, len(files))

    def blocks_of(column: str) -> list[Block]:
        return [WholeFile(file, column, number) for file, number in zip(files, numbers, strict=True)]

    others = ((file, _columns(records(file))) for file in files[1:])
    return RowSource(_columns(first), blocks_of, None if counts is None else sum(counts), others)


def _columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The keys of the first rows, and whether they hold texts."""
    kinds: dict[str, set[str]] = {}
    for row in rows[:LOOKED]:
        for key, value in row.items():
            kinds.setdefault(key, set()).add(value_kind(value))
    return [Column(key, kinds_in_words(kinds_of_key)) for key, kinds_of_key in kinds.items()]


def records(file: SourceFile) -> Sequence[dict[str, Any]]:
    """The rows of one file by column."""
    if file.size > EXPANDED:
        raise _too_large(file)
    data, whole = expanded(file.path) if file.compressed else (file.path.read_bytes(), True)
    if not whole:
        raise _too_large(file)
    text = decoded(without_mark(data, shown_path(file.path)), shown_path(file.path))
    return _csv(text, file) if file.kind == "csv" else _json(text, file)


def _too_large(file: SourceFile) -> CorpusError:
    return CorpusError(
        f"{shown_path(file.path)} holds more than {EXPANDED // 10**6} MB, and of {file.kind.upper()} only "
        "whole files can be read; make it Parquet or JSON lines, of which rows are read where they are needed"
    )


def _csv(text: str, file: SourceFile) -> list[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    usual = csv.field_size_limit(EXPANDED)

    try:
        header = next(reader, [])
        _check_header(header, file)
        for row in reader:
            if row and len(row) != len(header):
                place = f"{shown_path(file.path)}, line {reader.line_num}"
                raise CorpusError(
                    f"{place}: has {len(row)} fields and the header has {len(header)}; texts with commas or "
                    'line breaks stand in "quotes"'
                )
            rows += [dict(zip(header, row, strict=True))] if row else []
    except csv.Error as error:
        raise CorpusError(f"{shown_path(file.path)}, line {reader.line_num}: is no CSV ({error})") from None
    finally:
        csv.field_size_limit(usual)  # it is the process's, and others read tables in it

    return rows


def _check_header(header: Sequence[str], file: SourceFile) -> None:
    place = shown_path(file.path)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise CorpusError(
            f"{place}: its header names {', '.join(map(repr, twice))} more than once; rename one of them"
        )
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise CorpusError(
                f"{place}: its columns are separated by {name}, and only commas are read; write it with "
                "commas"
            )


def _json(text: str, file: SourceFile) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise CorpusError(f"{shown_path(file.path)}: is no JSON ({reason})") from None
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise CorpusError(
                f"{shown_path(file.path)}: item {i} of its list is no object; rows are objects, like "
                '{"text": "..."}'
            )
    return rows
