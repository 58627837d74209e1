"""How sure a PPL ratio is: bootstrap interval, sign-flip test with Holm's correction, smallest effect that could have been seen.

All on paired differences of NLL, summed over what is resampled: documents where a cell has more than one, else windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl

RESAMPLES = 10_000
SEED = 20_240_611
LEVEL = 0.95
EXACT_UP_TO = 12
"""Units of which all sign patterns are tried."""
POWER = 1.959963984540054 + 0.8416212335729143
"""Standard errors of an effect that a two-sided 5 % test sees 8 times in 10."""
CELLS_AT_ONCE = 500


def bounds(rows: pl.DataFrame, pool: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED) -> pl.DataFrame:
    """Per pooled cell with at least two paired units: ``ratio_low``, ``ratio_high``, ``p_value``, ``detectable``, ``n_units``,
    ``resampled``. ``rows`` comes from ``pairs.with_dense``; ``pool`` are the columns that name a cell.
    """
    sums = units(rows, pool)
    own = dict.fromkeys(("ratio_low", "ratio_high", "p_value", "detectable"), pl.Float64)
    found = [
        sums.select(*pool, "resampled", n_units="n").clear().with_columns(pl.lit(None, kind).alias(n) for n, kind in own.items())
    ]
    for (n,), group in sums.filter(pl.col("n") >= 2).group_by("n", maintain_order=True):
        shape = (-1, int(str(n)))
        differences, tokens = (group[name].to_numpy().reshape(shape) for name in ("nll", "tokens"))
        parts = [slice(i, i + CELLS_AT_ONCE) for i in range(0, len(differences), CELLS_AT_ONCE)]
        figures = np.concatenate([_figures(differences[part], tokens[part], resamples, seed) for part in parts])
        cells = group.unique([*pool], keep="first", maintain_order=True).select(*pool, "resampled", n_units="n")
        found.append(cells.with_columns(pl.Series(name, figures[:, i]) for i, name in enumerate(own)))
    return pl.concat(found)


def units(rows: pl.DataFrame, pool: Sequence[str]) -> pl.DataFrame:
    """Sums per cell and unit: nll (minus the twin's), tokens, n (units of the cell), resampled (documents or windows)."""
    documents = (pl.col("document").n_unique().over(pool) > 1) & (pl.col("document").null_count().over(pool) == 0)
    paired = rows.filter("paired", pl.col("policy") != "dense").with_columns(
        resampled=pl.when(documents).then(pl.lit("documents")).otherwise(pl.lit("windows")),
        unit=pl.when(documents).then(pl.col("document")).otherwise(pl.col("window_index")),
    )
    sums = paired.group_by([*pool, "resampled", "unit"]).agg(
        nll=(pl.col("nll_sum") - pl.col("dense_nll")).sum(), tokens=pl.col("tokens_scored").sum()
    )
    return sums.sort([*pool, "unit"]).with_columns(n=pl.len().over(pool))


def _figures(differences: np.ndarray, tokens: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[cells, 4]: low, high, p, detectable."""
    ratios = resampled_ratios(differences, tokens, resamples, seed)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        detectable = np.exp(POWER * np.log(ratios).std(axis=1, ddof=1))
    return np.stack([low, high, sign_flip_p(differences, resamples, seed), detectable], axis=1)


def resampled_ratios(differences: np.ndarray, tokens: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """PPL ratios of bootstrap resamples of units, ``[cells, resamples]``.

    ``differences`` (NLL minus the twin's, nats) and ``tokens`` are ``[cells, units]``. All cells see the same resamples, so that
    a difference between two cells is not one of the draws. Blocks of resamples bound the memory.
    """
    n = differences.shape[1]
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // n)
    found = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        found.append(np.exp((differences @ counts.T) / (tokens @ counts.T)))
    return np.concatenate(found, axis=1)


def sign_flip_p(differences: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Two-sided p of "no difference" per cell, ``differences`` [cells, units]: how often a sum with random signs is as far off.

    Exact (all sign patterns) up to 12 units: with n units no p is below 2 / 2**n, whatever was measured, as it should be.
    """
    n = differences.shape[1]
    if n <= EXACT_UP_TO:
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=n)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).integers(0, 2, (resamples, n)) * 2.0 - 1.0
        extra = 1  # the pattern that was measured is one of them
    reached = np.abs(differences.sum(axis=1))[:, None] * (1 - 1e-12)
    counts = (np.abs(differences @ signs.T) >= reached).sum(axis=1)
    return np.where(np.isfinite(differences).all(axis=1), (counts + extra) / (len(signs) + extra), np.nan)


def holm(p: pl.Expr, family: Sequence[str]) -> pl.Expr:
    """Holm's step-down adjustment of ``p`` within each family (Holm 1979): nulls stay null and count for nothing."""
    rank, count = p.rank("ordinal").over(family), p.count().over(family)
    stepped = (p * (count - rank + 1)).clip(upper_bound=1.0)
    return stepped.cum_max().over(family, order_by=p)
