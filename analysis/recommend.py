"""Which setting to use: the Pareto front over what a cell really held and how much worse its PPL may be."""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.load import VERSION_COLUMNS
from analysis.verdicts import valid

GROUP = ["model", "dataset", *VERSION_COLUMNS, "device", "dtype", "window", "stride"]
MAX_PPL_INCREASE = 0.01


def usable() -> pl.Expr:
    """Cells that a recommendation may rest on: valid, with an interval and a budget, no bug reproduced on purpose."""
    return (
        valid()
        & pl.col("ratio_high").is_not_null()
        & pl.col("budget").is_not_null()
        & pl.col("position_mode").ne_missing("cache_length")
    )


def front(cells: pl.DataFrame) -> pl.DataFrame:
    """The usable cells that no other of their model and dataset beats in realised budget and upper bound of the PPL ratio."""
    ranked = cells.filter(usable()).sort("budget", "ratio_high", maintain_order=True)
    best_before = pl.col("ratio_high").cum_min().shift(1).over(GROUP)
    best = ranked.filter(best_before.is_null() | (pl.col("ratio_high") < best_before))
    return best.sort(*GROUP, "budget", nulls_last=False, maintain_order=True)


def recommended(cells: pl.DataFrame, tolerance: float = MAX_PPL_INCREASE) -> pl.DataFrame:
    """One row per model and dataset: the cell that holds least among those whose upper bound stays within the tolerance.

    Columns of the cell, null where there is none, and ``advice`` in words.
    """
    groups = cells.filter(pl.col("policy") != "dense").select(GROUP).unique(maintain_order=True)
    within = pl.col("ratio_high") <= 1 + tolerance
    chosen = front(cells).filter(within).sort("budget", maintain_order=True).unique(GROUP, keep="first", maintain_order=True)
    least = front(cells).group_by(GROUP).agg(least=pl.col("ratio_high").min())
    table = groups.join(chosen, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
    table = table.join(least, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
    limit = f"{100 * tolerance:g} %"
    worst = (100 * (pl.col("least") - 1)).round(2)
    words = (
        pl.when(pl.col("budget").is_not_null())
        .then(pl.format("at most {} worse with 95 % confidence", pl.lit(limit)))
        .when(pl.col("least").is_not_null())
        .then(
            pl.format(
                "no recommendation: no cell is shown to stay within {}; the closest may be {} % worse", pl.lit(limit), worst
            )
        )
        .otherwise(pl.lit("no recommendation: no cell that pruned has an interval"))
    )
    return table.with_columns(advice=words).drop("least").sort(GROUP, nulls_last=False, maintain_order=True)


def advice_in_words(advised: pl.DataFrame) -> list[str]:
    """A sentence per model and dataset; ``advised`` comes from ``recommended``."""
    found = []
    for row in advised.iter_rows(named=True):
        place, advice = f"{row['model']} on {row['dataset']}", row["advice"]
        if row["budget"] is not None:
            cell = f"{labels.cell(row)}, prune_after {labels.text(row['prune_after'])}"
            advice = f"least cache for a PPL {advice}: {labels.percent(row['budget'])} of the dense one ({cell})"
        found.append(f"{place}: {advice}.")
    return found
