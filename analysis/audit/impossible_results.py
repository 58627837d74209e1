"""Which figures of anybody's table no measurement gives, and the table without them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from analysis.audit.foreign_columns import COLUMNS, TEXTS
from analysis.audit.foreign_table import LINE

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
    signs = [
        (f"{name} {NO_NUMBER}", frame.filter(~pl.col(name).is_finite())[LINE].to_list())
        for name in COLUMNS
        if name not in TEXTS and name in frame.columns
    ]
    for words, (names, condition) in IMPOSSIBLE.items():
        if set(names) <= set(frame.columns):
            finite = pl.all_horizontal(pl.col(name).is_finite() for name in names)
            signs.append((words, frame.filter(finite & condition)[LINE].to_list()))
    return [(words, lines) for words, lines in signs if lines]


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
