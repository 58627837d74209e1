"""Perplexity beside retrieval: cells of the same settings, where the two disagree, as a chart and in
words."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis import labels
from analysis.draw.marks import Axis, interval_entry, names_of
from analysis.draw.panel import Panel, Series
from analysis.draw.points import Group, with_words
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import HEIGHT, Chart, Points
from analysis.keys import GROUP, SAME
from analysis.retrieval.charts import FIGURES, RETAINED, asked_groups, length_choice, of_length, settings
from analysis.retrieval.tables import kept_accuracy, scored_schedule, shown_lower
from analysis.statistics.uncertainty import holm, widened
from analysis.verdicts import valid

HARMLESS, HARMED = 0.02, 0.10
"""A PPL shown to be at most this much above dense is called harmless; an accuracy this far below dense,
lost."""

ABOUT_BOTH = [
    ("policy", "policy"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("settings", "settings"),
    ("context tokens", "length"),
    ("PPL ratio where pruned", "ratio", ".4~r"),
    interval_entry("95 % interval of it", "ratio_low", "ratio_high"),
    ("budget of perplexity", "scored_budget", ".1%"),
    ("accuracy minus dense, points", "points", "+.1f"),
    *FIGURES,
]


def beside(cells: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """The valid rows of ``retrieval_tables.retrieval`` that have a twin, with the PPL ratio of the valid cell
    of equal settings, but for the schedule: perplexity has a check at every step only, and a context is often
    pruned once. ``ratio`` is that where pruned; ``wide_low`` and ``wide_high`` hold for all scored cells of a
    model and dataset together.

    Of cells that scored other windows in the same settings, the one with most windows counts.
    """
    scored = cells.filter(valid(), pl.col("ratio").is_not_null()).with_columns(scored_schedule())
    scored = scored.sort("n_windows", descending=True, maintain_order=True)
    scored = scored.unique(SAME, keep="first", maintain_order=True)
    asked = with_words(answers.filter(valid(), pl.col("accuracy_difference").is_not_null())).with_columns(
        scored_schedule()
    )
    where_pruned = {"ratio": "pruned_ratio", "ratio_low": "pruned_low", "ratio_high": "pruned_high"}
    together = scored.select(pl.len().over(GROUP)).to_series().to_numpy()
    scored = widened(scored, together, "pruned_ratio", "pruned_error", "pruned_units")
    figures = scored.select(*SAME, "wide_low", "wide_high", **where_pruned, scored_budget="budget")
    return asked.join(figures, on=SAME, how="inner", nulls_equal=True, maintain_order="left")


def disagreement_charts(cells: pl.DataFrame, answers: pl.DataFrame, looks: PolicyLooks) -> list[Chart]:
    """PPL ratio against the accuracy lost, a chart per model, dataset and sort of question."""
    both = beside(cells, answers).with_columns(
        settings(), length=pl.col("context_tokens").cast(pl.String), **RETAINED
    )
    return [_chart(group, looks) for group in asked_groups(both)]


def _chart(group: Group, looks: PolicyLooks) -> Chart:
    frame = looks.told_apart(_points(group.cells), "settings")
    params, only = length_choice(frame)
    reach, also = (1.0, 1.05), ("ratio_low", "ratio_high")
    x = Axis("ratio", "PPL ratio to dense where pruned", log_span=2, reach=reach, also=also)
    reach, also = (0.0, -200 * HARMED), ("low", "high")
    y = Axis("points", "accuracy minus dense, points", "+.0f", reach=reach, also=also)

    panel = Panel(frame, x, y, looks.colour(frame), Series.of(frame, "settings", names_of))
    panel = panel.add(*_corner(frame, x, y)).rule(1.0, "", upright=True).rule(0.0, "")
    panel = panel.among(*of_length(frame))
    panel = panel.bars("ratio_low", "ratio_high", across=True, width=1.2, opacity=0.5)
    panel = panel.bars("low", "high", gaps=False, width=1.2, opacity=0.5).dots(ABOUT_BOTH)

    told = f"{group.title}, {group.detail}: {frame.height} cells measured both ways"
    words = f"PPL ratio against accuracy lost, {told}"
    points = Points(f"disagreement_{group.number}", frame)
    lines = (group.detail, only)
    return panel.chart("disagreement", group, points, words, *lines, params=params, height=HEIGHT + 10)


def _points(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of a group as points: accuracy and its interval in percentage points from dense."""
    dense = pl.col("dense_accuracy")
    kept = [
        "policy",
        "keep_ratio",
        "settings",
        "length",
        "ratio",
        "ratio_low",
        "ratio_high",
    ]
    accuracy = ["accuracy", "accuracy_low", "accuracy_high", "dense_accuracy"]

    return cells.select(
        *kept,
        *accuracy,
        *RETAINED,
        "budget",
        "scored_budget",
        "questions",
        points=100 * pl.col("accuracy_difference"),
        low=100 * (pl.col("accuracy_low") - dense),
        high=100 * (pl.col("accuracy_high") - dense),
    )


def _corner(frame: pl.DataFrame, x: Axis, y: Axis) -> list[alt.Chart]:
    """The corner where perplexity sees no harm and retrieval does, shaded."""
    left, bottom = (axis.scale(frame).to_dict()["domain"][0] for axis in (x, y))
    words = "PPL sees no harm, retrieval does"
    corner = {"ratio": left, "to": 1 + HARMLESS, "top": -100 * HARMED, "bottom": bottom, "label": words}
    data = alt.Chart(alt.Data(values=[corner]))
    area = data.mark_rect(fill="var(--c-snapkv)", opacity=0.15)
    area = area.encode(x=x.x(frame), x2=alt.X2("to"), y=y.y(frame, "top"), y2=alt.Y2("bottom"))
    text = data.mark_text(align="left", baseline="bottom", dx=4, dy=-4, fontSize=11, fill="var(--fg)")
    return [area, text.encode(x=x.x(frame), y=y.y(frame, "bottom"), text="label:N")]


def disagreements_in_words(both: pl.DataFrame) -> list[str]:
    """A sentence per model and dataset on the cell where the two
    disagree most, each way; ``both`` comes from ``beside``.

    Retrieval is harmed where it is more than ``HARMED`` below dense and shown to be lower (Holm over the
    pairs), and kept where it is shown to be. PPL is harmed where all of its interval lies more than
    ``HARMLESS`` above dense, and not where none of it does: the interval that holds for all cells together,
    because the pair that is named is picked among many.
    """
    sound = both.filter(pl.col("position_mode").ne_missing("cache_length"))
    sound = sound.with_columns(p_value=holm(pl.col("p_value"), GROUP))
    groups = sound.group_by(GROUP, maintain_order=True)
    return [sentence for _, group in groups for sentence in _sentences(group)]


def _sentences(group: pl.DataFrame) -> list[str]:
    """What is said of one model and dataset, one sentence or two."""
    lost = (pl.col("accuracy_difference") < -HARMED) & shown_lower()
    blind = group.filter(pl.col("wide_high") <= 1 + HARMLESS, lost)
    blind = blind.sort("accuracy_difference", maintain_order=True)
    harsh = group.filter(pl.col("wide_low") > 1 + HARMLESS, kept_accuracy())
    harsh = harsh.sort("ratio", descending=True, maintain_order=True)

    place = "{model} on {dataset}".format(**group.row(0, named=True))
    pairs = f"{group.height:,} pairs of figures"
    sentences = []
    if blind.height:
        many = f"{blind.height} of {pairs}"
        limit = f"PPL is shown to rise by at most {100 * HARMLESS:g} % where pruned"
        words = f"{limit} where retrieval is shown to lose in {many}"
        sentences.append(f"{place}: {words}; most: {_pair(blind)}.")
    if harsh.height:
        many = f"{harsh.height} of {pairs}"
        words = f"PPL is shown to rise where retrieval is shown to be kept in {many}, each at the 95 % level"
        sentences.append(f"{place}: {words}; most: {_pair(harsh)}.")
    return sentences or [f"{place}: PPL and retrieval are shown to disagree in none of {pairs}."]


def _pair(ranked: pl.DataFrame) -> str:
    row = ranked.row(0, named=True)
    ratio = (
        f"PPL ratio where pruned {labels.figure(row['ratio'])} "
        f"{labels.interval(row['wide_low'], row['wide_high'])}"
    )
    right = f"{labels.percent(row['accuracy'])} right against dense {labels.percent(row['dense_accuracy'])}"
    asked = f"{labels.questions(row)}, {row['context_tokens']} tokens"
    held = f"held {labels.percent(row['scored_budget'])} and {labels.percent(row['budget'])} of the cache"
    return (
        f"{ratio}, {right} ({labels.cell(row)}, prune_after {labels.text(row['prune_after'])}; {asked}; "
        f"{held})"
    )
