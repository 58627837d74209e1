"""Generation: medians of times and bytes per cell and prompt length, and ratios to the dense twin paired by round."""

from __future__ import annotations

import numpy as np
import polars as pl

from analysis.load import VERSION_COLUMNS
from analysis.pairs import LEVEL, POOL, RESAMPLES, SEED, SETTINGS, finite
from analysis.tables import beyond, in_order

MEASURES = [
    "ttft_seconds", "tpot_seconds", "total_seconds", "tokens_per_second", "prune_seconds",
    "kv_bytes_prompt", "kv_bytes_peak", "kv_bytes_final", "peak_memory_bytes",
]  # fmt: skip
COMPARED = ["ttft_seconds", "tpot_seconds", "tokens_per_second"]
"""The measures of which a ratio to the dense twin is formed."""

FEWEST_ROUNDS = 6
"""The range of n paired values covers the median with 1 - 2 / 2**n; fewer than six rounds cannot reach 95 %."""

NO_DIFFERENCE = "no difference shown"

KEYS = [*POOL, "device_name", "prompt_tokens"]


def generation(rows: pl.LazyFrame) -> pl.DataFrame:
    """One row per pooled cell, device and prompt length.

    Medians over repeats (seconds, bytes; null where nothing was counted), and for each of ``COMPARED`` the median ratio to the
    dense twin of the same run and round: ``ttft_ratio``, ``ttft_low``, ``ttft_high``, ``ttft_words`` and so on.
    """
    once = rows.unique(["cell_id", *VERSION_COLUMNS, "prompt_tokens", "repeat"], keep="first", maintain_order=True)
    table = (
        once.group_by(KEYS, maintain_order=True)
        .agg(
            *[pl.col(name).first() for name in SETTINGS if name != "device_name"],
            pl.col("new_tokens", "threads", "peak_memory_method").first(),
            pl.col("repeat").n_unique().alias("repeats"),
            *[pl.col(name).cast(pl.Float64).median() for name in [*MEASURES, "prune_events"]],
        )
        .collect()
    )
    ratios = _paired_ratios(once, rows).collect()
    for measure in COMPARED:
        found = _ratio_intervals(ratios, measure)
        table = table.join(found, on=KEYS, how="left", nulls_equal=True, maintain_order="left")
    return in_order(finite(table.with_columns(note=beyond())))


def short(measure: str) -> str:
    """The prefix of a compared measure's columns: ``ttft``, ``tpot``, ``tokens``."""
    return measure.split("_")[0]


def _paired_ratios(once: pl.LazyFrame, rows: pl.LazyFrame) -> pl.LazyFrame:
    """Ratio to the twin of the same run, device, prompt and round; seeds of one round are reduced to their median."""
    on = ["dense_cell_id", *VERSION_COLUMNS, "run_id", "device_name", "prompt_tokens", "repeat"]
    twin = rows.filter(pl.col("cell_id") == pl.col("dense_cell_id")).select(
        *on, *[pl.col(name).alias(f"dense_{name}") for name in COMPARED]
    )
    joined = once.filter(pl.col("policy") != "dense").join(twin, on=on, how="inner", nulls_equal=True)
    return joined.group_by([*KEYS, "repeat"]).agg(
        *[(pl.col(name) / pl.col(f"dense_{name}")).median().alias(name) for name in COMPARED]
    )


def _ratio_intervals(ratios: pl.DataFrame, measure: str) -> pl.DataFrame:
    name = short(measure)
    known = ratios.filter(pl.col(measure).is_finite()).sort([*KEYS, "repeat"])
    found = []
    for keys, group in known.group_by(KEYS, maintain_order=True):
        values = group[measure].to_numpy()
        low, high = median_interval(values)
        middle = float(np.median(values))
        words = in_words(middle, low, high, len(values), more_is_better=measure == "tokens_per_second")
        found.append((*keys, len(values), middle, low, high, words))
    columns = {f"{name}_rounds": pl.Int64, f"{name}_ratio": pl.Float64, f"{name}_low": pl.Float64, f"{name}_high": pl.Float64}
    schema = {**{key: ratios.schema[key] for key in KEYS}, **columns, f"{name}_words": pl.String}
    return pl.DataFrame(found, schema=schema, orient="row")


def median_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of the median of ``values`` [rounds]; nulls from fewer than two rounds."""
    n = len(values)
    if n < 2:
        return None, None
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    low, high = np.quantile(np.median(values[drawn], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def in_words(ratio: float, low: float | None, high: float | None, rounds: int, *, more_is_better: bool) -> str:
    """A speed-up or slow-down, only where the interval excludes 1 and enough rounds were run."""
    if rounds < FEWEST_ROUNDS:
        return f"{NO_DIFFERENCE} (only {rounds} rounds)" if rounds != 1 else f"{NO_DIFFERENCE} (only one round)"
    if low is None or high is None or low <= 1 <= high:
        return NO_DIFFERENCE
    factor = ratio if more_is_better else 1 / ratio
    return f"{factor:.2f}x faster" if factor > 1 else f"{1 / factor:.2f}x slower"
