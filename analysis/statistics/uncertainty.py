"""How sure a figure is: intervals that hold for few windows, a sign-flip test with Holm's correction, the
smallest effect seen.

Everything rests on sums over units that are independent of each other: documents where a cell has more than
one, else windows (or questions). ``benchmarks/coverage.py`` measures how often what is said here is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy import special

RESAMPLES = 10_000
SEED = 20_240_611
LEVEL = 0.95
ALPHA = 1 - LEVEL
EXACT_UP_TO = 16
"""Units of which all sign patterns are tried."""
POWER = 0.8
"""How often a test at the 5 % level sees an effect of the size that is called detectable."""
CELLS_AT_ONCE = 500

FIGURES = (
    "ratio_low",
    "ratio_high",
    "pruned_ratio",
    "pruned_low",
    "pruned_high",
    "log_error",
    "pruned_error",
    "pruned_units",
    "p_value",
    "detectable",
)


def bounds(rows: pl.DataFrame, pool: Sequence[str]) -> pl.DataFrame:
    """Per pooled cell with at least two paired units: the
    columns of ``FIGURES``, ``n_units`` and ``unit_kind``.

    ``ratio_low``, ``ratio_high``: 95 % interval of the PPL ratio to dense. ``pruned_...``: the ratio over the
    tokens alone that saw a pruned cache, and its interval; the others have dense's NLL. ``log_error``,
    ``pruned_error``: standard errors of the ratios' logarithms. ``pruned_units``: units that have such
    tokens. ``p_value``: ``sign_flip_p``. ``rows`` comes from ``pairs.with_dense``; ``pool`` are the columns
    that name a cell.
    """
    sums = units(rows, pool)
    named = [*pool, "unit_kind"]
    none = sums.select(*named, n_units="n").clear()
    tables = [none.with_columns(pl.lit(None, pl.Float64).alias(name) for name in FIGURES)]
    for (n,), group in sums.filter(pl.col("n") >= 2).group_by("n", maintain_order=True):
        figures = _figures_of_all(group, int(str(n)))
        cells = group.unique([*pool], keep="first", maintain_order=True).select(*named, n_units="n")
        tables.append(cells.with_columns(pl.Series(name, figures[:, i]) for i, name in enumerate(FIGURES)))
    return pl.concat(tables)


def _figures_of_all(group: pl.DataFrame, n: int) -> np.ndarray:
    """[cells, len(FIGURES)] of cells that have ``n`` units each, ``CELLS_AT_ONCE`` at a time."""
    names = ("nll", "tokens", "tokens_pruned")
    columns = [group[name].cast(pl.Float64).to_numpy().reshape(-1, n) for name in names]
    parts = [slice(i, i + CELLS_AT_ONCE) for i in range(0, len(columns[0]), CELLS_AT_ONCE)]
    return np.concatenate([_figures(*(column[part] for column in columns)) for part in parts])


def units(rows: pl.DataFrame, pool: Sequence[str]) -> pl.DataFrame:
    """Sums per cell and unit: nll (minus the twin's), tokens, tokens_pruned, kl, agreed (NaN where not
    recorded), n (units of the cell), unit_kind (documents or windows).
    """
    documents = (pl.col("document").n_unique().over(pool) > 1) & (
        pl.col("document").null_count().over(pool) == 0
    )

    paired = rows.filter("paired", pl.col("policy") != "dense").with_columns(
        unit_kind=pl.when(documents).then(pl.lit("documents")).otherwise(pl.lit("windows")),
        unit=pl.when(documents).then(pl.col("document")).otherwise(pl.col("window_index")),
    )

    sums = paired.group_by([*pool, "unit_kind", "unit"]).agg(
        nll=(pl.col("nll_sum") - pl.col("dense_nll")).sum(),
        tokens=pl.col("tokens_scored").sum(),
        tokens_pruned=pl.col("tokens_scored_pruned").sum(),
        # What one window lacks, its unit lacks.
        kl=pl.col("kl_sum").fill_null(float("nan")).sum(),
        agreed=pl.col("tokens_agreed").cast(pl.Float64).fill_null(float("nan")).sum(),
    )
    return sums.sort([*pool, "unit"]).with_columns(n=pl.len().over(pool))


def _figures(differences: np.ndarray, tokens: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """[cells, units] each -> [cells, len(FIGURES)]."""
    n = differences.shape[1]
    mean, error = weighted_mean(differences, tokens)
    half = t_quantile(1 - ALPHA / 2, n) * error

    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        among_pruned, its_error = weighted_mean(differences, pruned)
        own = (pruned > 0).sum(axis=1)
        its_half = t_quantile(1 - ALPHA / 2, own) * its_error
        detectable = np.exp((t_quantile(1 - ALPHA / 2, n) + t_quantile(POWER, n)) * error)
        columns = [
            np.exp(mean - half),
            np.exp(mean + half),
            np.exp(among_pruned),
            np.exp(among_pruned - its_half),
            np.exp(among_pruned + its_half),
            error,
            its_error,
            own,
            sign_flip_p(differences),
            detectable,
        ]
    return np.stack(columns, axis=1)


def t_quantile(probability: float | np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """The quantile of Student's t distribution for ``n`` units (n - 1 degrees of freedom)."""
    return special.stdtrit(np.asarray(n) - 1, probability)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of values over sum of weights, and its standard error,
    [cells] each, of ``values`` and ``weights`` [cells, units].

    The error is that of a ratio of sums over independent units (Cochran 1977, Sampling Techniques, section
    6.3): with weights that are all equal, the usual one of a mean. A unit of weight 0 is no evidence and does
    not count; of one unit the error is NaN.
    """
    n, total = (weights > 0).sum(axis=1), weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.sum(axis=1) / total
        residuals = np.where(weights > 0, values - mean[:, None] * weights, 0.0)
        return mean, np.sqrt(n / (n - 1) * (residuals**2).sum(axis=1)) / total


def mean_bounds(units: pl.DataFrame, keys: Sequence[str], value: str, weight: str, name: str) -> pl.DataFrame:
    """``NAME_low`` and ``NAME_high``: t interval of the sum
    of ``value`` over the sum of ``weight``, per ``keys``.

    ``units`` has one row per independent unit. Groups of one unit, or with a value that is missing or not
    finite, have no row.
    """
    known = pl.col(value).is_finite().fill_null(False).all().over(keys)
    n, values, weights = pl.len(), pl.col(value).cast(pl.Float64), pl.col(weight).cast(pl.Float64)
    mean = values.sum() / weights.sum()
    error = (n / (n - 1) * ((values - mean * weights) ** 2).sum()).sqrt() / weights.sum()
    own = (
        units.filter(known)
        .group_by(keys, maintain_order=True)
        .agg(_n=n, _mean=mean, _error=error)
        .filter(pl.col("_n") >= 2)
    )
    half = pl.col("_error") * pl.Series(t_quantile(1 - ALPHA / 2, own["_n"].to_numpy()), dtype=pl.Float64)
    return own.select(
        *keys, (pl.col("_mean") - half).alias(f"{name}_low"), (pl.col("_mean") + half).alias(f"{name}_high")
    )


def sign_flip_p(differences: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Two-sided p of "no difference" per cell, ``differences`` [cells, units]: how often a sum with random
    signs is as far off.

    Exact (all sign patterns) up to 16 units. No p is below
    ``least_p``, whatever was measured, as it should be.
    """
    n = differences.shape[1]
    if n <= EXACT_UP_TO:
        half = np.array(list(itertools.product([1.0, -1.0], repeat=n - 1)))  # the other half mirrors it
        signs, extra = np.hstack([np.ones((len(half), 1)), half]), 0
    else:
        signs = np.random.default_rng(seed).integers(0, 2, (resamples, n)) * 2.0 - 1.0
        extra = 1  # the pattern that was measured is one of them
    reached = np.abs(differences.sum(axis=1))[:, None] * (1 - 1e-12)
    counts = (np.abs(differences @ signs.T) >= reached).sum(axis=1)
    return np.where(np.isfinite(differences).all(axis=1), (counts + extra) / (len(signs) + extra), np.nan)


def least_p(n: pl.Expr) -> pl.Expr:
    """The smallest p that ``sign_flip_p`` can give for so many units."""
    exact = pl.lit(2.0).pow(1 - n.cast(pl.Float64))
    return pl.when(n <= EXACT_UP_TO).then(exact).otherwise(1 / (RESAMPLES + 1))


def mcnemar_p(lost: int, gained: int) -> float:
    """Two-sided exact p of "as many lost as gained" among
    questions that two cells answer differently (McNemar 1947)."""
    n = lost + gained
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(lost, gained) + 1)) / 2**n)


def share_at_most(count: int, of: int, level: float = LEVEL) -> float:
    """One-sided upper bound of a share of which ``count`` of ``of`` were seen (Clopper and Pearson 1934)."""
    return 1.0 if count >= of else float(special.betaincinv(count + 1, of - count, level))


def holm(p: pl.Expr, family: Sequence[str]) -> pl.Expr:
    """Holm's step-down adjustment of ``p`` within each family
    (Holm 1979): nulls stay null and count for nothing."""
    rank, count = p.rank("ordinal").over(family), p.count().over(family)
    stepped = (p * (count - rank + 1)).clip(upper_bound=1.0)
    return stepped.cum_max().over(family, order_by=p)


def widened(
    cells: pl.DataFrame,
    comparisons: int | np.ndarray,
    ratio: str = "ratio",
    error: str = "log_error",
    n: str = "n_units",
) -> pl.DataFrame:
    """The cells with ``wide_low`` and ``wide_high``: intervals of
    their PPL ratios that hold together for so many comparisons.

    Bonferroni: each errs in 5 % divided by ``comparisons``, one number for all cells or one for each.
    ``ratio``, ``error`` and ``n`` name the columns of the ratios, of the errors of their logarithms and of
    the units. In 16 bits they are wider by what rounding does to PPL (``rounding_log``).
    """
    quantiles = pl.Series(
        t_quantile(1 - ALPHA / (2 * comparisons), cells[n].cast(pl.Float64).to_numpy()), dtype=pl.Float64
    )
    half = pl.col(error) * quantiles
    half = half + pl.col("rounding_log") if "rounding_log" in cells.columns else half
    middle = pl.col(ratio).log()
    return cells.with_columns(wide_low=(middle - half).exp(), wide_high=(middle + half).exp())
