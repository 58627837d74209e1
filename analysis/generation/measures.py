"""Timed cells in long form: one row per cell and measure, in its own unit and as per cent of the dense
twin."""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.draw.points import with_words
from analysis.generation.speed import short
from analysis.keys import GROUP, VERSIONS

MEASURES = {
    "PPL": ("ppl", "perplexity", 1.0),
    "TTFT": ("ttft_seconds", "ms", 1e3),
    "TPOT": ("tpot_seconds", "ms", 1e3),
    "throughput": ("tokens_per_second", "tokens per second", 1.0),
    "KV entries at end": ("kv_bytes_final", "MiB", 2.0**-20),
    "KV allocated at end": ("kv_bytes_allocated_final", "MiB", 2.0**-20),
    "peak memory": ("peak_memory_bytes", "MiB", 2.0**-20),
}
"""Name -> column, unit, factor from the column to the unit."""

TIMED = ("TTFT", "TPOT", "throughput")
SAME = [*GROUP, "policy", "keep_ratio", "variant", "after"]
"""What a timed cell and a scored one must share to be shown beside each other."""


def measures(speeds: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """speeds (``speed.generation``) with the PPL of the same settings (``Tables.perplexity``), one row per
    cell and measure.

    ``value``, ``low``, ``high``: the median (or PPL) with its 95 % interval; ``share``, ``share_low``,
    ``share_high``: per cent of the dense twin, paired by round (or window). Null where there is none. Dense
    cells are rows of 100 per cent.
    """
    timed = with_words(speeds)
    scored = with_words(cells.filter(pl.col("verdict").is_in(["VALID", "DENSE"]))).unique(
        SAME, keep="first", maintain_order=True
    )
    scored = scored.select(
        *SAME,
        "ppl",
        ppl_low=pl.col("dense_ppl") * pl.col("ratio_low"),
        ppl_high=pl.col("dense_ppl") * pl.col("ratio_high"),
        ppl_ratio="ratio",
        ratio_low="ratio_low",
        ratio_high="ratio_high",
    )
    both = timed.join(scored, on=SAME, how="left", nulls_equal=True, maintain_order="left")
    return pl.concat([_long(both, name) for name in MEASURES], how="vertical")


_DENSE = pl.col("policy") == "dense"
_NOTHING = pl.lit(None, pl.Float64)


def _long(both: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of one measure."""
    column, unit, factor = MEASURES[name]
    low, high = _interval(name)
    share, share_low, share_high = [pl.when(_DENSE).then(100.0).otherwise(each) for each in _shares(name)]

    settings = pl.format("prune_after {}, {}", "after", "variant")
    return both.select(
        *KEPT,
        settings=pl.when(_DENSE).then(pl.lit("dense")).otherwise(settings),
        hollow=(pl.col("timing") != "STABLE") & pl.lit(name in TIMED),
        measure=pl.lit(name),
        unit=pl.lit(unit),
        value=pl.col(column).cast(pl.Float64) * factor,
        low=low,
        high=high,
        share=share,
        share_low=share_low,
        share_high=share_high,
        n=pl.col("repeats"),
    )


def _interval(name: str) -> tuple[pl.Expr, pl.Expr]:
    """The 95 % interval of a measure in its unit."""
    column, _, factor = MEASURES[name]
    if name in TIMED:
        return pl.col(f"{column}_low") * factor, pl.col(f"{column}_high") * factor
    if name == "PPL":
        return pl.col("ppl_low"), pl.col("ppl_high")
    return _NOTHING, _NOTHING


def _shares(name: str) -> list[pl.Expr]:
    """A measure and its interval as per cent of the dense twin's."""
    column = MEASURES[name][0]
    if name in TIMED:
        return [100 * pl.col(f"{short(column)}_{end}") for end in ("ratio", "low", "high")]
    if name == "PPL":
        return [100 * pl.col(end) for end in ("ppl_ratio", "ratio_low", "ratio_high")]
    twin = pl.col(column).filter(_DENSE).first().over("dense_cell_id", "run_id", "device_name")
    return [100 * pl.col(column) / twin, _NOTHING, _NOTHING]


ONE_PICTURE = [
    "model",
    "dataset",
    *VERSIONS,
    "device",
    "device_name",
    "dtype",
    "prompt_tokens",
    "new_tokens",
    "batch_size",
    "timing_protocol",
    "run_id",
]
"""What took turns, and so may stand in one picture."""

KEPT = [*ONE_PICTURE, "policy", "keep_ratio", "timing"]
"""What is taken over: what tells groups apart, and the cell."""


def cell_label() -> pl.Expr:
    """A timed cell in a few words: policy, ratio, threshold."""
    words = pl.format(
        "{} {}, after {}",
        "policy",
        "keep_ratio",
        pl.col("prune_after").cast(pl.String).fill_null(labels.NONE),
    )
    return pl.when(pl.col("policy") == "dense").then(pl.lit("dense")).otherwise(words)
