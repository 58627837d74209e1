"""Anybody's table of results as a frame: which columns are known, and what their figures may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

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
"""What a table may hold, and the headings by which it is recognised (case, spaces and hyphens do not matter)."""

TEXTS = ("model", "dataset", "policy")
FIGURES = ("ppl", "ttft", "total", "cache_tokens", "samples")
"""At least one of them makes a table one of results."""

SEPARATORS = (",", ";", "\t")
NOTHING = ("", "-", "–", "—", "n/a", "na", "none", "null")
"""What stands for a figure that is not there."""

DENSE = ("dense", "baseline", "none", "full", "full_cache", "no_pruning", "uncompressed")
"""What a policy that prunes nothing is called."""

LINE = "line"


class TableError(ValueError):
    """A file that cannot be audited. The message says why and what is allowed."""


def read_table(path: str) -> pl.DataFrame:
    """The known columns of a CSV file under their names here, with ``line`` and ``dense``: whether a row is the baseline's.

    Columns are separated by commas, semicolons or tabs. keep_ratio may be written as ``50%``. Raises TableError.
    """
    raw = _raw(path)
    known = _known(raw.columns)
    if not set(FIGURES) & set(known.values()):
        raise TableError(
            f"{path}: none of its columns ({', '.join(raw.columns)}) holds a known figure; give at least one of "
            f"{', '.join(FIGURES)}, with a comma between columns"
        )
    if raw.is_empty():
        raise TableError(f"{path}: has a heading and no rows: there is nothing to audit")

    frame = raw.select(pl.col(heading).str.strip_chars().alias(name) for heading, name in known.items())
    frame = frame.with_row_index(LINE, offset=2)
    figures = [name for name in frame.columns if name not in (*TEXTS, LINE)]
    frame = frame.with_columns(_numbers(path, frame, name) for name in figures)

    _check_ratios(path, frame)
    return frame.with_columns(_is_dense(frame))


def _raw(path: str) -> pl.DataFrame:
    """Every cell as text. The separator is the one by which the heading has most known columns."""
    try:
        heading = Path(path).read_text(encoding="utf-8-sig").partition("\n")[0]
        separator = max(SEPARATORS, key=lambda mark: len(_known([part.strip('" \r') for part in heading.split(mark)])))
        return pl.read_csv(path, infer_schema=False, separator=separator)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise TableError(f"{path}: is no readable CSV file ({str(error).splitlines()[0]})") from error


def _known(headings: list[str]) -> dict[str, str]:
    """Heading -> name, of the first heading that has the name."""
    found: dict[str, str] = {}
    for heading in headings:
        plain = re.sub(r"[ -]", "_", heading.strip().lower())
        name = next((name for name, spellings in COLUMNS.items() if plain in spellings), None)
        if name is not None and name not in found.values():
            found[heading] = name
    return found


def _numbers(path: str, frame: pl.DataFrame, name: str) -> pl.Series:
    values = [_number(path, name, row[LINE], row[name] or "") for row in frame.select(LINE, name).iter_rows(named=True)]
    return pl.Series(name, values, pl.Float64)


def _number(path: str, name: str, line: int, text: str) -> float | None:
    """A figure as it is written; None where there is none."""
    if text.lower() in NOTHING:
        return None
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        hint = ""
        if re.fullmatch(r"[-+]?[\d.]*,[\d.,]* ?%?", text):
            hint = "; write a decimal point, and nothing between thousands"
        raise TableError(f"{path}: {name} {text!r} is not a number (line {line}){hint}") from None
    if share and name != "keep_ratio":
        raise TableError(f"{path}: {name} {text!r} is a share in per cent (line {line}); give the figure itself")
    return value / 100 if share else value


def _check_ratios(path: str, frame: pl.DataFrame) -> None:
    if "keep_ratio" not in frame.columns:
        return
    known = frame.filter(pl.col("keep_ratio").is_not_null())
    for line, ratio in known.select(LINE, "keep_ratio").iter_rows():
        if not 0 < ratio <= 1:
            hint = "; is it a percentage? divide by 100" if 1 < ratio <= 100 else ""
            hint = "; is it the share that is dropped? take it from 1" if ratio == 0 else hint
            raise TableError(f"{path}: keep_ratio must be above 0 and at most 1 (line {line}: {ratio:g}){hint}")


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
    "TTFT above the total time": (("ttft", "total"), (pl.col("ttft") > pl.col("total")) & (pl.col("total") > 0)),
    "fewer than 1 sample": (("samples",), pl.col("samples") < 1),
    "a negative threshold": (("prune_after",), pl.col("prune_after") < 0),
    "no entry in the cache": (("cache_tokens",), pl.col("cache_tokens") <= 0),
    "no token evaluated": (("tokens",), pl.col("tokens") <= 0),
    "a cache longer than the text that was evaluated": (
        ("cache_tokens", "tokens"), (pl.col("cache_tokens") > pl.col("tokens")) & (pl.col("tokens") > 0),
    ),
}  # fmt: skip
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
    return frame.with_columns(pl.when(spoilt[name].fill_null(False)).then(None).otherwise(name).alias(name) for name in figures)
