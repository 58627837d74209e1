"""Frames as the tables of the page: formatted cells, sort keys, what is the same in every row said once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis import labels
from analysis.page.columns import Column


@dataclass(frozen=True)
class Cell:
    """One formatted value with what it sorts by; the key is empty for null, which sorts last."""

    text: str
    sort: str


@dataclass(frozen=True)
class Table:
    """A table ready for the template.

    ``same`` lists the settings that are equal in every row and have no column of their own; ``fixed`` has
    their values as text. ``rows`` stand in the page, the page's script adds those of ``rest`` (JSON), and
    ``left_out`` are in neither.
    """

    name: str
    headings: list[Column]
    rows: list[list[Cell]]
    same: list[str]
    fixed: dict[str, str]
    rest: str
    left_out: int


ROWS_AT_ONCE = 200
"""Rows that stand in the page itself; a script shows the others as they are asked for."""
ROWS_MOST = 2_500
"""Rows of a table in a page; beyond, a page would grow past a few MB, and ``--csv`` has them all."""

NUMBERS = {
    "count",
    "setting",
    "figure",
    "percent",
    "points",
    "milliseconds",
    "mebibytes",
    "gigabytes",
    "interval",
}
"""The formats that are aligned right and sort as numbers."""


def table(name: str, frame: pl.DataFrame, columns: Sequence[Column]) -> Table:
    """A frame as a page's table. Settings that do not vary over two rows or more become one line above it."""
    present = [column for column in columns if column.key in frame.columns]
    constant = [column for column in present if _is_constant(frame, column)]
    shown = [column for column in present if column not in constant]
    rows = [[_cell(column, row) for column in shown] for row in frame.head(ROWS_MOST).iter_rows(named=True)]

    known = {column: frame[column.key].drop_nulls().to_list() for column in constant}
    values = {column: labels.FORMATS[column.form](known[column][0]) for column in constant if known[column]}
    fixed = {column.key: value for column, value in values.items()}
    same = [f"{column.label} {value}" for column, value in values.items()]
    left_out = frame.height - len(rows)
    return Table(name, shown, rows[:ROWS_AT_ONCE], same, fixed, _packed(rows[ROWS_AT_ONCE:]), left_out)


def _is_constant(frame: pl.DataFrame, column: Column) -> bool:
    """Whether a column is a setting that has one value, or none, in several rows."""
    return column.setting and frame.height > 1 and frame[column.key].drop_nulls().n_unique() <= 1


def _packed(rows: list[list[Cell]]) -> str:
    """Rows as the page's script takes them: of each cell its text, and what it sorts by if that differs."""
    texts = [
        [cell.text if cell.text == cell.sort else [cell.text, cell.sort] for cell in row] for row in rows
    ]
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":"))


def _cell(column: Column, row: labels.Row) -> Cell:
    value = row[column.key]
    if column.form == "interval":
        return Cell(labels.interval(value, row[column.upper]), _sort_key(column, value))

    text = labels.FORMATS[column.form](value)
    if column.key in ("model_revision", "dataset_fingerprint"):
        text = text[:12]
    return Cell(text, _sort_key(column, value, text))


def _sort_key(column: Column, value: float | str | None, text: str = "") -> str:
    """What a cell sorts by: enough digits of a number to sort by and to save, or its text."""
    if value is None:
        return ""
    return f"{value:.9g}" if column.form in NUMBERS else text
