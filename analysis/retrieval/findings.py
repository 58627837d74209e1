"""Sentences on retrieval for the head of the page: which policies keep right answers, at what budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from analysis import labels
from analysis.keys import CURVE, GROUP
from analysis.retrieval.disagreement import beside, disagreements_in_words
from analysis.retrieval.tables import ASKED, LEAST, kept_accuracy, shown_lower
from analysis.statistics.margins import ACCURACY_MARGIN
from analysis.statistics.uncertainty import holm
from analysis.verdicts import valid

if TYPE_CHECKING:
    from analysis.tables import Tables

MARGIN = f"{100 * ACCURACY_MARGIN:g}"


def retrieval_findings(made: Tables) -> list[str]:
    """On retrieval by itself, and beside perplexity."""
    both = beside(made.perplexity, made.retrieval)
    return [*_at_equal_budget(made.retrieval), *disagreements_in_words(both)]


def _at_equal_budget(answers: pl.DataFrame) -> list[str]:
    """A sentence per model, dataset and sort of question, on its longest context."""
    longest = pl.col("context_tokens") == pl.col("context_tokens").max().over([*GROUP, *ASKED])
    sound = valid() & pl.col("budget").is_not_null() & pl.col("dense_accuracy").is_not_null()
    usable = answers.filter(sound, pl.col("position_mode").ne_missing("cache_length")).filter(longest)
    # One loss of many is expected by chance.
    usable = usable.with_columns(p_value=holm(pl.col("p_value"), [*GROUP, *ASKED]))
    return [_of_questions(group) for _, group in usable.group_by([*GROUP, *ASKED], maintain_order=True)]


def _of_questions(group: pl.DataFrame) -> str:
    row = group.row(0, named=True)
    place = f"{row['model']} on {row['dataset']}, {labels.questions(row)}, {row['context_tokens']} tokens"
    if row["dense_accuracy"] < LEAST:
        right = labels.percent(row["dense_accuracy"])
        return f"{place}: nothing can be said, the dense cell answers {right} of the questions."
    return f"{place}: {_kept(group)}."


def _kept(group: pl.DataFrame) -> str:
    """Which curves are shown to keep the dense accuracy, down to which budget, which to lose it, and of which
    neither is shown.

    They stand in the order of their names: which of two keeps more, only a paired test of the two could tell.
    """
    curves = _by_name([curve for _, curve in group.group_by(CURVE)])
    kept, lost, neither = [], [], []
    for name in sorted(curves):
        budget = least_budget(curves[name])
        if budget is not None:
            kept.append(f"{name} down to {labels.percent(budget)}")
        elif curves[name].filter(shown_lower().fill_null(False)).height:
            lost.append(name)
        else:
            neither.append(name)

    row = group.row(0, named=True)
    asked, dense = group["paired"].max(), labels.percent(row["dense_accuracy"])
    words = [f"dense answers {dense} of {asked} questions"]
    if kept:
        lowest = labels.percent(group.select(pl.col("budget").min()).item())
        many = f"{', '.join(kept)} of the dense cache (least that was tried: {lowest})"
        words.append(f"shown to lose at most {MARGIN} points, each at the 95 % level: {many}")
    if lost:
        words.append(f"shown to lose answers, and at the largest budget not to keep them: {', '.join(lost)}")
    if neither:
        words.append(f"{asked} questions cannot tell: {', '.join(neither)}")
    return "; ".join(words)


def _by_name(curves: Sequence[pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Curves by policy, with the settings that are not the plain ones and not the same for all."""
    told = [_told(curve.row(0, named=True)) for curve in curves]
    same = set.intersection(*map(set, told))
    named = {}
    for curve, parts in zip(curves, told, strict=True):
        own = ", ".join(part for part in parts if part not in same and part != labels.PLAIN)
        named[labels.text(curve["policy"][0]) + (f" ({own})" if own else "")] = curve
    return named


def _told(row: labels.Row) -> list[str]:
    return [*labels.variant_parts(row), f"prune_after {labels.text(row['prune_after'])}"]


def least_budget(curve: pl.DataFrame) -> float | None:
    """The least realised budget down to which every cell of a curve is shown to keep the accuracy; None where
    the largest is not.

    Cells are tried from the largest budget down until one is not shown, so that the chance of an error is
    that of one test.
    """
    ordered = curve.sort("budget", descending=True).with_columns(
        kept=kept_accuracy().cast(pl.Int8).cum_prod()
    )
    shown = ordered.filter(pl.col("kept") == 1)["budget"]
    return shown[-1] if len(shown) else None
