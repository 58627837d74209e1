"""Retrieval by depth and length: share of questions answered right, per policy and settings, over keep_ratio."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.marks import Chart, Points, bounds, chooser, mark, names_of, specification, tooltips
from analysis.pairs import POOL
from analysis.points import Group, groups, with_words
from analysis.tables import wilson

GROUP = ["model", "dataset", "kind", "model_revision", "dataset_fingerprint", "protocol_version", "device", "dtype"]
ABOUT = [
    ("cell", "series"), ("keep_ratio", "keep_ratio", ".3~f"), ("context tokens", "length"), ("depth", "depth"),
    ("accuracy", "accuracy", ".1%"), bounds("95 % interval (Wilson)", "accuracy_low", "accuracy_high"),
    ("answer still held", "retained", ".1%"), ("questions", "questions", ","),
]  # fmt: skip


def depth_charts(rows: pl.LazyFrame) -> list[Chart]:
    """One chart per model, dataset and kind of question; policy and settings are chosen below it. ``rows``: retrieval's."""
    settings = [
        "policy",
        "keep_ratio",
        "prune_after",
        "skip_layers",
        "protect_sink",
        "protect_recent",
        "schedule",
        "position_mode",
    ]
    cells = rows.group_by([*POOL, "kind", "context_tokens", "depth"], maintain_order=True).agg(
        *[pl.col(name).first() for name in [*settings, *GROUP] if name not in (*POOL, "kind")],
        questions=pl.len(), right=pl.col("correct").sum(), retained=pl.col("answer_position_retained").mean(),
    )  # fmt: skip
    table = cells.with_columns(accuracy=pl.col("right") / pl.col("questions"), **wilson(pl.col("right"), pl.col("questions")))
    found = with_words(table.collect().with_columns(pl.selectors.float().fill_nan(None)))
    return [_depth_chart(group) for group in groups(found, GROUP)]


def _depth_chart(group: Group) -> Chart:
    series = pl.format("{}, prune_after {}, {}", "policy", "after", "variant")
    frame = group.cells.with_columns(series=pl.when(pl.col("policy") == "dense").then(pl.lit("dense")).otherwise(series)).select(
        "series", "keep_ratio", "accuracy", "accuracy_low", "accuracy_high", "retained", "questions",
        length=pl.col("context_tokens").cast(pl.String), depth=pl.format("{} %", (100 * pl.col("depth")).round(1)),
    )  # fmt: skip
    points = Points(f"depth_{group.number}", frame)
    names = frame["series"].unique(maintain_order=True).to_list()
    names = [name for name in names if name != "dense"] + [name for name in names if name == "dense"]
    shown = chooser("shown", names)
    depths = sorted(frame["depth"].unique().to_list(), key=lambda words: float(words.split()[0]))
    place = {
        "x": alt.X("keep_ratio:O", sort="descending", title="keep_ratio", axis=alt.Axis(labelAngle=0, format=".2~f")),
        "xOffset": alt.XOffset("length:N", sort=names_of(frame, "length")),
        "y": alt.Y("depth:O", sort=depths, title="depth of the answer"),
    }
    own = mark().transform_filter("datum.series === shown")
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    bar = alt.Legend(orient="bottom", direction="horizontal", title="questions answered right", gradientLength=200, format=".0%")
    squares = tooltips(
        own.mark_rect(stroke="var(--bg)").encode(**place, color=alt.Color("accuracy:Q", scale=scale, legend=bar)), ABOUT
    )
    ink = alt.condition("datum.accuracy > 0.5", alt.value("black"), alt.value("white"))
    text = own.transform_calculate(text="format(100 * datum.accuracy, '.0f')").mark_text(fontSize=9)
    text = text.encode(**place, text="text:N", fill=ink)
    lengths = " / ".join(names_of(frame, "length"))
    title = [group.title, f"context of {lengths} tokens, from left to right · {group.detail}".rstrip(" ·")]
    description = f"retrieval by depth and length, {', '.join(title)}: {len(names)} cells to choose from, in per cent"
    spec = specification([squares, text], points, title, description, params=[shown], height=34 * len(depths) + 30)
    return Chart(f"retrieval-{group.number}", description, spec, points, group.about)
