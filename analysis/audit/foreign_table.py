"""Anybody's table of results as a frame: the columns that are known, with figures in units of ours."""

from __future__ import annotations

import polars as pl

from analysis.audit.foreign_columns import TEXTS, TIMES, Heading, known_columns, without_units
from analysis.audit.foreign_csv import CsvRow, TableError, excerpt, read_rows
from analysis.audit.foreign_numbers import UNITS, NumberError, WrittenFigure, decimal_mark, number

RESULTS = ("ppl", "ttft", "total", "cache_tokens", "samples")
"""At least one of them makes a table one of results."""

DENSE = ("dense", "baseline", "none", "full", "full_cache", "no_pruning", "uncompressed")
"""What a policy that prunes nothing is called."""

LINE = "line"
"""The column of the lines on which rows begin."""

RATIO_RULE = "keep_ratio must be above 0 and at most 1"


def read_table(path: str) -> pl.DataFrame:
    """The known columns of a CSV file under their names here, with
    ``line`` and ``dense``: whether a row is the baseline's.

    Columns are separated by commas, semicolons or tabs. Figures may have decimal commas, marks between
    thousands and times in milliseconds (in the heading, or a row of units below it), and keep_ratio may be in
    per cent: one spelling for the whole file, seconds and shares come out. Raises TableError.
    """
    heading, rows = read_rows(path)
    known = known_columns(path, heading.cells)
    if not set(RESULTS) & set(known):
        raise TableError(
            f"{path}: none of its columns ({excerpt(', '.join(heading.cells))}) holds a known figure; "
            f"give at least one of {', '.join(RESULTS)}, with a comma, a semicolon or a tab between columns"
        )
    known, rows = without_units(path, known, rows)
    _refuse_rows(path, heading, rows)

    texts = {name: column for name, column in known.items() if name in TEXTS}
    columns: dict[str, list[str] | list[float | None]] = {
        name: [row.cells[column.at].strip() for row in rows] for name, column in texts.items()
    }
    columns |= _figures(path, {name: known[name] for name in known if name not in TEXTS}, rows)
    schema = {name: pl.String if name in TEXTS else pl.Float64 for name in known}
    frame = pl.DataFrame({name: columns[name] for name in known}, schema=schema)
    lines = pl.Series(LINE, [row.line for row in rows], pl.UInt32)
    return frame.insert_column(0, lines).with_columns(_is_dense(frame))


def _refuse_rows(path: str, heading: CsvRow, rows: list[CsvRow]) -> None:
    """Raises TableError where there are none, or one has more or fewer cells than the heading."""
    if not rows:
        raise TableError(f"{path}: has a heading and no rows: there is nothing to audit")
    for row in rows:
        if len(row.cells) != len(heading.cells):
            raise TableError(
                f"{path}: line {row.line} has {len(row.cells)} columns and the heading {len(heading.cells)}; "
                "a figure with a comma in a file of commas is written in quotes"
            )


def _figures(path: str, known: dict[str, Heading], rows: list[CsvRow]) -> dict[str, list[float | None]]:
    """Name -> figures: shares, seconds, counts."""
    written = {
        name: [WrittenFigure.of(row.line, row.cells[column.at]) for row in rows]
        for name, column in known.items()
    }
    try:
        mark = decimal_mark(figure for column in written.values() for figure in column)
    except NumberError as error:
        raise TableError(f"{path}: {error}") from None

    columns = {}
    for name, figures in written.items():
        unit = known[name].unit
        values = [_figure(path, name, figure, mark) for figure in figures]
        if name == "keep_ratio":
            values = _shares(path, figures, values, is_per_cent=unit not in (None, "", "-", "keep_ratio"))
        elif name in TIMES and unit:
            values = [None if value is None else value * UNITS[unit] for value in values]
        columns[name] = values
    return columns


def _figure(path: str, name: str, written: WrittenFigure, mark: str) -> float | None:
    shown = excerpt(written.text + ("%" if written.in_per_cent else ""))
    if written.in_per_cent and name != "keep_ratio":
        raise TableError(
            f"{path}: {name} {shown!r} is a share in per cent (line {written.line}); give the figure itself"
        )
    try:
        return number(written, mark)
    except NumberError as error:
        raise TableError(f"{path}: {name} {shown!r} {error} (line {written.line})") from None


def _shares(
    path: str, figures: list[WrittenFigure], values: list[float | None], *, is_per_cent: bool
) -> list[float | None]:
    """keep_ratio as shares. A column of bare figures above 1 is in per cent; one that has both kinds is not
    to be told."""
    all_per_cent = is_per_cent or _above_one(path, figures, values)
    shares = [
        value / 100 if value is not None and (written.in_per_cent or all_per_cent) else value
        for written, value in zip(figures, values, strict=True)
    ]

    for written, share in zip(figures, shares, strict=True):
        if share is not None and not 0 < share <= 1:
            hint = "; is it the share that is dropped? take it from 1" if share == 0 else ""
            raise TableError(f"{path}: {RATIO_RULE} (line {written.line}: {share:g}){hint}")
    return shares


def _above_one(path: str, figures: list[WrittenFigure], values: list[float | None]) -> bool:
    """Whether figures without a sign of per cent are above 1. Raises TableError where only some are."""
    bare = [
        (written, value)
        for written, value in zip(figures, values, strict=True)
        if value is not None and not written.in_per_cent
    ]
    above = [(written, value) for written, value in bare if 1 < value <= 100]
    below = [written for written, value in bare if 0 < value <= 1]

    if above and below:
        (high, ratio), low = above[0], below[0]
        raise TableError(
            f"{path}: {RATIO_RULE} (line {high.line}: {ratio:g}), or all of the column in per cent, "
            f"and line {low.line} has {excerpt(low.text)}"
        )
    return bool(above)


def _is_dense(frame: pl.DataFrame) -> pl.Expr:
    """Rows of the baseline: keep_ratio 1, or a policy called so."""
    dense = pl.lit(False)
    if "keep_ratio" in frame.columns:
        dense = dense | (pl.col("keep_ratio") == 1)
    if "policy" in frame.columns:
        dense = dense | pl.col("policy").str.to_lowercase().str.replace_all("[ -]", "_").is_in(DENSE)
    return dense.fill_null(False).alias("dense")
