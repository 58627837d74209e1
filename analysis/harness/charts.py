"""Charts of lm-evaluation-harness tasks: a metric against keep_ratio, with the dense value as a rule."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from analysis import labels
from analysis.draw.marks import Axis, interval_entry
from analysis.draw.panel import COMPARED, KEPT, Panel, Series
from analysis.draw.points import Group, groups, with_words
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import Chart, Points
from analysis.harness.tables import METRIC
from analysis.keys import GROUP
from analysis.retrieval.charts import dodged, settings
from analysis.verdicts import HOLLOW

PANEL = [*GROUP[:2], *METRIC, "num_fewshot", *GROUP[2:]]
MOST_CHARTS = 60
"""Charts of tasks on a page; a harness has groups of dozens of tasks."""

Z95 = 1.959963984540054
ABOUT = [
    ("policy", "policy"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("settings", "settings"),
    ("value", "value", ".4~r"),
    interval_entry("± 1.96 standard errors", "low", "high"),
    ("dense", "dense_value", ".4~r"),
    ("difference", "difference", "+.4~f"),
    interval_entry("95 % interval, paired", "difference_low", "difference_high"),
    ("realised budget", "budget", ".1%"),
    ("documents", "documents", ","),
    ("verdict", "verdict"),
]


SHOWN = [
    "policy",
    "keep_ratio",
    "settings",
    "value",
    "low",
    "high",
    "dense_value",
    "difference",
    "difference_low",
    "difference_high",
    "budget",
    "documents",
    "verdict",
    "hollow",
    "end",
]
"""What a point holds."""


def task_charts(scores: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """One chart per model, dataset, task, metric and filter,
    ``MOST_CHARTS`` at most; ``scores``: ``task_tables.tasks``."""
    return [_chart(group, looks) for group in compared_groups(scores)[:MOST_CHARTS]]


def compared_groups(scores: pl.DataFrame) -> list[Group]:
    """What could have a chart: figures of one metric that a cell other than the dense one has."""
    known = with_words(scores.filter(pl.col("value").is_not_null())).with_columns(
        settings(),
        low=pl.col("value") - Z95 * pl.col("stderr"),
        high=pl.col("value") + Z95 * pl.col("stderr"),
        hollow=pl.col("verdict").is_in(HOLLOW),
        end=pl.col("policy") == "dense",
    )
    return [group for group in groups(known, PANEL) if not group.cells["end"].all()]


def _chart(group: Group, looks: PolicyLooks) -> Chart:
    first = group.cells.row(0, named=True)
    words = _metric(first)
    others = [
        part for part in group.detail.split(" · ") if part and not part.startswith((*METRIC, "num_fewshot"))
    ]
    compared = group.cells.filter(~pl.col("end")).select(SHOWN)
    x = replace(KEPT, place="at")
    y = Axis("value", labels.text(first["metric"]), also=("low", "high", "dense_value"))
    frame = looks.told_apart(dodged(compared, x), "settings")

    panel = Panel(frame, x, y, looks.colour(frame), Series.of(frame, "settings")).dense(frame["dense_value"])
    panel = panel.line().bars("low", "high", width=1.2, opacity=0.5)
    panel = panel.among(COMPARED).dots(ABOUT).holes(frame)

    told = f"{words} against keep_ratio, {group.title}: {frame.height} cells beside the dense one"
    points = Points(f"tasks_{group.number}", frame)
    line = " · ".join([words, *others])
    # A task is its own text: one that is chosen on the page hides no task.
    about = {"model": group.about["model"]}
    return panel.chart("tasks", group, points, told, line, height=220, about=about)


def _metric(row: labels.Row) -> str:
    """What was measured, in words: task, metric, filter, examples, and which way is better."""
    chosen = "" if row["filter"] in (None, "none") else f", filter {labels.text(row['filter'])}"
    shots = "" if row["num_fewshot"] is None else f", {row['num_fewshot']}-shot"
    better = {True: ", higher is better", False: ", lower is better"}.get(row["higher_is_better"], "")
    return f"{labels.text(row['task_name'])}: {labels.text(row['metric'])}{chosen}{shots}{better}"
