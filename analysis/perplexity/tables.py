"""The perplexity table: one row per pooled cell, verdicts, and the view by dataset and keep_ratio; what
enters no aggregate."""

from __future__ import annotations

import polars as pl

from analysis.impossible import without_figures
from analysis.keys import CELL, GROUP, VARIANT, VERSIONS
from analysis.statistics.pairs import FEW_WINDOWS, POOL, compare
from analysis.statistics.uncertainty import ALPHA, holm, least_p
from analysis.verdicts import IMPOSSIBLE, WHY_EXCLUDED, scored_verdict, valid

NAMED = [
    *POOL,
    *CELL,
    "window",
    "stride",
    "seeds",
    "n_windows",
    "n_paired",
    "impossible",
    "verdict",
    "note",
]
"""What stays of a cell of which a figure cannot be: what it is, and why it has no figures."""

_LAYERS = pl.col("skip_layers").cast(pl.List(pl.String)).list.join(",").fill_null("")

ORDER = [
    "model",
    "dataset",
    *VERSIONS,
    "prune_after",
    "policy",
    _LAYERS,
    *[name for name in VARIANT if name != "skip_layers"],
    "keep_ratio",
]


def summary(measured: pl.DataFrame) -> pl.DataFrame:
    """One row per pooled perplexity cell, dense twins first; ``measured`` comes from ``pairs.with_dense``.

    The columns of ``pairs.compare``, ``verdict``, ``note`` and ``p_holm``: the p of the valid cells, adjusted
    for how many of them a grid has, among which a small one is expected by chance. A cell of so few windows
    that its adjusted p could not be below 0.05, whatever was measured, has none: it would look like a result.
    """
    cells = without_figures(compare(measured).with_columns(scored_verdict(), note()), NAMED)
    can_reach = least_p(pl.col("n_units")) * valid().sum().over(GROUP) < ALPHA
    judged = pl.when(valid() & can_reach).then(pl.col("p_value"))
    return in_reading_order(
        cells.with_columns(p_value=judged).with_columns(p_holm=holm(pl.col("p_value"), GROUP))
    )


def with_failures(cells: pl.DataFrame, failed: pl.DataFrame) -> pl.DataFrame:
    """The cells and, as rows with the verdict FAILED and the
    reason as note, those that failed and have no rows.

    ``failed`` comes from ``coverage.failures``. They have
    no figures, so they enter no chart and no aggregate.
    """
    lost = failed.filter(pl.col("task") == "perplexity").join(cells, on="cell_id", how="anti")
    lost = lost.unique(["cell_id", *VERSIONS], keep="last", maintain_order=True)
    reasons = pl.format("{}: {}", pl.col("error_type").fill_null("?"), pl.col("message").fill_null(""))
    known = [name for name in lost.columns if name in cells.columns]
    rows = lost.select(*known, verdict=pl.lit("FAILED"), note=reasons.str.slice(0, 200))
    return in_reading_order(pl.concat([cells, rows], how="diagonal_relaxed")) if rows.height else cells


def excluded(
    cells: pl.DataFrame, speeds: pl.DataFrame, answers: pl.DataFrame, scores: pl.DataFrame
) -> pl.DataFrame:
    """How many cells enter no aggregate, by verdict and with
    the reason: ``task``, ``verdict``, ``cells``, ``why``.

    ``answers`` comes from ``retrieval_tables.retrieval``, ``scores`` from ``task_tables.tasks``. A cell
    counts once per task and verdict.
    """
    why = pl.col("verdict").replace_strict(WHY_EXCLUDED, default=None)
    judged = {"perplexity": cells, "retrieval": answers, "tasks": scores}
    own = ["cell_id", *VERSIONS, "verdict"]
    verdicts = [frame.select(*own, task=pl.lit(task)).unique() for task, frame in judged.items()]
    found = (
        pl.concat(verdicts)
        .group_by("task", "verdict")
        .agg(cells=pl.len())
        .with_columns(why=why)
        .filter(why.is_not_null())
    )
    timed = speeds.filter(pl.col("timing").is_in(["UNSTABLE_TIMING", "WRONG_ON_PURPOSE", IMPOSSIBLE]))
    timed = timed.group_by(verdict="timing").agg(cells=pl.len(), why=pl.col("fault").drop_nulls().first())
    timed = timed.with_columns(
        why=pl.coalesce(pl.col("verdict").replace_strict(WHY_EXCLUDED, default=None), "why")
    )
    both = pl.concat([found, timed.with_columns(task=pl.lit("generation"))], how="diagonal_relaxed")
    return both.select("task", "verdict", "cells", "why").sort("task", "verdict", descending=[True, False])


def in_reading_order(cells: pl.DataFrame) -> pl.DataFrame:
    """Cells in reading order: model, dataset, threshold, policy,
    settings, keep_ratio; nulls (the dense twin) first."""
    return cells.sort(ORDER, nulls_last=False, maintain_order=True)


def note() -> pl.Expr:
    """What a reader has to know before using a row, in words; null where there is nothing."""
    paired = pl.col("n_paired")
    few = (
        pl.when(pl.col("policy") == "dense")
        .then(None)
        .when(paired == 0)
        .then(pl.lit("no dense twin: no ratio"))
        .when(paired == 1)
        .then(pl.lit("one window: no interval"))
        .when(pl.coalesce("n_units", paired) < FEW_WINDOWS)
        .then(pl.lit(f"n < {FEW_WINDOWS}"))
    )
    alone = pl.format("{} windows without a twin", pl.col("n_windows") - paired)
    lost = pl.when((paired > 0) & (paired < pl.col("n_windows"))).then(alone)
    seeds = pl.when(pl.col("seeds") > 1).then(pl.format("{} seeds pooled", "seeds"))
    on_purpose = pl.lit("reproduces the position bug on purpose")
    bug = pl.when(pl.col("position_mode") == "cache_length").then(on_purpose)

    notes = [pl.col("impossible"), few, lost, seeds, bug, beyond()]
    joined = pl.concat_str(notes, separator="; ", ignore_nulls=True)
    return pl.when(joined != "").then(joined).alias("note")


def beyond() -> pl.Expr:
    """The note on figures from texts beyond the trained context; null elsewhere."""
    return pl.when(pl.col("beyond_context")).then(pl.lit("longer than the model was trained on"))


def by_ratio(cells: pl.DataFrame) -> pl.DataFrame:
    """Per dataset, keep_ratio, model and policy: how many cells, and the spread of their PPL ratios.

    ``cells`` comes from ``summary``. Cells that (almost) never pruned are counted
    and enter no figure; ratios are not averaged, because cells with other
    thresholds are other measurements: lowest, median and highest are shown.
    """
    ratio = pl.col("ratio").filter(valid())
    keys = ["dataset", "keep_ratio", "model", *VERSIONS, "policy"]
    grouped = cells.filter(pl.col("policy") != "dense").group_by(keys, maintain_order=True)
    return (
        grouped.agg(
            cells=pl.len(),
            valid=valid().sum(),
            ratio_min=ratio.min(),
            ratio_median=ratio.median(),
            ratio_max=ratio.max(),
            budget_min=pl.col("budget").filter(valid()).min(),
            budget_max=pl.col("budget").filter(valid()).max(),
        )
        .sort(
            [
                "dataset",
                "dataset_fingerprint",
                "model",
                "model_revision",
                "keep_ratio",
                "policy",
            ],
            nulls_last=False,
        )
        .sort("keep_ratio", descending=True, maintain_order=True)
    )
