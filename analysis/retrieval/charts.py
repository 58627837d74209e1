"""Charts of retrieval: accuracy by depth and length, accuracy against what was held, and what became of the
wrong answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import altair as alt
import polars as pl

from analysis import labels
from analysis.draw.marks import (
    HEIGHT,
    Axis,
    Chart,
    Filter,
    Points,
    bounds,
    chooser,
    equal,
    filtered,
    gradient,
    in_order,
    mark,
    names_of,
)
from analysis.draw.panel import COMPARED, HELD, Panel, Series
from analysis.draw.points import Group, groups, spread, with_words
from analysis.draw.policy_looks import PolicyLooks, palette_rank
from analysis.keys import GROUP
from analysis.perplexity.cell_charts import SIDE_BY_SIDE
from analysis.perplexity.tables import in_order as in_reading_order
from analysis.retrieval.tables import ASKED_DOWN, ASKED_ORDER, LOST, QUESTIONS, RIGHT, figures, with_twin
from analysis.statistics.pairs import POOL, finite
from analysis.verdicts import HOLLOW, IMPOSSIBLE

ASKED = [name for name in QUESTIONS if name != "context_tokens"]
PANEL = [*GROUP[:2], *ASKED, *GROUP[2:]]
"""What gets charts of its own; the length of the context is chosen below them, or stands on an axis."""

MOST_POINTS = 20_000
"""Points of one kind of chart on a page, about 100 bytes each; further groups have none."""

ACCURACY = Axis("accuracy", "questions answered right", ".0%", reach=(0.0, 1.0))
ASIDE = 0.012
"""The share of an axis by which two policies at one place are set apart."""

OUTCOMES = {RIGHT: "recent", **dict(zip(LOST.values(), ("h2o", "snapkv", "tova", "random"), strict=True))}
"""What became of an answer, and whose colour it has."""

RETAINED = {
    "retained": pl.col("answer_retained_weighted"),
    "retained_least": pl.col("answer_retained_least"),
    "retained_alike": pl.col("answer_retained"),
}
"""What was held of the answers, as points name it."""

FIGURES = [
    ("accuracy", "accuracy", ".1%"),
    bounds("95 % interval (Wilson)", "accuracy_low", "accuracy_high"),
    ("dense accuracy", "dense_accuracy", ".1%"),
    ("answer still held, by attention", "retained", ".1%"),
    ("in the reading head that holds least", "retained_least", ".1%"),
    ("in all heads alike", "retained_alike", ".1%"),
    ("realised budget", "budget", ".1%"),
    ("questions", "questions", ","),
]
_CELL = [
    ("policy", "policy"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("settings", "settings"),
    ("context tokens", "length"),
]
ABOUT = [*_CELL, *FIGURES, ("verdict", "verdict")]
OF_DEPTH = [
    ("cell", "series"),
    ("keep_ratio", "kept"),
    ("context tokens", "length"),
    ("depth", "depth", ".1%"),
    *FIGURES,
]
OF_OUTCOME = [
    *_CELL,
    ("what became of them", "outcome"),
    ("answers", "count", ","),
    ("of", "questions", ","),
    *FIGURES[3:7],
]


def settings() -> pl.Expr:
    """The words of a cell's settings beside policy and keep_ratio; the frame comes from
    ``points.with_words``."""
    words = pl.format("prune_after {}, {}", "after", "variant")
    return pl.when(pl.col("policy") == "dense").then(pl.lit("dense")).otherwise(words).alias("settings")


def asked_groups(cells: pl.DataFrame) -> list[Group]:
    """Cells by model, dataset and sort of question, which stands in the detail; groups beyond ``MOST_POINTS``
    are left out."""
    found, total = [], 0
    for group in groups(cells, PANEL):
        total += group.cells.height
        if found and total > MOST_POINTS:
            break
        others = [part for part in group.detail.split(" · ") if part and not part.startswith(tuple(ASKED))]
        detail = " · ".join([labels.questions(group.cells.row(0, named=True)), *others])
        found.append(Group(group.number, group.title, detail, group.about, group.cells))
    return found


def length_choice(frame: pl.DataFrame, *params: dict[str, object]) -> tuple[list[dict[str, object]], str]:
    """Lists below a chart, that of lengths first where there are several, and words for the only length."""
    lengths = names_of(frame, "length")
    if len(lengths) == 1:
        return list(params), f"{lengths[0]} tokens"
    return [chooser("context tokens", lengths[::-1], "tokens"), *params], ""


def of_length(frame: pl.DataFrame) -> list[Filter]:
    """The rows of the length that is chosen, where there are several."""
    return ["datum.length === tokens"] if frame["length"].n_unique() > 1 else []


def dodged(frame: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    """The points with ``at``: their place on the axis, moved a little aside by policy, so that none hides
    another."""
    compared = frame.filter(~pl.col("end"))
    scale, names = axis.scale(compared).to_dict(), sorted(compared["policy"].unique())
    low, high = scale["domain"]
    aside = {name: ASIDE * (number - (len(names) - 1) / 2) for number, name in enumerate(names)}
    share = pl.col("policy").replace_strict(aside, default=0.0, return_dtype=pl.Float64)
    moved = (
        pl.col(axis.name) * (high / low) ** share
        if scale.get("type") == "log"
        else pl.col(axis.name) + (high - low) * share
    )
    return frame.with_columns(at=moved)


# By depth and length
# ----------------------------------------------------------------------------------------------------


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
    names = in_order(frame, "series")
    kept = set(frame.filter(~pl.col("whole"))["kept"]) or {frame["kept"][0]}
    ratios = sorted(kept, key=float, reverse=True)
    # The first series may lack the highest keep_ratio of the others.
    params = [chooser("shown", names), {**chooser("keep_ratio", ratios, "ratio"), "value": frame["kept"][0]}]

    lengths, depths = alt.Axis(labelAngle=0), alt.Axis(format=".1~%")
    x = alt.X("length:O", sort=names_of(frame, "length"), title="context tokens", axis=lengths)
    y = alt.Y("depth:O", sort="ascending", title="depth of the answer", axis=depths)
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    tint = alt.Color("accuracy:Q", scale=scale, legend=gradient("questions answered right", ".0%"))
    ink = alt.condition("datum.accuracy > 0.5", alt.value("black"), alt.value("white"))
    shown = mark().transform_filter("datum.series === shown && (datum.whole || datum.kept === ratio)")
    share = shown.transform_calculate(text="format(datum.accuracy, '.0%')")
    held = shown.transform_filter("isValid(datum.retained)")
    held = held.transform_calculate(text="'held ' + format(datum.retained, '.0%')")
    panel = Panel(frame, x, y).drawn(shown.mark_rect(stroke="var(--bg)"), OF_DEPTH, color=tint)
    panel = panel.drawn(share.mark_text(fontSize=11, dy=-5), text="text:N", fill=ink)
    panel = panel.drawn(held.mark_text(fontSize=9, dy=8), text="text:N", fill=ink)

    told = f"{group.title}, {group.detail}: {len(names)} series of {len(ratios)} keep_ratios"
    words = f"retrieval by depth and length, {told}"
    points = Points(f"depth_{group.number}", frame)
    height = 38 * frame["depth"].n_unique() + 20
    return panel.chart("retrieval", group, points, words, group.detail, params=params, height=height)


def _depth_frame(cells: pl.DataFrame) -> pl.DataFrame:
    """A square for each cell, length and depth: ``series`` in the order of the legend, ``whole`` where it is
    the dense one's."""
    whole = pl.col("policy") == "dense"
    compared = pl.format("{}, {}", "policy", settings())
    series = pl.when(whole).then(pl.lit("dense")).otherwise(compared).alias("series")
    order, down = [whole, palette_rank(), "keep_ratio"], [False, False, True]
    return cells.sort(order, descending=down, maintain_order=True).select(
        series,
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "dense_accuracy",
        "budget",
        "depth",
        "questions",
        kept=pl.col("keep_ratio").map_elements(labels.ratio_setting, pl.String),
        whole=whole,
        **RETAINED,
        length=pl.col("context_tokens").cast(pl.String),
    )


# Against the realised budget
# --------------------------------------------------------------------------------------------


def cell_frame(answers: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``retrieval_tables.retrieval`` as points: with words, and hollow where they say nothing of
    pruning."""
    hollow = pl.col("verdict").is_in(HOLLOW)
    length = pl.col("context_tokens").cast(pl.String)
    return with_words(answers).with_columns(settings(), length=length, **RETAINED, hollow=hollow)


def budget_charts(answers: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """Accuracy with Wilson's interval against the realised budget, a line per policy and settings, dense as a
    rule."""
    known = cell_frame(answers).filter(pl.col("budget").is_not_null())
    return [
        _budget_chart(group, looks)
        for group in asked_groups(known)
        if (group.cells["policy"] != "dense").any()
    ]


def _budget_chart(group: Group, looks: PolicyLooks) -> Chart:
    dense = pl.col("policy") == "dense"
    kept = [
        "length",
        "settings",
        "keep_ratio",
        "budget",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "dense_accuracy",
        *RETAINED,
        "questions",
        "verdict",
        "hollow",
    ]
    # The dense twin has no policy here: it stays where a policy is chosen.
    frame = group.cells.select(*kept, end=dense, policy=pl.when(~dense).then(pl.col("policy")))
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
    return panel.chart(
        "accuracy", group, points, words, group.detail, only, params=params, height=HEIGHT + 10
    )


def _dense_rule(frame: pl.DataFrame) -> list[alt.Chart]:
    """The dense twin of the chosen length as a dotted rule with its label, and its interval as a band."""
    whole = filtered(mark(), equal("end", True), *of_length(frame))
    band = whole.mark_rect(opacity=0.08, fill="var(--fg)")
    band = band.encode(y=ACCURACY.y(frame, "accuracy_low"), y2=alt.Y2("accuracy_high"))
    line = whole.mark_rule(strokeDash=[3, 3], stroke="var(--fg)", strokeWidth=1).encode(y=ACCURACY.y(frame))
    words = whole.transform_calculate(text="'dense ' + format(datum.accuracy, '.1%')")
    text = words.mark_text(align="left", dx=4, dy=9, fontSize=11, fill="var(--fg)")
    return [band, line, text.encode(x=alt.value(0), y=ACCURACY.y(frame), text="text:N")]


# What became of the answers
# ---------------------------------------------------------------------------------------------


def outcome_charts(answers: pl.DataFrame) -> list[Chart]:
    """Answers right, and wrong with the answer dropped, partly held or held, as stacked bars per keep_ratio
    and policy."""
    compared = cell_frame(answers).filter(pl.col("policy") != "dense", pl.col("verdict") != IMPOSSIBLE)
    return [_outcome_chart(group) for group in asked_groups(compared)]


def _outcome_chart(group: Group) -> Chart:
    rows, frame = _outcome_frame(group.cells)
    settings_choice = chooser("settings", names_of(frame, "settings"), "setting")
    params, only = length_choice(frame, settings_choice)
    # Names from outside label the rows by way of a parameter's value: in a sorted domain they would become an
    # expression.
    told = [
        f"{policy} {labels.ratio_setting(ratio)}"
        for ratio, policy in rows.select("keep_ratio", "policy").iter_rows()
    ]
    names = [words[:40].translate(labels.LINE_ENDS) for words in told]

    shares = alt.Axis(format=".0%", tickCount=5)
    x = alt.X("begin:Q", title="share of the answers", axis=shares, scale=alt.Scale(domain=[0, 1]))
    named = alt.Axis(labelExpr="rows[datum.value]", labelLimit=140, grid=False)
    places = alt.Scale(domain=rows["place"].to_list(), paddingInner=0.15)
    y = alt.Y("place:O", title=None, axis=named, scale=places)
    legend = alt.Legend(
        orient="bottom", columns=1, title=None, labelLimit=300, symbolType="square", symbolSize=80
    )
    colours = alt.Scale(domain=list(OUTCOMES), range=[f"var(--c-{name})" for name in OUTCOMES.values()])
    panel = Panel(frame, x, y, alt.Color("outcome:N", scale=colours, legend=legend))
    shown = filtered(mark(), "datum.settings === setting", *of_length(frame))
    panel = panel.drawn(shown.mark_bar(opacity=0.9), OF_OUTCOME, x2=alt.X2("finish"))

    counted = f"{rows.height} policies and keep_ratios"
    words = f"what became of the answers, {group.title}, {group.detail}: {counted}"
    points = Points(f"outcomes_{group.number}", frame)
    lines, params, height = (
        (group.detail, only),
        [*params, {"name": "rows", "value": names}],
        15 * rows.height + 20,
    )
    return panel.chart("outcomes", group, points, words, *lines, params=params, height=height)


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
    before = pl.lit(0, pl.Int64)
    for words, count in counts.items():
        yield cells.select(
            "place",
            "policy",
            "keep_ratio",
            "settings",
            "length",
            "questions",
            "budget",
            *RETAINED,
            outcome=pl.lit(words),
            count=count.cast(pl.Int64),
            begin=before / pl.col("questions"),
            finish=(before + count) / pl.col("questions"),
        ).filter(pl.col("count") > 0)
        before = before + count
