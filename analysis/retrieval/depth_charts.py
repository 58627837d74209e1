"""Accuracy of retrieval by depth of the answer and length of the context."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis import labels
from analysis.draw.marks import gradient, in_order, mark, names_of
from analysis.draw.panel import Panel
from analysis.draw.points import Group, with_words
from analysis.draw.policy_looks import palette_rank
from analysis.draw.specification import Chart, Points, chooser
from analysis.perplexity.tables import in_reading_order
from analysis.retrieval.charts import FIGURES, RETAINED, asked_groups, settings
from analysis.retrieval.tables import ASKED_DOWN, ASKED_ORDER, QUESTIONS, figures, with_twin
from analysis.statistics.pairs import POOL, finite

OF_DEPTH = [
    ("cell", "series"),
    ("keep_ratio", "kept"),
    ("context tokens", "length"),
    ("depth", "depth", ".1%"),
    *FIGURES,
]


def depth_charts(rows: pl.LazyFrame) -> list[Chart]:
    """Accuracy by depth and length, one chart per model, dataset and sort of question; ``rows``:
    retrieval's."""
    cells = figures(with_twin(rows), [*QUESTIONS, "depth"]).collect()
    spoilt = pl.col("impossible").is_not_null().any().over(*POOL, *QUESTIONS)
    cells = cells.filter(~spoilt)
    ordered = cells.sort([*ASKED_ORDER, "depth"], descending=[*ASKED_DOWN, False])
    return [_depth_chart(group) for group in asked_groups(with_words(in_reading_order(finite(ordered))))]


def _depth_chart(group: Group) -> Chart:
    frame = _depth_frame(group.cells)
    lengths, depths = alt.Axis(labelAngle=0), alt.Axis(format=".1~%")
    x = alt.X("length:O", sort=names_of(frame, "length"), title="context tokens", axis=lengths)
    y = alt.Y("depth:O", sort="ascending", title="depth of the answer", axis=depths)
    panel = _squares(Panel(frame, x, y))

    names = in_order(frame, "series")
    kept = set(frame.filter(~pl.col("whole"))["kept"]) or {frame["kept"][0]}
    ratios = sorted(kept, key=float, reverse=True)
    # The first series may lack the highest keep_ratio of the others.
    params = [chooser("shown", names), {**chooser("keep_ratio", ratios, "ratio"), "value": frame["kept"][0]}]

    told = f"{group.title}, {group.detail}: {len(names)} series of {len(ratios)} keep_ratios"
    words = f"retrieval by depth and length, {told}"
    points = Points(f"depth_{group.number}", frame)
    height = 38 * frame["depth"].n_unique() + 20
    return panel.chart("retrieval", group, points, words, group.detail, params=params, height=height)


def _squares(panel: Panel) -> Panel:
    """A square for each length and depth of the chosen series: the accuracy, and what was held below it."""
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    tint = alt.Color("accuracy:Q", scale=scale, legend=gradient("questions answered right", ".0%"))
    ink = alt.condition("datum.accuracy > 0.5", alt.value("black"), alt.value("white"))

    shown = mark().transform_filter("datum.series === shown && (datum.whole || datum.kept === ratio)")
    share = shown.transform_calculate(text="format(datum.accuracy, '.0%')")
    held = shown.transform_filter("isValid(datum.retained)")
    held = held.transform_calculate(text="'held ' + format(datum.retained, '.0%')")

    panel = panel.drawn(shown.mark_rect(stroke="var(--bg)"), OF_DEPTH, color=tint)
    panel = panel.drawn(share.mark_text(fontSize=11, dy=-5), text="text:N", fill=ink)
    return panel.drawn(held.mark_text(fontSize=9, dy=8), text="text:N", fill=ink)


def _depth_frame(cells: pl.DataFrame) -> pl.DataFrame:
    """A square for each cell, length and depth: ``series`` in the order of the legend, ``whole`` where it is
    the dense one's."""
    whole = pl.col("policy") == "dense"
    compared = pl.format("{}, {}", "policy", settings())
    series = pl.when(whole).then(pl.lit("dense")).otherwise(compared).alias("series")
    accuracy = ["accuracy", "accuracy_low", "accuracy_high", "dense_accuracy"]

    order, down = [whole, palette_rank(), "keep_ratio"], [False, False, True]
    return cells.sort(order, descending=down, maintain_order=True).select(
        series,
        *accuracy,
        "budget",
        "depth",
        "questions",
        kept=pl.col("keep_ratio").map_elements(labels.ratio_setting, pl.String),
        whole=whole,
        **RETAINED,
        length=pl.col("context_tokens").cast(pl.String),
    )
