"""What became of the answers of retrieval: right, or wrong with the answer dropped, partly held or held."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import polars as pl

from analysis import labels
from analysis.draw.marks import filtered, mark, names_of
from analysis.draw.panel import Panel
from analysis.draw.points import Group, spread
from analysis.draw.policy_looks import palette_rank
from analysis.draw.specification import Chart, Points, chooser
from analysis.perplexity.cell_charts import SIDE_BY_SIDE
from analysis.retrieval.charts import (
    CELL_ENTRIES,
    FIGURES,
    RETAINED,
    asked_groups,
    cell_frame,
    length_choice,
    of_length,
)
from analysis.retrieval.tables import LOST, RIGHT
from analysis.verdicts import IMPOSSIBLE

OUTCOMES = {RIGHT: "recent", **dict(zip(LOST.values(), ("h2o", "snapkv", "tova", "random"), strict=True))}
"""What became of an answer, and whose colour it has."""

OF_OUTCOME = [
    *CELL_ENTRIES,
    ("what became of them", "outcome"),
    ("answers", "count", ","),
    ("of", "questions", ","),
    *FIGURES[3:7],
]


def outcome_charts(answers: pl.DataFrame) -> list[Chart]:
    """Answers right, and wrong with the answer dropped, partly
    held or held, as stacked bars per keep_ratio and policy."""
    compared = cell_frame(answers).filter(pl.col("policy") != "dense", pl.col("verdict") != IMPOSSIBLE)
    return [_outcome_chart(group) for group in asked_groups(compared)]


def _outcome_chart(group: Group) -> Chart:
    rows, frame = _outcome_frame(group.cells)
    params, only = length_choice(frame, chooser("settings", names_of(frame, "settings"), "setting"))
    panel = _bars(frame, rows["place"].to_list())

    counted = f"{rows.height} policies and keep_ratios"
    words = f"what became of the answers, {group.title}, {group.detail}: {counted}"
    points = Points(f"outcomes_{group.number}", frame)
    lines = (group.detail, only)
    params = [*params, {"name": "rows", "value": _row_names(rows)}]
    height = 15 * rows.height + 20
    return panel.chart("outcomes", group, points, words, *lines, params=params, height=height)


def _row_names(rows: pl.DataFrame) -> list[str]:
    """What stands beside the rows of the chart.

    Names from outside label the rows by way of a parameter's
    value: in a sorted domain they would become an expression.
    """
    settings = rows.select("policy", "keep_ratio").iter_rows()
    told = [f"{policy} {labels.ratio_setting(ratio)}" for policy, ratio in settings]
    return [words[:40].translate(labels.LINE_ENDS) for words in told]


def _bars(frame: pl.DataFrame, places: list[int]) -> Panel:
    """The stacked bars of the chosen settings and length."""
    shares = alt.Axis(format=".0%", tickCount=5)
    x = alt.X("begin:Q", title="share of the answers", axis=shares, scale=alt.Scale(domain=[0, 1]))
    named = alt.Axis(labelExpr="rows[datum.value]", labelLimit=140, grid=False)
    y = alt.Y("place:O", title=None, axis=named, scale=alt.Scale(domain=places, paddingInner=0.15))

    look = {"symbolType": "square", "symbolSize": 80, "labelLimit": 300}
    legend = alt.Legend(orient="bottom", columns=1, title=None, **look)
    colours = alt.Scale(domain=list(OUTCOMES), range=[f"var(--c-{name})" for name in OUTCOMES.values()])
    panel = Panel(frame, x, y, alt.Color("outcome:N", scale=colours, legend=legend))
    shown = filtered(mark(), "datum.settings === setting", *of_length(frame))
    return panel.drawn(shown.mark_bar(opacity=0.9), OF_OUTCOME, x2=alt.X2("finish"))


def _outcome_frame(cells: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of the chart, a policy at a keep_ratio each, in the order of their ``place``; and what is
    stacked in them."""
    kept = spread(cells["keep_ratio"].to_list(), SIDE_BY_SIDE)
    own = cells.filter(pl.col("keep_ratio").is_in(kept))
    rows = own.select("keep_ratio", "policy", order=palette_rank()).unique(maintain_order=True)
    rows = rows.sort("keep_ratio", "order", "policy", descending=[True, False, False])
    rows = rows.drop("order").with_row_index("place")
    placed = own.join(rows, on=["keep_ratio", "policy"], maintain_order="left")
    return rows, pl.concat(list(_stacks(placed)))


def _stacks(cells: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Each outcome's stretch of its bar, in the order of ``OUTCOMES``; empty stretches are left out."""
    counts = {RIGHT: pl.col("right"), **{words: pl.col(name) for name, words in LOST.items()}}
    kept = [
        "place",
        "policy",
        "keep_ratio",
        "settings",
        "length",
        "questions",
        "budget",
    ]

    before = pl.lit(0, pl.Int64)
    for words, count in counts.items():
        stretch = cells.select(
            *kept,
            *RETAINED,
            outcome=pl.lit(words),
            count=count.cast(pl.Int64),
            begin=before / pl.col("questions"),
            finish=(before + count) / pl.col("questions"),
        )
        yield stretch.filter(pl.col("count") > 0)
        before = before + count
