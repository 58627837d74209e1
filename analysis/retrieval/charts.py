"""What the charts of retrieval share: points, groups of one sort of question, and the choice of a length."""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.draw.marks import Axis, Filter, interval_entry, names_of
from analysis.draw.points import Group, groups, with_words
from analysis.draw.specification import chooser
from analysis.keys import GROUP
from analysis.retrieval.tables import ASKED
from analysis.verdicts import HOLLOW

PANEL = [*GROUP[:2], *ASKED, *GROUP[2:]]
"""What gets charts of its own; the length of the context is chosen below them, or stands on an axis."""

MOST_POINTS = 20_000
"""Points of one kind of chart on a page, about 100 bytes each; further groups have none."""

ASIDE = 0.012
"""The share of an axis by which two policies at one place are set apart."""

RETAINED = {
    "retained": pl.col("answer_retained_weighted"),
    "retained_least": pl.col("answer_retained_least"),
    "retained_alike": pl.col("answer_retained"),
}
"""What was held of the answers, as points name it."""

FIGURES = [
    ("accuracy", "accuracy", ".1%"),
    interval_entry("95 % interval (Wilson)", "accuracy_low", "accuracy_high"),
    ("dense accuracy", "dense_accuracy", ".1%"),
    ("answer still held, by attention", "retained", ".1%"),
    ("in the reading head that holds least", "retained_least", ".1%"),
    ("in all heads alike", "retained_alike", ".1%"),
    ("realised budget", "budget", ".1%"),
    ("questions", "questions", ","),
]
CELL_ENTRIES = [
    ("policy", "policy"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("settings", "settings"),
    ("context tokens", "length"),
]
ABOUT = [*CELL_ENTRIES, *FIGURES, ("verdict", "verdict")]


def settings() -> pl.Expr:
    """The words of a cell's settings beside policy and
    keep_ratio; the frame comes from ``points.with_words``."""
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
    """The points with ``at``: their place on the axis, moved
    a little aside by policy, so that none hides another."""
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


def cell_frame(answers: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``retrieval_tables.retrieval`` as points:
    with words, and hollow where they say nothing of pruning."""
    hollow = pl.col("verdict").is_in(HOLLOW)
    length = pl.col("context_tokens").cast(pl.String)
    return with_words(answers).with_columns(settings(), length=length, **RETAINED, hollow=hollow)
