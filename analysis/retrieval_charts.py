"""Charts of retrieval: accuracy by depth and length, accuracy against what was held, and what became of the wrong answers."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import polars as pl

from analysis import labels
from analysis.cell_charts import HELD, SIDE_BY_SIDE
from analysis.keys import GROUP
from analysis.marks import (
    HEIGHT,
    Axis,
    Chart,
    Points,
    bounds,
    chooser,
    dash,
    equal,
    holes,
    mark,
    names_of,
    shape,
    specification,
    tooltips,
)
from analysis.pairs import POOL, finite
from analysis.perplexity_tables import in_order
from analysis.points import Group, groups, spread, with_words
from analysis.policy_looks import PolicyLooks, look, palette_rank
from analysis.retrieval_tables import ASKED_DOWN, ASKED_ORDER, LOST, QUESTIONS, RIGHT, figures, with_twin
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
    ("accuracy", "accuracy", ".1%"), bounds("95 % interval (Wilson)", "accuracy_low", "accuracy_high"),
    ("dense accuracy", "dense_accuracy", ".1%"), ("answer still held, by attention", "retained", ".1%"),
    ("in the reading head that holds least", "retained_least", ".1%"), ("in all heads alike", "retained_alike", ".1%"),
    ("realised budget", "budget", ".1%"), ("questions", "questions", ","),
]  # fmt: skip
ABOUT = [
    ("policy", "policy"), ("keep_ratio", "keep_ratio", ".3~f"), ("settings", "settings"), ("context tokens", "length"), *FIGURES,
    ("verdict", "verdict"),
]  # fmt: skip


def settings() -> pl.Expr:
    """The words of a cell's settings beside policy and keep_ratio; the frame comes from ``points.with_words``."""
    words = pl.format("prune_after {}, {}", "after", "variant")
    return pl.when(pl.col("policy") == "dense").then(pl.lit("dense")).otherwise(words).alias("settings")


def asked_groups(cells: pl.DataFrame) -> list[Group]:
    """Cells by model, dataset and sort of question, which stands in the detail; groups beyond ``MOST_POINTS`` are left out."""
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


def of_length(layer: alt.Chart, frame: pl.DataFrame) -> alt.Chart:
    """The marks of the length that is chosen."""
    return layer.transform_filter("datum.length === tokens") if frame["length"].n_unique() > 1 else layer


def dodged(frame: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    """The points with ``at``: their place on the axis, moved a little aside by policy, so that none hides another."""
    compared = frame.filter(~pl.col("end"))
    scale, names = axis.scale(compared).to_dict(), sorted(compared["policy"].unique())
    low, high = scale["domain"]
    aside = {name: ASIDE * (number - (len(names) - 1) / 2) for number, name in enumerate(names)}
    share = pl.col("policy").replace_strict(aside, default=0.0, return_dtype=pl.Float64)
    moved = pl.col(axis.name) * (high / low) ** share if scale.get("type") == "log" else pl.col(axis.name) + (high - low) * share
    return frame.with_columns(at=moved)


# By depth and length ----------------------------------------------------------------------------------------------------


def depth_charts(rows: pl.LazyFrame) -> list[Chart]:
    """Accuracy by depth and length, one chart per model, dataset and sort of question; ``rows``: retrieval's."""
    cells = figures(with_twin(rows), [*QUESTIONS, "depth"]).collect()
    spoilt = pl.col("impossible").is_not_null().any().over(*POOL, *QUESTIONS)
    cells = cells.filter(~spoilt)
    ordered = cells.sort([*ASKED_ORDER, "depth"], descending=[*ASKED_DOWN, False])
    return [_depth_chart(group) for group in asked_groups(with_words(in_order(finite(ordered))))]


def _depth_chart(group: Group) -> Chart:
    whole = pl.col("policy") == "dense"
    series = pl.when(whole).then(pl.lit("dense")).otherwise(pl.format("{}, {}", "policy", settings()))
    ordered = group.cells.sort(whole, palette_rank(), "keep_ratio", descending=[False, False, True], maintain_order=True)
    frame = ordered.select(
        series.alias("series"), "accuracy", "accuracy_low", "accuracy_high", "dense_accuracy", "budget", "depth", "questions",
        kept=pl.col("keep_ratio").map_elements(labels.ratio_setting, pl.String), whole=whole, **RETAINED,
        length=pl.col("context_tokens").cast(pl.String),
    )  # fmt: skip
    points = Points(f"depth_{group.number}", frame)
    names = frame["series"].unique(maintain_order=True).to_list()
    kept = sorted(set(frame.filter(~pl.col("whole"))["kept"]) or {frame["kept"][0]}, key=float, reverse=True)
    # The first series may lack the highest keep_ratio of the others.
    params = [chooser("shown", names), {**chooser("keep_ratio", kept, "ratio"), "value": frame["kept"][0]}]
    depths = frame["depth"].unique().sort().to_list()
    place = {
        "x": alt.X("length:O", sort=names_of(frame, "length"), title="context tokens", axis=alt.Axis(labelAngle=0)),
        "y": alt.Y("depth:O", sort="ascending", title="depth of the answer", axis=alt.Axis(format=".1~%")),
    }
    own = mark().transform_filter("datum.series === shown && (datum.whole || datum.kept === ratio)")
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    bar = alt.Legend(orient="bottom", direction="horizontal", title="questions answered right", gradientLength=200, format=".0%")
    squares = own.mark_rect(stroke="var(--bg)").encode(**place, color=alt.Color("accuracy:Q", scale=scale, legend=bar))
    about = [("cell", "series"), ("keep_ratio", "kept"), ("context tokens", "length"), ("depth", "depth", ".1%"), *FIGURES]
    ink = alt.condition("datum.accuracy > 0.5", alt.value("black"), alt.value("white"))
    text = own.transform_calculate(text="format(datum.accuracy, '.0%')").mark_text(fontSize=11, dy=-5)
    held = own.transform_filter("isValid(datum.retained)").transform_calculate(text="'held ' + format(datum.retained, '.0%')")
    words = [layer.encode(**place, text="text:N", fill=ink) for layer in (text, held.mark_text(fontSize=9, dy=8))]
    description = f"retrieval by depth and length, {group.title}, {group.detail}: {len(names)} series of {len(kept)} keep_ratios"
    layers = [tooltips(squares, about), *words]
    spec = specification(layers, points, [group.title, group.detail], description, params=params, height=38 * len(depths) + 20)
    return Chart(f"retrieval-{group.number}", description, spec, points, group.about)


# Against the realised budget --------------------------------------------------------------------------------------------


def cell_frame(answers: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``retrieval_tables.retrieval`` as points: with words, and hollow where they say nothing of pruning."""
    hollow = pl.col("verdict").is_in(HOLLOW)
    length = pl.col("context_tokens").cast(pl.String)
    return with_words(answers).with_columns(settings(), length=length, **RETAINED, hollow=hollow)


def budget_charts(answers: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """Accuracy with Wilson's interval against the realised budget, a line per policy and settings, dense as a rule."""
    known = cell_frame(answers).filter(pl.col("budget").is_not_null())
    return [_budget_chart(group, looks) for group in asked_groups(known) if (group.cells["policy"] != "dense").any()]


def _budget_chart(group: Group, looks: PolicyLooks) -> Chart:
    dense = pl.col("policy") == "dense"
    kept = ["length", "settings", "keep_ratio", "budget", "accuracy", "accuracy_low", "accuracy_high", "dense_accuracy"]
    # The dense twin has no policy here: it stays where a policy is chosen.
    frame = group.cells.select(
        *kept, *RETAINED, "questions", "verdict", "hollow", end=dense, policy=pl.when(~dense).then(pl.col("policy"))
    )
    params, only = length_choice(frame)
    x = Axis("budget", HELD.title, HELD.form, log_span=8)
    frame = looks.told_apart(dodged(frame, x), "settings")
    points, cells = Points(f"accuracy_{group.number}", frame), frame.filter(~pl.col("end"))
    kind, tint = look(cells, "settings"), looks.colour(cells)
    names = names_of(cells, kind)
    place = {"x": x.x(cells, "at"), "y": ACCURACY.y(frame)}
    drawn = of_length(mark().transform_filter(equal("end", False)), frame)
    line = drawn.transform_calculate(dash=f"datum.{kind}").mark_line(strokeWidth=1.5, opacity=0.7)
    line = line.encode(**place, color=tint, detail="settings:N", order="budget:Q", strokeDash=dash(names, "dash"))
    bars = drawn.mark_rule(strokeWidth=1.2, opacity=0.5)
    bars = bars.encode(x=place["x"], y=ACCURACY.y(frame, "accuracy_low"), y2=alt.Y2("accuracy_high"), color=tint)
    dots = drawn.mark_point(filled=True, size=60, opacity=1)
    dots = tooltips(dots.encode(**place, color=tint, shape=shape(names, kind, "settings")), ABOUT)
    empty = [of_length(layer, frame) for layer in holes(cells, kind, names, place)]
    title = [group.title, group.detail, only]
    description = f"retrieval accuracy against {HELD.title}, {group.title}, {group.detail}: {cells.height} cells"
    layers = [*_dense_rule(frame), line, bars, dots, *empty]
    spec = specification(layers, points, title, description, params=params, height=HEIGHT + 10)
    return Chart(f"accuracy-{group.number}", description, spec, points, group.about)


def _dense_rule(frame: pl.DataFrame) -> list[alt.Chart]:
    """The dense twin of the chosen length as a dotted rule with its label, and its interval as a band."""
    whole = of_length(mark().transform_filter(equal("end", True)), frame)
    band = whole.mark_rect(opacity=0.08, fill="var(--fg)")
    band = band.encode(y=ACCURACY.y(frame, "accuracy_low"), y2=alt.Y2("accuracy_high"))
    line = whole.mark_rule(strokeDash=[3, 3], stroke="var(--fg)", strokeWidth=1).encode(y=ACCURACY.y(frame))
    words = whole.transform_calculate(text="'dense ' + format(datum.accuracy, '.1%')")
    text = words.mark_text(align="left", dx=4, dy=9, fontSize=11, fill="var(--fg)")
    return [band, line, text.encode(x=alt.value(0), y=ACCURACY.y(frame), text="text:N")]


# What became of the answers ---------------------------------------------------------------------------------------------


def outcome_charts(answers: pl.DataFrame) -> list[Chart]:
    """Answers right, and wrong with the answer dropped, partly held or held, as stacked bars per keep_ratio and policy."""
    compared = cell_frame(answers).filter(pl.col("policy") != "dense", pl.col("verdict") != IMPOSSIBLE)
    return [_outcome_chart(group) for group in asked_groups(compared)]


def _outcome_chart(group: Group) -> Chart:
    kept = spread(group.cells["keep_ratio"].to_list(), SIDE_BY_SIDE)
    cells = group.cells.filter(pl.col("keep_ratio").is_in(kept))
    rows = cells.select("keep_ratio", "policy", order=palette_rank()).unique(maintain_order=True)
    rows = rows.sort("keep_ratio", "order", "policy", descending=[True, False, False]).drop("order").with_row_index("place")
    frame = pl.concat(list(_stacks(cells.join(rows, on=["keep_ratio", "policy"], maintain_order="left"))))
    points = Points(f"outcomes_{group.number}", frame)
    params, only = length_choice(frame, chooser("settings", names_of(frame, "settings"), "setting"))
    # Names from outside label the rows by way of a parameter's value: in a sorted domain they would become an expression.
    names = [f"{policy} {labels.ratio_setting(ratio)}"[:40].translate(labels.LINE_ENDS) for _, ratio, policy in rows.iter_rows()]
    axis = alt.Axis(labelExpr="rows[datum.value]", labelLimit=140, grid=False)
    y = alt.Y("place:O", title=None, axis=axis, scale=alt.Scale(domain=rows["place"].to_list(), paddingInner=0.15))
    x = alt.X("begin:Q", title="share of the answers", axis=alt.Axis(format=".0%", tickCount=5), scale=alt.Scale(domain=[0, 1]))
    look = alt.Legend(orient="bottom", columns=1, title=None, labelLimit=300, symbolType="square", symbolSize=80)
    colours = alt.Scale(domain=list(OUTCOMES), range=[f"var(--c-{name})" for name in OUTCOMES.values()])
    own = of_length(mark().transform_filter("datum.settings === setting"), frame)
    tint = alt.Color("outcome:N", scale=colours, legend=look)
    bars = own.mark_bar(opacity=0.9).encode(y=y, x=x, x2=alt.X2("finish"), color=tint)
    about = [("policy", "policy"), ("keep_ratio", "keep_ratio", ".3~f"), ("settings", "settings"), ("context tokens", "length")]
    about += [("what became of them", "outcome"), ("answers", "count", ","), ("of", "questions", ","), *FIGURES[3:7]]
    description = f"what became of the answers, {group.title}, {group.detail}: {rows.height} policies and keep_ratios"
    params, title, height = [*params, {"name": "rows", "value": names}], [group.title, group.detail, only], 15 * rows.height + 20
    spec = specification([tooltips(bars, about)], points, title, description, params=params, height=height)
    return Chart(f"outcomes-{group.number}", description, spec, points, group.about)


def _stacks(cells: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Each outcome's stretch of its bar, in the order of ``OUTCOMES``; empty stretches are left out."""
    counts = {RIGHT: pl.col("right"), **{words: pl.col(name) for name, words in LOST.items()}}
    before = pl.lit(0, pl.Int64)
    for words, count in counts.items():
        yield cells.select(
            "place", "policy", "keep_ratio", "settings", "length", "questions", "budget", *RETAINED,
            outcome=pl.lit(words), count=count.cast(pl.Int64), begin=before / pl.col("questions"),
            finish=(before + count) / pl.col("questions"),
        ).filter(pl.col("count") > 0)  # fmt: skip
        before = before + count
