"""Accuracy of retrieval against what was held of the cache."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import polars as pl

from analysis.draw.marks import Axis, equal, filtered, mark, names_of
from analysis.draw.panel import COMPARED, HELD, Panel, Series
from analysis.draw.points import Group
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import HEIGHT, Chart, Points
from analysis.retrieval.charts import (
    ABOUT,
    RETAINED,
    asked_groups,
    cell_frame,
    dodged,
    length_choice,
    of_length,
)

ACCURACY = Axis("accuracy", "questions answered right", ".0%", reach=(0.0, 1.0))


def budget_charts(answers: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """Accuracy with Wilson's interval against the realised
    budget, a line per policy and settings, dense as a rule."""
    known = cell_frame(answers).filter(pl.col("budget").is_not_null())
    return [
        _budget_chart(group, looks)
        for group in asked_groups(known)
        if (group.cells["policy"] != "dense").any()
    ]


def _budget_chart(group: Group, looks: PolicyLooks) -> Chart:
    frame = _budget_frame(group.cells)
    params, only = length_choice(frame)
    x = replace(HELD, log_span=8, place="at")
    frame = looks.told_apart(dodged(frame, x), "settings")
    cells, chosen = frame.filter(~pl.col("end")), of_length(frame)

    panel = Panel(cells, x, ACCURACY, looks.colour(cells), Series.of(cells, "settings", names_of))
    panel = panel.add(*_dense_rule(frame)).among(COMPARED, *chosen)
    panel = panel.line(order="budget:Q", opacity=0.7)
    panel = panel.bars("accuracy_low", "accuracy_high", gaps=False, width=1.2, opacity=0.5)
    panel = panel.dots(ABOUT).holes(cells, *chosen)

    words = f"retrieval accuracy against {HELD.title}, {group.title}, {group.detail}: {cells.height} cells"
    points = Points(f"accuracy_{group.number}", frame)
    lines = (group.detail, only)
    return panel.chart("accuracy", group, points, words, *lines, params=params, height=HEIGHT + 10)


def _budget_frame(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells as points. The dense twin has no policy here: it stays where a policy is chosen."""
    dense = pl.col("policy") == "dense"
    accuracy = ["accuracy", "accuracy_low", "accuracy_high", "dense_accuracy"]
    kept = [
        "length",
        "settings",
        "keep_ratio",
        "budget",
        *accuracy,
        *RETAINED,
    ]
    policy = pl.when(~dense).then(pl.col("policy"))
    return cells.select(*kept, "questions", "verdict", "hollow", end=dense, policy=policy)


def _dense_rule(frame: pl.DataFrame) -> list[alt.Chart]:
    """The dense twin of the chosen length as a dotted rule with its label, and its interval as a band."""
    whole = filtered(mark(), equal("end", True), *of_length(frame))
    band = whole.mark_rect(opacity=0.08, fill="var(--fg)")
    band = band.encode(y=ACCURACY.y(frame, "accuracy_low"), y2=alt.Y2("accuracy_high"))
    line = whole.mark_rule(strokeDash=[3, 3], stroke="var(--fg)", strokeWidth=1).encode(y=ACCURACY.y(frame))
    words = whole.transform_calculate(text="'dense ' + format(datum.accuracy, '.1%')")
    text = words.mark_text(align="left", dx=4, dy=9, fontSize=11, fill="var(--fg)")
    return [band, line, text.encode(x=alt.value(0), y=ACCURACY.y(frame), text="text:N")]
