"""Each perplexity cell against its dense twin on the same windows: PPL, PPL ratio, paired intervals.

Sums of negative log-likelihood (nats) and token counts are pooled first and exponentiated once, never
averaged as perplexities.
"""

from __future__ import annotations

import polars as pl

from analysis.impossible import at_twins_place, beside_twin, in_cell
from analysis.keys import CELL, VERSIONS
from analysis.statistics.uncertainty import bounds, mean_bounds, units

POOL = ["pool_id", *VERSIONS]
"""One point of a chart. Numbers of different protocol, weights or data never meet."""

FEW_WINDOWS = 8
"""From so many on, intervals were measured to hold what they
say (``benchmarks/coverage.py``); cells of fewer are marked."""

SIXTEEN_BITS = ["bfloat16", "float16"]
"""Dtypes in which figures move by rounding."""


def with_dense(perplexity: pl.LazyFrame) -> pl.DataFrame:
    """Rows (cell, window) with the dense twin's sums of the same window.

    Adds ``dense_nll``, ``dense_correct``, ``dense_cache_tokens`` and ``paired``: whether the twin scored this
    window, with the same number of tokens. Unpaired windows stay in. ``impossible`` tells also what cannot be
    beside the twin.
    """
    twin = perplexity.filter(pl.col("cell_id") == pl.col("dense_cell_id")).select(
        pl.col("cell_id").alias("dense_cell_id"),
        *VERSIONS,
        "window_index",
        dense_tokens="tokens_scored",
        dense_nll="nll_sum",
        dense_correct="tokens_correct",
        dense_cache_tokens="cache_tokens_mean",
        dense_kv_bytes="kv_bytes_mean",
        dense_impossible="impossible",
        dense_start="window_start",
        dense_document="document",
    )

    keys = ["dense_cell_id", *VERSIONS, "window_index"]
    joined = perplexity.join(twin, on=keys, how="left", nulls_equal=True, maintain_order="left")
    # A missing or infinite sum is not zero nats: NaN carries it through every sum, to a null at the end.
    sums = pl.col("nll_sum", "dense_nll")
    known = pl.when(sums.is_finite()).then(sums).otherwise(float("nan")).name.keep()
    joined = joined.with_columns(beside_twin()).with_columns(at_twins_place())
    paired = pl.col("dense_tokens").eq_missing(pl.col("tokens_scored"))
    return joined.with_columns(known, paired=paired).collect()


def compare(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per pooled cell: PPL, ratio to the dense twin with
    interval, accuracy, KL, agreement, budget, validity figures.

    ``rows`` comes from ``with_dense``. Figures that cannot be had (no twin, fewer than two windows,
    non-finite sums, columns that an older schema lacks) are null.
    """
    cells = rows.group_by(POOL, maintain_order=True).agg(*_sums()).with_columns(*_figures())
    sound = rows.filter(pl.col("impossible").is_null().all().over(POOL))
    sure = bounds(sound, POOL)
    sums = units(sound, POOL)
    for value, name in (("kl", "kl"), ("agreed", "agreement")):
        near = mean_bounds(sums, POOL, value, "tokens", name)
        sure = sure.join(near, on=POOL, how="left", nulls_equal=True, maintain_order="left")
    compared = cells.join(sure, on=POOL, how="left", nulls_equal=True, maintain_order="left")
    return finite(_with_rounding(compared))


def _with_rounding(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells with ``rounding_log``, what rounding does to the logarithm of a PPL in 16 bits, and intervals
    as much wider.

    0 in float32. Where it was not recorded in 16 bits, it is
    taken as 0 and nothing is recommended (``recommend.usable``).
    """
    sixteen = pl.col("dtype").is_in(SIXTEEN_BITS)
    known = pl.when(sixteen).then(pl.col("rounding_ppl").fill_null(0.0).log1p()).otherwise(0.0)
    low, high = pl.col("ratio_low", "pruned_low"), pl.col("ratio_high", "pruned_high")
    wider = cells.with_columns(rounding_log=known)
    return wider.with_columns(low * (-pl.col("rounding_log")).exp(), high * pl.col("rounding_log").exp())


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with NaN and infinities as nulls: what JSON and a reader can take."""
    floats = pl.selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats).otherwise(None).name.keep())


def _sums() -> list[pl.Expr]:
    """The columns of a pooled cell that come straight from its rows."""
    paired = pl.col("paired")
    share_pruned = pl.col("tokens_scored_pruned").sum() / pl.col("tokens_scored").sum()

    return [
        *[pl.col(name).first() for name in CELL],
        in_cell(),
        pl.col("window", "stride").first(),
        pl.col("seed").n_unique().alias("seeds"),
        pl.col("window_index").n_unique().alias("n_windows"),
        pl.col("window_index").filter(paired).n_unique().alias("n_paired"),
        pl.col("tokens_scored").cast(pl.Int64).sum().alias("tokens"),
        pl.col("nll_sum").sum().alias("nll"),
        *_paired_sums(),
        pl.col("prune_events").mean(),
        pl.col("kv_bytes_mean").mean(),
        pl.col("kv_bytes_peak").max(),
        pl.col("rounding_nats", "rounding_ppl").max(),
        pl.col("dense_kv_bytes").mean().alias("dense_kv_bytes_mean"),
        share_pruned.alias("share_pruned"),
        _per_token("kl_sum").alias("kl"),
        _per_token("tokens_agreed").alias("agreement"),
        *[_per_event(name) for name in ("recent_retained", "sink_retained", "score_ties")],
    ]


def _paired_sums() -> list[pl.Expr]:
    """Sums over the windows that the dense twin scored too."""
    paired = pl.col("paired")
    nll_difference = pl.col("nll_sum") - pl.col("dense_nll")
    correct_difference = pl.col("tokens_correct") - pl.col("dense_correct")
    held = pl.col("cache_tokens_mean").filter(paired).sum()
    dense_held = pl.col("dense_cache_tokens").filter(paired).sum()
    return [
        pl.col("tokens_scored").cast(pl.Int64).filter(paired).sum().alias("paired_tokens"),
        nll_difference.filter(paired).sum().alias("nll_difference"),
        pl.col("dense_nll").filter(paired).sum().alias("dense_nll"),
        correct_difference.filter(paired).sum().alias("correct_difference"),
        (held / dense_held).alias("budget"),
    ]


def _per_event(name: str) -> pl.Expr:
    """A mean over prune events, from the rows that have one."""
    events, known = pl.col("prune_events"), pl.col(name).is_not_null()
    return ((pl.col(name) * events).sum() / events.filter(known).sum()).alias(name)


def _per_token(name: str) -> pl.Expr:
    """A mean over scored tokens, from the paired rows that have one."""
    known = pl.col("paired") & pl.col(name).is_not_null()
    return pl.col(name).filter(known).sum() / pl.col("tokens_scored").filter(known).sum()


def _figures() -> list[pl.Expr]:
    """The figures that are made of sums."""
    tokens = pl.col("paired_tokens")
    return [
        (pl.col("nll") / pl.col("tokens")).exp().alias("ppl"),
        (pl.col("dense_nll") / tokens).exp().alias("dense_ppl"),
        (pl.col("nll_difference") / tokens).exp().alias("ratio"),
        (pl.col("correct_difference") / tokens).alias("accuracy_difference"),
    ]
