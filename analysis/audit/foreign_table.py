"""Anybody's table of results as a frame: which columns are known, and what their figures may be."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from analysis.audit.foreign_numbers import NOTHING, UNITS, Cell, NumberError, decimal_mark, figure

COLUMNS = {
    "model": ("model", "model_name"),
    "dataset": ("dataset", "data", "text"),
    "policy": ("policy", "method", "name", "config"),
    "keep_ratio": ("keep_ratio", "ratio", "keep"),
    "prune_after": ("prune_after", "threshold"),
    "ppl": ("ppl", "perplexity"),
    "ttft": ("ttft", "ttft_seconds", "ttft_s", "time_to_first_token"),
    "total": ("total", "total_seconds", "total_time", "total_s"),
    "cache_tokens": ("cache_tokens", "cache_length", "kv_length", "cache_size"),
    "tokens": ("tokens", "evaluated_tokens", "eval_tokens", "num_tokens"),
    "samples": ("samples", "n", "runs", "repeats", "num_samples"),
}
"""What a table may hold, and the headings by which it is recognised (case, spaces and hyphens do not
matter)."""

TEXTS = ("model", "dataset", "policy")
FIGURES = ("ppl", "ttft", "total", "cache_tokens", "samples")
"""At least one of them makes a table one of results."""

TIMES = ("ttft", "total")

SEPARATORS = (",", ";", "\t")
MAX_BYTES = 256 * 2**20
SHOWN = 60
"""Characters of somebody's text in a message."""

SPREADS = (
    "std", "sd", "stdev", "std dev", "std. dev.", "standard deviation", "var", "variance", "se", "sem",
    "stderr", "std err", "standard error", "ci", "95% ci", "95 % ci", "iqr", "±", "+/-", "error",
)  # fmt: skip
"""In brackets behind a heading: a column of these says how far figures lie apart and is none of them."""

UNIT_LIKE = re.compile(
    r"[a-zµμ]?s|([a-zµμ]+)?secs?\.?|([a-z]+)?seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|weeks?"
    r"|cycles?|ticks?|frames?"
    r"|nats?|bits?|bytes?|[kmg]i?b|bp[bc]|log|log ?2|log ?10|ln|k|thousands?|millions?"
    r"|[x×*]?\s*1(0|e)[\^*e]*\s*[-+−]?\d+|%( .*)?|per ?cent.*"
)
"""What in brackets says what a figure counts. Anything else there is a remark, like (lower is better) or
(wikitext-2)."""

SHARE_LIKE = re.compile(r".*/.*|per .*|(share|fraction|ratio).*|tokens|steps")
"""What a time is not in seconds of, beside those."""

EXCEL = re.compile(r'"?sep=(?P<separator>.)"?[,;\t ]*\r?(\n|$)', re.IGNORECASE)
"""A first line that tells spreadsheets what separates the columns."""

DENSE = ("dense", "baseline", "none", "full", "full_cache", "no_pruning", "uncompressed")
"""What a policy that prunes nothing is called."""

LINE = "line"


class TableError(ValueError):
    """A file that cannot be audited. The message says why and what is allowed."""


@dataclass(frozen=True)
class _Heading:
    """A column that is known: where it stands, and the unit that its heading gives."""

    at: int
    written: str
    unit: str | None


@dataclass(frozen=True)
class _Row:
    line: int
    cells: list[str]


def read_table(path: str) -> pl.DataFrame:
    """The known columns of a CSV file under their names here, with ``line`` and ``dense``: whether a row is
    the baseline's.

    Columns are separated by commas, semicolons or tabs. Figures may have decimal commas, marks between
    thousands and times in milliseconds (in the heading, or a row of units below it), and keep_ratio may be in
    per cent: one spelling for the whole file, seconds and shares come out. Raises TableError.
    """
    heading, rows = _rows(path)
    known = _known(path, heading.cells)
    if not set(FIGURES) & set(known):
        raise TableError(
            f"{path}: none of its columns ({_short(', '.join(heading.cells))}) holds a known figure; "
            f"give at least one of {', '.join(FIGURES)}, with a comma, a semicolon or a tab between columns"
        )
    known, rows = _without_units(path, known, rows)
    if not rows:
        raise TableError(f"{path}: has a heading and no rows: there is nothing to audit")
    for row in rows:
        if len(row.cells) != len(heading.cells):
            raise TableError(
                f"{path}: line {row.line} has {len(row.cells)} columns and the heading {len(heading.cells)}; "
                "a figure with a comma in a file of commas is written in quotes"
            )

    columns: dict[str, list[str] | list[float | None]] = {
        name: [row.cells[known[name].at].strip() for row in rows] for name in known if name in TEXTS
    }
    columns |= _figures(path, {name: column for name, column in known.items() if name not in TEXTS}, rows)
    schema = {name: pl.String if name in TEXTS else pl.Float64 for name in known}
    frame = pl.DataFrame({name: columns[name] for name in known}, schema=schema)
    return frame.insert_column(0, pl.Series(LINE, [row.line for row in rows], pl.UInt32)).with_columns(
        _is_dense(frame)
    )


def _rows(path: str) -> tuple[_Row, list[_Row]]:
    """The heading and the rows, with the line on which each begins.

    The separator is the one that a first line ``sep=;`` gives, or of which the heading has most.
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

    before = 1 if said else 0
    rows, line = [], 1 + before
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(_Row(line, cells))
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}: is no readable CSV file (line {line}: {error})") from error
    if not rows:
        raise TableError(f"{path}: is no readable CSV file (it is empty)")
    return rows[0], rows[1:]


def _text(path: str) -> str:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise TableError(f"{path}: is no readable CSV file (it is a folder, a pipe or a device)")
        if status.st_size > MAX_BYTES:
            raise TableError(
                f"{path}: is no readable CSV file ({status.st_size / 2**20:,.0f} MiB, "
                f"{MAX_BYTES / 2**20:g} at most)"
            )
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


def _known(path: str, headings: list[str]) -> dict[str, _Heading]:
    """Name -> its column. Of two columns that may name the same thing in words the first; two of the same
    figure are refused."""
    found: dict[str, _Heading] = {}
    for at, heading in enumerate(headings):
        bare, remarks = _remarks_in(heading)
        plain = re.sub(r"[ -]+", "_", bare.strip().lower())
        if not remarks and plain.endswith("_ms"):
            plain, remarks = plain.removesuffix("_ms"), ["ms"]
        name = next((name for name, spellings in COLUMNS.items() if plain in spellings), None)
        if name is None or (name in found and name in TEXTS) or any(remark in SPREADS for remark in remarks):
            continue
        if name in found:
            raise TableError(
                f"{path}: columns {found[name].written!r} and {_short(heading)!r} both are {name}; "
                "leave one out"
            )
        found[name] = _Heading(at, _short(heading.strip()), _unit(path, name, remarks))
    return found


def _remarks_in(heading: str) -> tuple[str, list[str]]:
    """``TTFT (mean, ms)`` -> TTFT, and mean and ms."""
    remarks: list[str] = []
    bare = heading.strip()
    while found := re.fullmatch(r"(.*?)\s*[(\[]([^()\[\]]*)[)\]]", bare, re.DOTALL):
        bare = found[1]
        remarks = [part.strip().lower().removeprefix("in ") for part in re.split("[,;]", found[2])] + remarks
    return bare, remarks


def _unit(path: str, name: str, remarks: list[str]) -> str | None:
    """The one that stands in a heading's brackets; None where there is none. Raises TableError for one that
    is not known."""
    if name in TEXTS:
        return None
    units = [remark for remark in remarks if remark and _fits(name, remark)]
    looks = [UNIT_LIKE, SHARE_LIKE] if name in TIMES else [UNIT_LIKE]
    strange = [
        remark for remark in remarks if remark not in units and any(look.fullmatch(remark) for look in looks)
    ]
    if strange or len(set(units)) > 1:
        unknown = strange[0] if strange else ", ".join(units)
        raise TableError(
            f"{path}: the unit {_short(unknown)!r} of column {name} is not known; {_allowed(name)}"
        )
    return units[0] if units else None


def _fits(name: str, unit: str) -> bool:
    if name in TIMES:
        return unit in UNITS
    return unit in (
        "",
        "-",
        *({"keep_ratio": ("%", "per cent", "percent"), "cache_tokens": ("tokens",)}.get(name, ())),
        name,
    )


def _allowed(name: str) -> str:
    return (
        f"times are in {', '.join(UNITS)}"
        if name in TIMES
        else "give the figure itself, keep_ratio also in %"
    )


def _without_units(
    path: str, known: dict[str, _Heading], rows: list[_Row]
) -> tuple[dict[str, _Heading], list[_Row]]:
    """A row below the heading that holds units and no figure: its units, and the rows behind it."""
    first = rows[0].cells if rows else []
    said = {
        name: first[column.at].strip().lower().strip("()[]")
        for name, column in known.items()
        if column.at < len(first)
    }
    units = {name: unit for name, unit in said.items() if name not in TEXTS and unit}
    if not units or not all(unit not in NOTHING and _fits(name, unit) for name, unit in units.items()):
        return known, rows
    both = next((name for name in units if known[name].unit not in (None, units[name])), None)
    if both:
        raise TableError(
            f"{path}: column {both} is in {known[both].unit} by its heading and in {units[both]} by line "
            f"{rows[0].line}"
        )
    return {n: replace(column, unit=units.get(n, column.unit)) for n, column in known.items()}, rows[1:]


def _figures(path: str, known: dict[str, _Heading], rows: list[_Row]) -> dict[str, list[float | None]]:
    """Name -> figures: shares, seconds, counts."""
    cells = {
        name: [Cell.of(row.line, row.cells[column.at]) for row in rows] for name, column in known.items()
    }
    try:
        mark = decimal_mark(cell for column in cells.values() for cell in column)
    except NumberError as error:
        raise TableError(f"{path}: {error}") from None
    found = {}
    for name, column in cells.items():
        values = [_figure(path, name, cell, mark) for cell in column]
        if name == "keep_ratio":
            values = _shares(
                path, column, values, is_per_cent=known[name].unit not in (None, "", "-", "keep_ratio")
            )
        elif name in TIMES and (unit := known[name].unit):
            values = [None if value is None else value * UNITS[unit] for value in values]
        found[name] = values
    return found


def _figure(path: str, name: str, cell: Cell, mark: str) -> float | None:
    shown = _short(cell.text + ("%" if cell.in_per_cent else ""))
    if cell.in_per_cent and name != "keep_ratio":
        raise TableError(
            f"{path}: {name} {shown!r} is a share in per cent (line {cell.line}); give the figure itself"
        )
    try:
        return figure(cell, mark)
    except NumberError as error:
        raise TableError(f"{path}: {name} {shown!r} {error} (line {cell.line})") from None


def _shares(
    path: str, cells: list[Cell], values: list[float | None], *, is_per_cent: bool
) -> list[float | None]:
    """keep_ratio as shares. A column of bare figures above 1 is in per cent; one that has both kinds is not
    to be told."""
    bare = [
        (cell, value)
        for cell, value in zip(cells, values, strict=True)
        if value is not None and not cell.in_per_cent
    ]
    above = [(cell, value) for cell, value in bare if 1 < value <= 100]
    below = [(cell, value) for cell, value in bare if 0 < value <= 1]
    if above and below and not is_per_cent:
        (high, ratio), (low, _) = above[0], below[0]
        raise TableError(
            f"{path}: {RATIO_RULE} (line {high.line}: {ratio:g}), or all of the column in per cent, "
            f"and line {low.line} has {_short(low.text)}"
        )
    in_per_cent = is_per_cent or bool(above)
    found = [
        value / 100 if value is not None and (cell.in_per_cent or in_per_cent) else value
        for cell, value in zip(cells, values, strict=True)
    ]
    for cell, ratio in zip(cells, found, strict=True):
        if ratio is not None and not 0 < ratio <= 1:
            hint = "; is it the share that is dropped? take it from 1" if ratio == 0 else ""
            raise TableError(f"{path}: {RATIO_RULE} (line {cell.line}: {ratio:g}){hint}")
    return found


RATIO_RULE = "keep_ratio must be above 0 and at most 1"


def _short(text: str) -> str:
    plain = "".join(c if c.isprintable() else "�" for c in text[:SHOWN])
    return plain + ("..." if len(text) > SHOWN else "")


def _is_dense(frame: pl.DataFrame) -> pl.Expr:
    """Rows of the baseline: keep_ratio 1, or a policy called so."""
    found = pl.lit(False)
    if "keep_ratio" in frame.columns:
        found = found | (pl.col("keep_ratio") == 1)
    if "policy" in frame.columns:
        found = found | pl.col("policy").str.to_lowercase().str.replace_all("[ -]", "_").is_in(DENSE)
    return found.fill_null(False).alias("dense")


IMPOSSIBLE: Mapping[str, tuple[tuple[str, ...], pl.Expr]] = {
    "PPL below 1": (("ppl",), pl.col("ppl") < 1),
    "TTFT not above 0": (("ttft",), pl.col("ttft") <= 0),
    "a total time not above 0": (("total",), pl.col("total") <= 0),
    "TTFT above the total time": (
        ("ttft", "total"),
        (pl.col("ttft") > pl.col("total")) & (pl.col("total") > 0),
    ),
    "fewer than 1 sample": (("samples",), pl.col("samples") < 1),
    "a negative threshold": (("prune_after",), pl.col("prune_after") < 0),
    "no entry in the cache": (("cache_tokens",), pl.col("cache_tokens") <= 0),
    "no token evaluated": (("tokens",), pl.col("tokens") <= 0),
    "a cache longer than the text that was evaluated": (
        ("cache_tokens", "tokens"),
        (pl.col("cache_tokens") > pl.col("tokens")) & (pl.col("tokens") > 0),
    ),
}
"""What no measurement gives: in words, the columns it is about, and the condition."""

NO_NUMBER = "NaN or infinite"


def impossible(frame: pl.DataFrame) -> list[tuple[str, list[int]]]:
    """Which figures of a table cannot be, in words, and the lines that have them."""
    found = [
        (f"{name} {NO_NUMBER}", frame.filter(~pl.col(name).is_finite())[LINE].to_list())
        for name in COLUMNS
        if name not in TEXTS and name in frame.columns
    ]
    for words, (names, condition) in IMPOSSIBLE.items():
        if set(names) <= set(frame.columns):
            finite = pl.all_horizontal(pl.col(name).is_finite() for name in names)
            found.append((words, frame.filter(finite & condition)[LINE].to_list()))
    return [(words, lines) for words, lines in found if lines]


def possible(frame: pl.DataFrame) -> pl.DataFrame:
    """The table without the figures that cannot be: no other sign may rest on them."""
    figures = [name for name in frame.columns if name in COLUMNS and name not in TEXTS]
    spoilt = {name: ~pl.col(name).is_finite() for name in figures}
    for names, condition in IMPOSSIBLE.values():
        if set(names) <= set(figures):
            spoilt |= {name: spoilt[name] | condition for name in names}
    return frame.with_columns(
        pl.when(spoilt[name].fill_null(False)).then(None).otherwise(name).alias(name) for name in figures
    )
