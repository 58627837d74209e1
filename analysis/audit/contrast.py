"""One pruned cell against another on the same windows: the quotient of their PPLs with a paired interval.

A difference between two cells is surer than their two ratios to dense: both saw the same text, and what makes
a window hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analysis.keys import SETTINGS
from analysis.statistics.pairs import finite
from analysis.statistics.uncertainty import ALPHA, t_quantile, units, weighted_mean

ROUNDING = 1e-3
"""Two cells that differ by less than this share are equal: what order of summation alone can do to a cell."""

PAIR_FIGURES = {"factor": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.Int64}


def contrast(
    measured: pl.DataFrame, over: pl.DataFrame, under: pl.DataFrame, differs: Sequence[str]
) -> pl.DataFrame:
    """PPL of each cell of ``over`` divided by that of the cell of
    ``under`` that equals it in all settings but ``differs``.

    ``measured``: ``Tables.windows``, cells: ``Tables.perplexity``, all of one model, text, device and
    windows. One row per pair: the columns of ``over``, ``under_id`` and ``under_budget``, and ``factor``,
    ``low``, ``high``, ``n`` (units that both scored: documents, or windows). Pairs with fewer than two units
    in common have no interval and are left out.
    """
    same = [name for name in SETTINGS if name not in differs]
    partner = under.select(*same, under_id="pool_id", under_budget="budget", under_rounding="rounding_log")
    pairs = over.join(partner, on=same, how="inner", nulls_equal=True, maintain_order="left")
    return _figures(measured, pairs, [("pool_id", 1.0), ("under_id", -1.0)])


def saved_share(
    measured: pl.DataFrame, better: pl.DataFrame, worse: pl.DataFrame, differs: Sequence[str]
) -> pl.DataFrame:
    """Whether ``better`` takes away half of what ``worse`` costs, as pairs like those of ``contrast``.

    ``factor`` is PPL(better)^2 / (PPL(worse) * PPL(dense)) on the same windows: below 1 where more than half
    of the loss in log PPL is gone.
    """
    same = [name for name in SETTINGS if name not in differs]
    partner = worse.select(*same, under_id="pool_id", under_budget="budget", under_rounding="rounding_log")
    pairs = better.join(partner, on=same, how="inner", nulls_equal=True, maintain_order="left")
    return _figures(measured, pairs, [("pool_id", 2.0), ("under_id", -1.0)])


def _figures(measured: pl.DataFrame, pairs: pl.DataFrame, sides: Sequence[tuple[str, float]]) -> pl.DataFrame:
    """exp of the weighted sum of both sides' mean NLL minus dense's, with its 95 % interval, per pair."""
    pairs = pairs.with_row_index("pair")
    both = _weighted_units(measured, pairs, sides)
    figures = [pl.DataFrame(schema={"pair": pairs.schema["pair"], **PAIR_FIGURES})]
    for (n,), group in both.filter(pl.col("n") >= 2).group_by("n", maintain_order=True):
        figures.append(_intervals(group, int(str(n))))
    every = pl.concat(figures)
    return finite(pairs.join(every, on="pair", how="inner", maintain_order="left").drop("pair"))


def _weighted_units(
    measured: pl.DataFrame, pairs: pl.DataFrame, sides: Sequence[tuple[str, float]]
) -> pl.DataFrame:
    """The sums of both sides put together, each times its weight, per pair and unit.

    ``rounding``: what rounding alone does to their sum in 16 bits.
    """
    sums = _common_units(measured, pairs, [name for name, _ in sides])
    weights = dict(enumerate(weight for _, weight in sides))
    weight = pl.col("side").replace_strict(weights, return_dtype=pl.Float64)
    # A side of more seeds has more tokens of the same unit.
    tokens = pl.col("tokens").first().over("pair", "unit")
    weighted = sums.with_columns(nll=pl.col("nll") * weight * tokens / pl.col("tokens"))
    units_of_both = weighted.group_by("pair", "unit", "n", maintain_order=True)
    both = units_of_both.agg(pl.col("nll").sum(), pl.col("tokens").first())

    over, under = (abs(weight) for _, weight in sides)
    rounded = over * pl.col("rounding_log") + under * pl.col("under_rounding")
    return both.join(pairs.select("pair", rounding=rounded), on="pair", maintain_order="left")


def _intervals(group: pl.DataFrame, n: int) -> pl.DataFrame:
    """``PAIR_FIGURES`` of pairs that have ``n`` units in common; ``group`` has those units, pair by pair."""
    nll, tokens = (group[name].cast(pl.Float64).to_numpy().reshape(-1, n) for name in ("nll", "tokens"))
    mean, error = weighted_mean(nll, tokens)
    rounding = group["rounding"].to_numpy()[::n]
    half = t_quantile(1 - ALPHA / 2, n) * error + rounding
    return group.select(pl.col("pair").unique(maintain_order=True)).with_columns(
        factor=pl.Series(np.exp(mean)),
        low=pl.Series(np.exp(mean - half)),
        high=pl.Series(np.exp(mean + half)),
        n=pl.lit(n, pl.Int64),
    )


def _common_units(measured: pl.DataFrame, pairs: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Sums per pair, side (0 over, 1 under) and unit, over the windows that both sides scored.

    In the order of the pairs.
    """
    sides = [pairs.select("pair", side=pl.lit(i, pl.Int64), pool_id=name) for i, name in enumerate(names)]
    rows = pl.concat(sides).join(measured.filter("paired"), on="pool_id", how="inner")
    both = rows.filter(pl.col("side").n_unique().over("pair", "window_index") == 2)
    sums = units(both, ["pair", "side"])
    return sums.filter(pl.col("n").n_unique().over("pair") == 1).sort("pair", "unit", "side")


def above() -> pl.Expr:
    """Pairs in which the first cell is shown to be worse: the
    interval lies above 1, and the factor is no rounding."""
    return (pl.col("low") > 1) & (pl.col("factor") > 1 + ROUNDING)


def below() -> pl.Expr:
    """Pairs in which the first cell is shown to be better."""
    return (pl.col("high") < 1) & (pl.col("factor") < 1 - ROUNDING)
