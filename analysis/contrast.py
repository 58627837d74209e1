"""One pruned cell against another on the same windows: the quotient of their PPLs with a paired bootstrap interval.

A difference between two cells is surer than their two ratios to dense: both saw the same text, and the same resamples are drawn
for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analysis.pairs import finite
from analysis.uncertainty import LEVEL, RESAMPLES, SEED, resampled_ratios, units

SETTINGS = [
    "policy", "keep_ratio", "prune_after", "skip_layers", "protect_sink", "protect_recent", "schedule", "position_mode",
]  # fmt: skip
"""What a cell of one model, text and device is set to. Two cells that are contrasted differ in one of these."""

ROUNDING = 1e-3
"""Two cells that differ by less than this share are equal: what order of summation alone can do to a cell."""

FIGURES = {"factor": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.Int64}


def contrast(measured: pl.DataFrame, over: pl.DataFrame, under: pl.DataFrame, differs: Sequence[str]) -> pl.DataFrame:
    """PPL of each cell of ``over`` divided by that of the cell of ``under`` that equals it in all settings but ``differs``.

    ``measured``: ``pairs.with_dense``, cells: ``tables.summary``, all of one model, text, device and windows. One row per pair:
    the columns of ``over``, ``under_id`` and ``under_budget``, and ``factor``, ``low``, ``high``, ``n`` (units that both scored:
    documents, or windows). Pairs with fewer than two units in common have no interval and are left out.
    """
    same = [name for name in SETTINGS if name not in differs]
    partner = under.select(*same, under_id="pool_id", under_budget="budget")
    pairs = over.join(partner, on=same, how="inner", nulls_equal=True, maintain_order="left").with_row_index("pair")
    sums = _common_units(measured, pairs)
    found = [pl.DataFrame(schema={"pair": pairs.schema["pair"], **FIGURES})]
    for (n,), group in sums.filter(pl.col("n") >= 2).group_by("n", maintain_order=True):
        shape = (-1, 2, int(str(n)))
        differences, tokens = (group[name].to_numpy().reshape(shape) for name in ("nll", "tokens"))
        figures = pl.from_numpy(_quotients(differences, tokens), schema=["factor", "low", "high"])
        numbers = group.select(pl.col("pair").unique(maintain_order=True))
        found.append(numbers.hstack(figures).with_columns(n=pl.lit(n, pl.Int64)))
    return finite(pairs.join(pl.concat(found), on="pair", how="inner", maintain_order="left").drop("pair"))


def _common_units(measured: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Sums per pair, side (0 over, 1 under) and unit, over the windows that both sides scored."""
    sides = [pairs.select("pair", side=pl.lit(i), pool_id=name) for i, name in enumerate(("pool_id", "under_id"))]
    rows = pl.concat(sides).join(measured.filter("paired"), on="pool_id", how="inner")
    both = rows.filter(pl.col("side").n_unique().over("pair", "window_index") == 2)
    sums = units(both, ["pair", "side"])
    return sums.filter(pl.col("n").n_unique().over("pair") == 1)


def _quotients(differences: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[pairs, 3]: factor, low, high from sums [pairs, 2, units]."""
    mean = differences.sum(axis=2) / tokens.sum(axis=2)
    pairs, _, n = differences.shape
    ratios = resampled_ratios(differences.reshape(-1, n), tokens.reshape(-1, n), RESAMPLES, SEED).reshape(pairs, 2, -1)
    low, high = np.quantile(ratios[:, 0] / ratios[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return np.stack([np.exp(mean[:, 0] - mean[:, 1]), low, high], axis=1)


def above() -> pl.Expr:
    """Pairs in which the first cell is shown to be worse: the interval lies above 1, and the factor is no rounding."""
    return (pl.col("low") > 1) & (pl.col("factor") > 1 + ROUNDING)


def below() -> pl.Expr:
    """Pairs in which the first cell is shown to be better."""
    return (pl.col("high") < 1) & (pl.col("factor") < 1 - ROUNDING)


def mostly(pairs: pl.DataFrame, shown: pl.Expr) -> bool:
    """Whether more than half of the pairs show it.

    One of many is shown by chance; more than half are in at most 5 of 100 experiments without a difference, whatever the
    dependence between pairs, because each one errs to either side in 2.5 (Markov's inequality).
    """
    return 2 * pairs.filter(shown).height > pairs.height
