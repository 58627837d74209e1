"""Charts of lm-evaluation-harness tasks: a metric against keep_ratio, with the dense value as a rule."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis import labels
from analysis.keys import GROUP
from analysis.marks import (
    Axis,
    Chart,
    Points,
    bounds,
    dash,
    equal,
    holes,
    in_order,
    mark,
    rule,
    shape,
    specification,
    tooltips,
)
from analysis.points import Group, groups, with_words
from analysis.policy_looks import PolicyLooks, look
from analysis.retrieval_charts import dodged, settings
from analysis.task_tables import METRIC
from analysis.verdicts import HOLLOW

PANEL = [*GROUP[:2], *METRIC, "num_fewshot", *GROUP[2:]]
MOST_CHARTS = 60
"""Charts of tasks on a page; a harness has groups of dozens of tasks."""

Z95 = 1.959963984540054
ABOUT = [
    ("policy", "policy"), ("keep_ratio", "keep_ratio", ".3~f"), ("settings", "settings"), ("value", "value", ".4~r"),
    bounds("± 1.96 standard errors", "low", "high"), ("dense", "dense_value", ".4~r"), ("difference", "difference", "+.4~f"),
    bounds("95 % interval, paired", "difference_low", "difference_high"), ("realised budget", "budget", ".1%"),
    ("documents", "documents", ","), ("verdict", "verdict"),
]  # fmt: skip


def task_charts(scores: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """One chart per model, dataset, task, metric and filter, ``MOST_CHARTS`` at most; ``scores``: ``task_tables.tasks``."""
    return [_chart(group, looks) for group in compared_groups(scores)[:MOST_CHARTS]]


def compared_groups(scores: pl.DataFrame) -> list[Group]:
    """What could have a chart: figures of one metric that a cell other than the dense one has."""
    known = with_words(scores.filter(pl.col("value").is_not_null())).with_columns(
        settings(), low=pl.col("value") - Z95 * pl.col("stderr"), high=pl.col("value") + Z95 * pl.col("stderr"),
        hollow=pl.col("verdict").is_in(HOLLOW), end=pl.col("policy") == "dense",
    )  # fmt: skip
    return [group for group in groups(known, PANEL) if not group.cells["end"].all()]


def _chart(group: Group, looks: PolicyLooks) -> Chart:
    first = group.cells.row(0, named=True)
    chosen = "" if first["filter"] in (None, "none") else f", filter {labels.text(first['filter'])}"
    shots = "" if first["num_fewshot"] is None else f", {first['num_fewshot']}-shot"
    better = {True: ", higher is better", False: ", lower is better"}.get(first["higher_is_better"], "")
    words = f"{labels.text(first['task_name'])}: {labels.text(first['metric'])}{chosen}{shots}{better}"
    others = [part for part in group.detail.split(" · ") if part and not part.startswith((*METRIC, "num_fewshot"))]
    keys = ["keep_ratio", "settings", "value", "low", "high", "dense_value", "difference", "difference_low", "difference_high"]
    kept = group.cells.select("policy", *keys, "budget", "documents", "verdict", "hollow", "end")
    x = Axis("keep_ratio", "keep_ratio", ".2~f", reach=(1.0,))
    frame = looks.told_apart(dodged(kept.filter(~pl.col("end")), x), "settings")
    points = Points(f"tasks_{group.number}", frame)
    y = Axis("value", labels.text(first["metric"]), also=("low", "high", "dense_value"))
    kind, tint = look(frame, "settings"), looks.colour(frame)
    names = in_order(frame, kind)
    place = {"x": x.x(frame, "at"), "y": y.y(frame)}
    line = mark().transform_calculate(dash=f"datum.{kind}").mark_line(strokeWidth=1.5, opacity=0.8)
    line = line.encode(**place, color=tint, detail="settings:N", strokeDash=dash(names, "dash"))
    bars = mark().transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.2, opacity=0.5)
    bars = bars.encode(x=place["x"], y=y.y(frame, "low"), y2=alt.Y2("high"), color=tint)
    dots = mark().transform_filter(equal("end", False)).mark_point(filled=True, size=60, opacity=1)
    dots = tooltips(dots.encode(**place, color=tint, shape=shape(names, kind, "settings")), ABOUT)
    dense = frame["dense_value"].drop_nulls()
    reference = rule(dense[0], f"dense {dense[0]:.4g}", y, frame) if len(dense) else []
    description = f"{words} against keep_ratio, {group.title}: {frame.height} cells beside the dense one"
    title = [group.title, " · ".join([words, *others])]
    layers = [*reference, line, bars, dots, *holes(frame, kind, names, place)]
    spec = specification(layers, points, title, description, height=220)
    # A task is its own text: one that is chosen on the page hides no task.
    return Chart(f"tasks-{group.number}", description, spec, points, {"model": group.about["model"]})
