"""A CSV file of anybody's as lines of cells: what separates them, and on which line each row begins."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

SEPARATORS = (",", ";", "\t")
MAX_BYTES = 256 * 2**20
SHOWN = 60
"""Characters of somebody's text in a message."""

EXCEL = re.compile(r'"?sep=(?P<separator>.)"?[,;\t ]*\r?(\n|$)', re.IGNORECASE)
"""A first line that tells spreadsheets what separates the columns."""


class TableError(ValueError):
    """A file that cannot be audited. The message says why and what is allowed."""


@dataclass(frozen=True)
class CsvRow:
    """The cells of a row, and the line of the file on which it begins."""

    line: int
    cells: list[str]


def read_rows(path: str) -> tuple[CsvRow, list[CsvRow]]:
    """The heading and the rows. Lines of empty cells are left out.

    The separator is the one that a first line ``sep=;`` gives,
    or of which the heading has most. Raises TableError.
    """
    text = _text(path)
    said = EXCEL.match(text)
    if said:
        text, separator = text[said.end() :], said["separator"]
        if separator not in SEPARATORS:
            raise TableError(
                f"{path}: its columns are separated by {separator!r}; use a comma, a semicolon or a tab"
            )
    else:
        heading = next((line for line in text.split("\n") if line.strip("".join(SEPARATORS) + " \r")), "")
        separator = max(SEPARATORS, key=heading.count)

    rows = _parsed(path, text, separator, lines_before=1 if said else 0)
    if not rows:
        raise TableError(f"{path}: is no readable CSV file (it is empty)")
    return rows[0], rows[1:]


def _parsed(path: str, text: str, separator: str, lines_before: int) -> list[CsvRow]:
    rows = []
    line = lines_before + 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(CsvRow(line, cells))
            line = lines_before + reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}: is no readable CSV file (line {line}: {error})") from error
    return rows


def _text(path: str) -> str:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise TableError(f"{path}: is no readable CSV file (it is a folder, a pipe or a device)")
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / 2**20:,.0f} MiB, {MAX_BYTES / 2**20:g} at most"
            raise TableError(f"{path}: is no readable CSV file ({size})")
        return Path(path).read_text(encoding="utf-8-sig")

    except TableError:
        raise
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path}: is no readable CSV file (not UTF-8 text, byte {error.start}); save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TableError(f"{path}: is no readable CSV file ({reason})") from error


def excerpt(text: str) -> str:
    """Somebody's text as it can stand in a message: printable, ``SHOWN`` characters at most."""
    plain = "".join(c if c.isprintable() else "�" for c in text[:SHOWN])
    return plain + ("..." if len(text) > SHOWN else "")
