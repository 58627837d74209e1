"""Tasks of lm-evaluation-harness: the harness's figure of
each metric beside the dense twin's, paired over documents."""

from __future__ import annotations

import polars as pl

from analysis.impossible import in_cell, of_twin, without_figures
from analysis.keys import CELL, VERSIONS
from analysis.perplexity.tables import in_reading_order
from analysis.statistics.pairs import POOL, finite
from analysis.statistics.uncertainty import mean_bounds
from analysis.verdicts import plain_verdict

METRIC = ["task_name", "metric", "filter"]
FEW_DOCUMENTS = 30
"""Below this many documents, of which many are simply right or wrong, an interval is marked."""

SAME = 1e-6
"""A figure that is this close to the mean over its documents, relatively, is that mean."""

NAMED = [
    "higher_is_better",
    "num_fewshot",
    "suite",
    "seeds",
    "impossible",
    "verdict",
    "note",
]
"""What stays, beside keys and settings, of a figure that cannot be."""

WHOLE = pl.col("doc_index").is_null()


def tasks(rows: pl.LazyFrame) -> pl.DataFrame:
    """Per pooled cell, task, metric and filter: the harness's value
    and standard error, the dense twin's, their difference.

    The difference has a 95 % interval over documents where the figure is their mean; one made in another way
    (perplexity of a corpus, F1) has none, and ``note`` says so. Seeds are averaged, without a standard error.
    ``suite`` is what was asked for, which may have several tasks.
    """
    documents = _documents(rows).collect()
    keys = [*POOL, *METRIC]
    means = documents.group_by(keys).agg(
        paired_documents=pl.len(), own_mean=pl.col("value").mean(), dense_mean=pl.col("dense_value").mean()
    )
    compared = documents.filter(pl.col("policy") != "dense")
    intervals = mean_bounds(compared, keys, "difference", "weight", "difference")
    table = _wholes(rows).collect()
    for figures in (means, intervals, _impossible(rows).collect()):
        table = table.join(figures, on=keys, how="left", nulls_equal=True, maintain_order="left")

    is_mean = _close("value", "own_mean") & _close("dense_value", "dense_mean")
    ends = pl.col("difference_low", "difference_high")
    # A cache may have been pruned only after all that was asked had been predicted.
    verdict = plain_verdict(never=pl.col("share_pruned") == 0)
    table = table.with_columns(pl.when(is_mean).then(ends).name.keep(), verdict, _note(is_mean))
    table = without_figures(table, [*keys, *CELL, *NAMED])
    return in_reading_order(finite(table.drop("own_mean", "dense_mean")).sort(METRIC, maintain_order=True))


def _wholes(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The harness's own figures, with the twin's."""
    on = ["dense_cell_id", *VERSIONS, *METRIC]
    whole = rows.filter(WHOLE)
    twin = whole.filter(pl.col("cell_id") == pl.col("dense_cell_id")).select(
        *on, dense_value="value", dense_stderr="stderr", dense_cache_tokens="cache_tokens_mean"
    )
    paired = whole.join(twin, on=on, how="left", nulls_equal=True, maintain_order="left")

    settings = [name for name in CELL if name != "beyond_context"]
    is_alone = pl.col("seed").n_unique() == 1
    cells = paired.group_by([*POOL, *METRIC], maintain_order=True).agg(
        *[pl.col(name).first() for name in [*settings, "higher_is_better", "num_fewshot"]],
        *[pl.when(is_alone).then(pl.col(name).first()).alias(name) for name in ("stderr", "dense_stderr")],
        pl.col("value", "dense_value", "cache_tokens_mean", "prune_events").mean(),
        share_pruned=pl.col("tokens_predicted_pruned").sum() / pl.col("tokens_predicted").sum(),
        suite=pl.col("dataset").first(),
        documents=pl.col("documents").max(),
        seeds=pl.col("seed").n_unique(),
        budget=pl.col("cache_tokens_mean").sum() / pl.col("dense_cache_tokens").sum(),
    )
    difference = pl.col("value") - pl.col("dense_value")
    return cells.with_columns(difference=difference, beyond_context=pl.lit(None, pl.Boolean))


def _documents(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Values of single documents beside the twin's, a document once: over seeds, means."""
    on = ["dense_cell_id", *VERSIONS, *METRIC, "doc_index"]
    single = rows.filter(~WHOLE, pl.col("value").is_not_null())
    twin = single.filter(pl.col("cell_id") == pl.col("dense_cell_id")).select(*on, dense_value="value")
    paired = single.join(twin, on=on, how="inner", nulls_equal=True)
    own = paired.group_by([*POOL, *METRIC, "doc_index"]).agg(
        pl.col("policy").first(), pl.col("value", "dense_value").mean()
    )
    ordered = own.sort([*POOL, *METRIC, "doc_index"])
    return ordered.with_columns(difference=pl.col("value") - pl.col("dense_value"), weight=pl.lit(1.0))


def _close(figure: str, mean: str) -> pl.Expr:
    return (
        (pl.col(figure) - pl.col(mean)).abs() <= SAME * pl.max_horizontal(pl.col(figure).abs(), 1.0)
    ).fill_null(False)


def _impossible(rows: pl.LazyFrame) -> pl.LazyFrame:
    """What cannot be in the figure of a metric, its documents' values, or the dense twin's, per pooled
    cell."""
    on = ["dense_cell_id", *VERSIONS, *METRIC]
    dense = rows.filter(pl.col("cell_id") == pl.col("dense_cell_id"))
    twin = dense.group_by(on).agg(dense_impossible=pl.col("impossible").drop_nulls().first())
    paired = rows.join(twin, on=on, how="left", nulls_equal=True)
    own = paired.with_columns(pl.coalesce("impossible", of_twin("dense_impossible")).alias("impossible"))
    return own.group_by([*POOL, *METRIC]).agg(in_cell())


def _note(is_mean: pl.Expr) -> pl.Expr:
    compared = pl.col("policy") != "dense"
    has_twin = pl.col("dense_value").is_not_null()
    too_late = (pl.col("share_pruned") == 0) & (pl.col("prune_events") > 0)
    notes = [
        pl.col("impossible"),
        _words(compared & ~has_twin, "no dense twin: no difference"),
        _words(compared & has_twin & ~is_mean, "no mean over paired documents: no interval"),
        _words(compared & too_late, "every token was predicted before its cache was pruned"),
        _words(pl.col("documents") < FEW_DOCUMENTS, f"n < {FEW_DOCUMENTS}"),
        pl.when(pl.col("seeds") > 1).then(pl.format("{} seeds averaged", "seeds")),
    ]

    joined = pl.concat_str(notes, separator="; ", ignore_nulls=True)
    return pl.when(joined != "").then(joined).alias("note")


def _words(condition: pl.Expr, words: str) -> pl.Expr:
    return pl.when(condition).then(pl.lit(words))
