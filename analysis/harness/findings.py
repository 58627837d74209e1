"""Sentences on the harness's tasks for the head of the
page: how many figures are shown to be worse than dense."""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.harness.tables import FEW_DOCUMENTS, METRIC
from analysis.keys import GROUP
from analysis.statistics.uncertainty import ALPHA, t_quantile
from analysis.verdicts import valid


def task_findings(scores: pl.DataFrame) -> list[str]:
    """A sentence per model: how many figures moved beyond their paired interval, and which most. Each task is
    its own dataset."""
    usable = scores.filter(
        valid(),
        pl.col("difference_low").is_not_null(),
        pl.col("position_mode").ne_missing("cache_length"),
        pl.col("paired_documents") >= FEW_DOCUMENTS,
    )
    by_model = usable.group_by([name for name in GROUP if name != "dataset"], maintain_order=True)
    return [_sentence(group) for _, group in by_model]


def _sentence(group: pl.DataFrame) -> str:
    """The sentence on one model's figures."""
    sign = pl.when(pl.col("higher_is_better").fill_null(True)).then(1.0).otherwise(-1.0)
    worse = pl.when(sign > 0).then(pl.col("wide_high") < 0).otherwise(pl.col("wide_low") > 0)
    shown = _together(group).filter(worse).sort(sign * pl.col("difference"), maintain_order=True)

    place = f"{labels.text(group['model'][0])}, tasks of lm-evaluation-harness"
    figures = f"{group.height:,} figures of {group.select(METRIC).n_unique()} metrics"
    if shown.is_empty():
        return f"{place}: none of {figures} is shown to be worse than dense."
    many = f"{shown.height:,} of {figures} are shown to be worse than dense (all at the 95 % level together)"
    return f"{place}: {many}; most: {_figure(shown.row(0, named=True))}."


def _figure(row: labels.Row) -> str:
    """A figure's difference to dense, with an interval that holds for all of them together, and its cell."""
    change = f"{labels.figure(row['difference'])} {labels.interval(row['wide_low'], row['wide_high'])}"
    metric = f"{labels.text(row['task_name'])}, {labels.text(row['metric'])}"
    cell = f"{labels.cell(row)}, prune_after {labels.text(row['prune_after'])}"
    return f"{metric} {change} ({cell})"


def _together(group: pl.DataFrame) -> pl.DataFrame:
    """The figures with ``wide_low`` and ``wide_high``: intervals
    of the differences that hold for all of them together."""
    n = group["paired_documents"].to_numpy()
    factor = pl.Series(t_quantile(1 - ALPHA / (2 * group.height), n) / t_quantile(1 - ALPHA / 2, n))
    half = (pl.col("difference_high") - pl.col("difference_low")) / 2 * factor
    return group.with_columns(wide_low=pl.col("difference") - half, wide_high=pl.col("difference") + half)
