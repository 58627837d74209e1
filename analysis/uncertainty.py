"""How sure a PPL ratio is: bootstrap interval, sign-flip test with Holm's correction, smallest effect that could have been seen.

All on paired differences of NLL, summed over what is resampled: documents where a cell has more than one, else windows.
"""

from __future__ import annotations

import itertools
import math
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
    """Sums per cell and unit: nll (minus the twin's), tokens, kl, agreed (NaN where not recorded), n (units of the cell),
    resampled (documents or windows).
    """
    documents = (pl.col("document").n_unique().over(pool) > 1) & (pl.col("document").null_count().over(pool) == 0)
    paired = rows.filter("paired", pl.col("policy") != "dense").with_columns(
        resampled=pl.when(documents).then(pl.lit("documents")).otherwise(pl.lit("windows")),
        unit=pl.when(documents).then(pl.col("document")).otherwise(pl.col("window_index")),
    )
    sums = paired.group_by([*pool, "resampled", "unit"]).agg(
        nll=(pl.col("nll_sum") - pl.col("dense_nll")).sum(),
        tokens=pl.col("tokens_scored").sum(),
        # What one window lacks, its unit lacks.
        kl=pl.col("kl_sum").fill_null(float("nan")).sum(),
        agreed=pl.col("tokens_agreed").cast(pl.Float64).fill_null(float("nan")).sum(),
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
    """PPL ratios of bootstrap resamples of units, ``[cells, resamples]``: exp of ``resampled_means`` of NLL minus the twin's."""
    return np.exp(resampled_means(differences, tokens, resamples, seed))


def resampled_means(values: np.ndarray, weights: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sum of values over sum of weights of bootstrap resamples of units, ``[cells, resamples]``.

    ``values`` and ``weights`` are ``[cells, units]``. All cells see the same resamples, so that a difference between two cells is
    not one of the draws. Blocks of resamples bound the memory.
    """
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // n)
    found = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        found.append((values @ counts.T) / (weights @ counts.T))
    return np.concatenate(found, axis=1)


def mean_bounds(units: pl.DataFrame, keys: Sequence[str], value: str, weight: str, name: str) -> pl.DataFrame:
    """``NAME_low`` and ``NAME_high``: bootstrap interval of the sum of ``value`` over the sum of ``weight``, per ``keys``.

    ``units`` has one row per unit that is drawn, in an order of its own. Groups of one unit, or with a value that is missing or
    not finite, have no row.
    """
    known = pl.col(value).is_finite().fill_null(False).all().over(keys)
    own = units.filter(known).with_columns(_n=pl.len().over(keys)).filter(pl.col("_n") >= 2).sort(keys, maintain_order=True)
    ends = [f"{name}_low", f"{name}_high"]
    found = [own.select(*keys, **{end: pl.lit(None, pl.Float64) for end in ends}).clear()]
    for (n,), group in own.group_by("_n", maintain_order=True):
        shape = (-1, int(str(n)))
        values, weights = (group[column].cast(pl.Float64).to_numpy().reshape(shape) for column in (value, weight))
        for i in range(0, len(values), CELLS_AT_ONCE):
            means = resampled_means(values[i : i + CELLS_AT_ONCE], weights[i : i + CELLS_AT_ONCE])
            low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
            cells = group.unique([*keys], keep="first", maintain_order=True).select(*keys)[i : i + CELLS_AT_ONCE]
            found.append(cells.with_columns(pl.Series(ends[0], low), pl.Series(ends[1], high)))
    return pl.concat(found)


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


def mcnemar_p(lost: int, gained: int) -> float:
    """Two-sided exact p of "as many lost as gained" among questions that two cells answer differently (McNemar 1947)."""
    n = lost + gained
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(lost, gained) + 1)) / 2**n)


def holm(p: pl.Expr, family: Sequence[str]) -> pl.Expr:
    """Holm's step-down adjustment of ``p`` within each family (Holm 1979): nulls stay null and count for nothing."""
    rank, count = p.rank("ordinal").over(family), p.count().over(family)
    stepped = (p * (count - rank + 1)).clip(upper_bound=1.0)
    return stepped.cum_max().over(family, order_by=p)
