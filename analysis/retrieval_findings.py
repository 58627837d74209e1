"""Sentences on accuracy for the head of the page: which policies keep retrieval at what budget, and what tasks lost."""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.disagreement import beside, in_words
from analysis.load import VERSION_COLUMNS
from analysis.retrieval_tables import shown_lower
from analysis.task_tables import METRIC
from analysis.verdicts import valid

ASKED = ["kind", "digits", "distractors", "question_pruned"]
GROUP = ["model", "dataset", *VERSION_COLUMNS, "device", "dtype"]
CURVE = ["policy", "prune_after", "skip_layers", "protect_sink", "protect_recent", "schedule", "position_mode"]
LEAST = 0.5
"""A dense cell that answers fewer of the questions leaves nothing to lose."""


def accuracy_findings(cells: pl.DataFrame, answers: pl.DataFrame, scores: pl.DataFrame) -> list[str]:
    """From ``tables.summary``, ``retrieval_tables.retrieval`` and ``task_tables.tasks``."""
    return [*_at_equal_budget(answers), *in_words(beside(cells, answers)), *_tasks(scores)]


def _at_equal_budget(answers: pl.DataFrame) -> list[str]:
    """A sentence per model, dataset and sort of question, on its longest context."""
    longest = pl.col("context_tokens") == pl.col("context_tokens").max().over([*GROUP, *ASKED])
    sound = valid() & pl.col("budget").is_not_null() & pl.col("dense_accuracy").is_not_null()
    usable = answers.filter(sound, pl.col("position_mode").ne_missing("cache_length")).filter(longest)
    found = []
    for _, group in usable.group_by([*GROUP, *ASKED], maintain_order=True):
        row = group.row(0, named=True)
        place = f"{row['model']} on {row['dataset']}, {labels.questions(row)}, {row['context_tokens']} tokens"
        if row["dense_accuracy"] < LEAST:
            right = labels.percent(row["dense_accuracy"])
            found.append(f"{place}: nothing can be said, the dense cell answers {right} of the questions.")
        else:
            found.append(f"{place}: {_kept(group)}.")
    return found


def _kept(group: pl.DataFrame) -> str:
    """Which policies keep the dense accuracy down to which budget, the best first."""
    least: dict[str, float | None] = dict.fromkeys(sorted(group["policy"].unique()))
    for (policy, *_), curve in group.group_by(CURVE, maintain_order=True):
        budget = least_budget(curve)
        known = least[str(policy)]
        least[str(policy)] = budget if known is None else known if budget is None else min(known, budget)
    ranked = sorted((budget, policy) for policy, budget in least.items() if budget is not None)
    lost = [policy for policy, budget in least.items() if budget is None]
    row = group.row(0, named=True)
    dense, asked = labels.percent(row["dense_accuracy"]), group["questions"].max()
    lowest = labels.percent(group["budget"].min())  # pyright: ignore[reportArgumentType]
    if not ranked:
        names = ", ".join(map(labels.text, lost))
        return f"accuracy is below dense ({dense} of {asked} questions) at every budget that was tried, for {names}"
    words = [f"{labels.text(policy)} down to {labels.percent(budget)}" for budget, policy in ranked]
    kept = f"accuracy is not shown to be below dense ({dense} of {asked} questions) for {', '.join(words)}"
    return f"{kept} of the dense cache (least that was tried: {lowest})" + (
        f"; at no budget: {', '.join(map(labels.text, lost))}" if lost else ""
    )


def least_budget(curve: pl.DataFrame) -> float | None:
    """The least realised budget down to which no cell of a curve is shown to be below dense; None where the largest is."""
    ordered = curve.sort("budget", descending=True).with_columns(lower=shown_lower().fill_null(False))
    kept = ordered.filter(~pl.col("lower").cum_max())["budget"]
    return kept[-1] if len(kept) else None


def _tasks(scores: pl.DataFrame) -> list[str]:
    """A sentence per model: how many figures moved beyond their paired interval, and which most. Each task is its own dataset."""
    usable = scores.filter(valid(), pl.col("difference_low").is_not_null(), pl.col("position_mode").ne_missing("cache_length"))
    found = []
    for _, group in usable.group_by(["model", *VERSION_COLUMNS, "device", "dtype"], maintain_order=True):
        place = f"{labels.text(group['model'][0])}, tasks of lm-evaluation-harness"
        sign = pl.when(pl.col("higher_is_better").fill_null(True)).then(1.0).otherwise(-1.0)
        worse = pl.when(sign > 0).then(pl.col("difference_high") < 0).otherwise(pl.col("difference_low") > 0)
        shown = group.filter(worse).sort(sign * pl.col("difference"), maintain_order=True)
        figures = f"{group.height:,} figures of {group.select(METRIC).n_unique()} metrics"
        if shown.is_empty():
            found.append(f"{place}: none of {figures} is shown to be worse than dense.")
            continue
        row = shown.row(0, named=True)
        change = f"{labels.figure(row['difference'])} {labels.interval(row['difference_low'], row['difference_high'])}"
        metric = f"{labels.text(row['task_name'])}, {labels.text(row['metric'])}"
        cell = f"{labels.cell(row)}, prune_after {labels.text(row['prune_after'])}"
        found.append(
            f"{place}: {shown.height:,} of {figures} are shown to be worse than dense; most: {metric} {change} ({cell})."
        )
    return found
