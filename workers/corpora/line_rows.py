"""Rows of JSON lines: one object per line.
A file is read in blocks of bytes, whose lines are found where they begin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workers.corpora.columns import Column
from workers.corpora.compressed import expanded
from workers.corpora.entry import CorpusError, shown_path
from workers.corpora.files import HASHED, SourceFile
from workers.corpora.rows import BLOCK, COUNTED, Block, Row, RowSource, first_numbers
from workers.corpora.text_rule import decoded, without_mark
from workers.corpora.values import MISSING, WORDS, value_kind

LONGEST_LINE = 64_000_000
"""Bytes of a line at most."""
LOOKED = 1000
"""Rows whose keys are taken for the columns."""


@dataclass(frozen=True)
class LineBlock:
    """The lines that begin in one stretch of a file."""

    file: SourceFile
    start: int
    """First byte of the stretch; the lines that begin in it may end behind it."""
    end: int
    column: str
    first_number: int
    """Of the file's first row."""
    lines_before: int | None
    """Lines that begin before the stretch;
    None where they are not counted, and a row's number is its first byte."""

    def rows(self) -> Sequence[Row]:
        """The column of each line that is not blank."""
        return [Row(number, row.get(self.column, MISSING)) for number, row in self.objects()]

    def objects(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Rows' numbers and rows.
        Raises CorpusError for a line that is no JSON object, with the file and the line."""
        data, at = _lines(self.file, self.start, self.end)
        if at == 0:
            whole = len(data)
            data = without_mark(data, shown_path(self.file.path))
            at = whole - len(data)

        line_number = self.lines_before
        for line in data.split(b"\n"):
            number = at if line_number is None else line_number
            if line.strip():
                line_name = f"the line at byte {at}" if line_number is None else f"line {number + 1}"
                place = f"{shown_path(self.file.path)}, {line_name}"
                yield self.first_number + number, _parsed(line, place, at)
            at += len(line) + 1
            line_number = None if line_number is None else line_number + 1


def line_source(files: Sequence[SourceFile], dataset: str) -> RowSource:
    """Rows of files of JSON lines. Raises CorpusError where none holds a row."""
    counts = _line_counts(files)
    numbers = first_numbers(None if counts is None else [count[-1] for count in counts], len(files))

    def blocks_of(column: str) -> list[Block]:
        return [block for i, file in enumerate(files) for block in blocks(i, file, column)]

    def blocks(i: int, file: SourceFile, column: str) -> Iterator[LineBlock]:
        step = max(1, file.size) if file.compressed else BLOCK
        for place, start in enumerate(range(0, max(1, file.size), step)):
            before = 0 if file.compressed else None
            if counts is not None:
                before = counts[i][place]
            yield LineBlock(file, start, start + step, column, numbers[i], before)

    columns = _columns(block for i, file in enumerate(files) for block in blocks(i, file, ""))
    if not columns:
        raise CorpusError(f"dataset {dataset!r} holds no rows")
    others = ((file, _columns(blocks(i, file, ""))) for i, file in enumerate(files) if i)
    return RowSource(
        columns, blocks_of, None if counts is None else sum(count[-1] for count in counts), others
    )


def _lines(file: SourceFile, start: int, end: int) -> tuple[bytes, int]:
    """The lines that begin in ``[start, end)`` of a file, and the byte at which they do. Of a compressed one
    all."""
    if file.compressed:
        data, whole = expanded(file.path)
        if not whole and b"\n" not in data:
            raise _too_long(file)
        return (data if whole else data[: data.rfind(b"\n") + 1]), 0

    with file.path.open("rb") as stream:
        stream.seek(max(0, start - 1))
        first = start if start == 0 else start - 1 + len(_line(stream, file))
        if first >= end:
            return b"", first
        stream.seek(first)
        body = stream.read(end - first)
        return body + (b"" if body.endswith(b"\n") else _line(stream, file)), first


def _line(stream: object, file: SourceFile) -> bytes:
    """The rest of a line, its end included."""
    line: bytes = stream.readline(LONGEST_LINE + 1)  # pyright: ignore[reportAttributeAccessIssue]
    if len(line) > LONGEST_LINE:
        raise _too_long(file)
    return line


def _too_long(file: SourceFile) -> CorpusError:
    return CorpusError(
        f"{shown_path(file.path)}: a line is longer than {LONGEST_LINE:,} bytes; it does not look like JSON "
        "lines"
    )


def _parsed(line: bytes, place: str, at: int) -> dict[str, object]:
    text = decoded(line, place, at)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error).split(":")[0]
        raise CorpusError(
            f'{place}: is no JSON ({reason}); each line is one object, like {{"text": "..."}}'
        ) from None
    if not isinstance(row, dict):
        raise CorpusError(
            f'{place}: is no object but {_named(row)}; each line is one object, like {{"text": "..."}}'
        )
    return row


def _named(value: object) -> str:
    kind = value_kind(value)
    return "a text" if kind in ("text", "empty") else WORDS[kind]


def _line_counts(files: Sequence[SourceFile]) -> list[list[int]] | None:
    """Per file the lines that begin before each block, and last how many there are;
    None where they are not counted.

    Files of which the fingerprint is that of all bytes are counted; of several compressed ones only small
    ones.
    """
    compressed = any(file.compressed for file in files)
    if sum(file.size for file in files) > (COUNTED if compressed else HASHED):
        return None
    return [_counts_compressed(file) if file.compressed else _counts(file) for file in files]


def _counts_compressed(file: SourceFile) -> list[int]:
    data, _ = _lines(file, 0, 0)
    return [0, data.count(b"\n") + (not data.endswith(b"\n"))]


def _counts(file: SourceFile) -> list[int]:
    counts = []
    ends = 0
    ended = True
    with file.path.open("rb") as stream:
        while part := stream.read(BLOCK):
            counts.append(ends + (not ended))
            ends += part.count(b"\n")
            ended = part.endswith(b"\n")
    return [*(counts or [0]), ends + (not ended)]


def _columns(blocks: Iterator[LineBlock]) -> list[Column]:
    """The keys of the first rows, in the order in which they come, and whether they hold texts."""
    kinds: dict[str, set[str]] = {}
    looked = 0
    for block in blocks:
        for _, row in block.objects():
            for key, value in row.items():
                kinds.setdefault(key, set()).add(value_kind(value))
            looked += 1
            if looked == LOOKED:
                break
        if looked:
            break
    return [Column(key, kinds_in_words(kinds_of_key)) for key, kinds_of_key in kinds.items()]


def kinds_in_words(kinds: set[str]) -> str:
    """``text`` where some value is, or none tells; else what they are in words."""
    telling = kinds - {"null", "empty"}
    if "text" in telling or not telling:
        return "text"
    plural = {
        "list": "lists",
        "object": "objects",
        "number": "numbers",
        "boolean": "true and false",
        "other": "other things",
    }
    return " and ".join(plural[kind] for kind in sorted(telling))
