"""Retrieval: answers beside the dense twin's, what became of each, and the tables by cell and by depth."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analysis.impossible import beside_twin, in_cell, without_figures
from analysis.keys import CELL, VERSIONS
from analysis.perplexity.tables import beyond, in_reading_order
from analysis.statistics.margins import ACCURACY_MARGIN
from analysis.statistics.pairs import POOL, finite
from analysis.statistics.uncertainty import mcnemar_p, share_at_most
from analysis.verdicts import plain_verdict

QUESTIONS = ["kind", "context_tokens", "digits", "distractors", "question_pruned"]
"""What tells one set of questions from another; each is a row of its own."""

ASKED = [name for name in QUESTIONS if name != "context_tokens"]
"""What tells one sort of question from another, at whatever length."""

ASKED_ORDER, ASKED_DOWN = [*QUESTIONS], [name == "question_pruned" for name in QUESTIONS]
"""The order of sets of questions: those asked before the prune first."""

SHOWN = 0.05
"""The p below which an accuracy is said to differ from the dense twin's."""

DROPPED, HELD = 0.05, 0.95
"""Shares of the answer's own tokens that are still held when the first wrong token is predicted, each head
weighed by the attention that the dense cell's gives to the answer.

A head that nothing reads tells nothing: an answer that is erased from the one head that reads it is lost
though all others hold it. Below DROPPED next to nothing is left of what the dense cell reads, from HELD on
next to nothing is missing. Between them some of it can be read: partly held.
"""

RIGHT = "right"
LOST = {
    "lost_dropped": "wrong, answer dropped",
    "lost_partly": "wrong, answer partly held",
    "lost_held": "wrong though held",
    "untold": "wrong, cause not to be told",
}
"""What can become of an answer that is not right, by the column that counts it. The last: the dense twin was
wrong too, has no row, or what the heads that read the answer held was not recorded, as in older schemas."""

LEAST = 0.5
"""A dense cell that answers fewer of the questions leaves nothing to lose."""

KNOWS = 0.95
"""The share of questions that the dense cell must answer
before one can say that a compressed one lost nothing."""

Z95 = 1.959963984540054


def retrieval(rows: pl.LazyFrame) -> pl.DataFrame:
    """Per pooled cell and set of questions: accuracy with Wilson's 95 % interval, the twin's, NLL of the
    right answer, outcomes.

    ``accuracy_difference`` (with McNemar's ``p_value``, null where so few questions cannot reach 0.05) and
    ``nll_difference`` (per answer token; a few questions carry most of it, so that it has no interval) are to
    the dense twin on the same questions; ``lost_at_most``: upper bound (one-sided, 95 %) of the share of
    questions that only the twin has right; ``budget``: the cache held while answering as a share of the
    twin's. Null where there is no twin, or a schema lacks it. ``text_right``: answers whose text is right,
    whatever their tokens; null where ``right`` says the same, and no column where that is so everywhere.
    """
    answers = with_twin(rows).collect()
    keys = [*POOL, *QUESTIONS]
    cells = figures(answers.lazy(), QUESTIONS).collect()
    cells = cells.with_columns(plain_verdict(), _note(), **_tests(cells))
    if cells["text_right"].is_null().all():
        cells = cells.drop("text_right")

    cells = without_figures(
        cells,
        [
            *keys,
            *CELL,
            "questions",
            "impossible",
            "verdict",
            "note",
        ],
    )
    return in_reading_order(finite(cells.sort(ASKED_ORDER, descending=ASKED_DOWN)))


def _tests(cells: pl.DataFrame) -> dict[str, pl.Series]:
    """``p_value`` and ``lost_at_most`` of ``retrieval``."""
    pairs = list(cells.select("lost", "gained", "paired").iter_rows())
    p_values = [
        # 2 ** (1 - n) is the least p that n questions can give, all of them lost.
        mcnemar_p(lost, gained) if paired and 2.0 ** (1 - paired) < SHOWN else None
        for lost, gained, paired in pairs
    ]
    most = [share_at_most(lost, paired) if paired else None for lost, _, paired in pairs]
    return {
        "p_value": pl.Series(p_values, dtype=pl.Float64),
        "lost_at_most": pl.Series(most, dtype=pl.Float64),
    }


def _note() -> pl.Expr:
    joined = pl.concat_str(pl.col("impossible"), beyond(), separator="; ", ignore_nulls=True)
    return pl.when(joined != "").then(joined).alias("note")


def figures(answers: pl.LazyFrame, by: Sequence[str]) -> pl.LazyFrame:
    """The figures of ``retrieval`` but for tests and bounds, per
    pooled cell and ``by``; ``answers`` comes from ``with_twin``."""
    right, text_right = pl.col("correct"), pl.col("correct_text")
    cells = answers.group_by([*POOL, *by], maintain_order=True).agg(
        *[pl.col(name).first() for name in CELL],
        in_cell(),
        questions=pl.len(),
        right=right.sum(),
        text_right=pl.when((text_right != right).any()).then(text_right.sum()),
        **_beside_dense(),
        **_answer_nll(),
        answer_retained=pl.col("answer_position_retained").mean(),
        answer_retained_weighted=pl.col("answer_retained_weighted").mean(),
        answer_retained_least=pl.col("answer_retained_least").mean(),
        budget=_budget(),
        prune_events=pl.col("prune_events").mean(),
        **{name: (pl.col("outcome") == words).sum() for name, words in LOST.items()},
    )

    accuracy = pl.col("right") / pl.col("questions")
    return cells.with_columns(accuracy=accuracy, **wilson(pl.col("right"), pl.col("questions")))


def _beside_dense() -> dict[str, pl.Expr]:
    """Right answers beside the dense twin's to the same questions."""
    right, dense_right = pl.col("correct"), pl.col("dense_correct")
    paired = right.is_not_null() & dense_right.is_not_null()
    lost = (dense_right & ~right).filter(paired).sum()
    gained = (~dense_right & right).filter(paired).sum()
    difference = (right.cast(pl.Int64) - dense_right.cast(pl.Int64)).filter(paired)
    return {
        "dense_accuracy": dense_right.mean(),
        "paired": paired.sum(),
        "lost": pl.when(paired.any()).then(lost),
        "gained": pl.when(paired.any()).then(gained),
        "accuracy_difference": difference.mean(),
    }


def _answer_nll() -> dict[str, pl.Expr]:
    """NLL of the right answer per token, and minus the dense twin's, over the answers that have one."""
    nll, difference = pl.col("answer_nll"), pl.col("nll_difference")
    tokens = pl.col("answer_tokens")
    compared = difference.is_not_null()
    return {
        "answer_nll": nll.sum() / tokens.filter(nll.is_not_null()).sum(),
        "nll_difference": difference.filter(compared).sum() / tokens.filter(compared).sum(),
    }


def _budget() -> pl.Expr:
    """The cache held while answering, as a share of the dense twin's, where both are known."""
    held, dense_held = pl.col("cache_tokens_mean"), pl.col("dense_cache_tokens")
    both = held.is_not_null() & dense_held.is_not_null()
    return held.filter(both).sum() / dense_held.filter(both).sum()


def with_twin(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Answers with the dense twin's to the same question (``dense_correct``, ``dense_cache_tokens``,
    ``nll_difference`` in nats), and what became of each: ``outcome``.
    """
    asked = [
        "kind",
        "context_tokens",
        "digits",
        "distractors",
        "depth",
        "question_index",
    ]
    question = ["dense_cell_id", *VERSIONS, *asked]
    twin = rows.filter(pl.col("cell_id") == pl.col("dense_cell_id")).select(
        *question,
        dense_correct="correct",
        dense_nll="answer_nll",
        dense_cache_tokens="cache_tokens_mean",
        dense_impossible="impossible",
    )

    paired = rows.join(twin, on=question, how="left", nulls_equal=True, maintain_order="left")
    difference = pl.col("answer_nll") - pl.col("dense_nll")
    return paired.with_columns(outcome(), beside_twin(), nll_difference=difference)


def outcome() -> pl.Expr:
    """``RIGHT``, or one of ``LOST``: an answer that the dense twin had right, by how much of it the heads
    that read it held."""
    held = pl.col("answer_retained_weighted").fill_nan(None)
    lost = pl.col("correct").not_() & pl.col("dense_correct")

    return (
        pl.when(pl.col("correct"))
        .then(pl.lit(RIGHT))
        .when(lost & (held < DROPPED))
        .then(pl.lit(LOST["lost_dropped"]))
        .when(lost & (held < HELD))
        .then(pl.lit(LOST["lost_partly"]))
        .when(lost & (held >= HELD))
        .then(pl.lit(LOST["lost_held"]))
        .otherwise(pl.lit(LOST["untold"]))
        .alias("outcome")
    )


def shown_lower() -> pl.Expr:
    """Cells that are shown to answer fewer questions than the dense twin does."""
    return (pl.col("p_value") < SHOWN) & (pl.col("accuracy_difference") < 0)


def scored_schedule() -> pl.Expr:
    """The schedule under which perplexity of the same setting
    is scored: it has no prompt, hence no ``prefill_once``."""
    once = pl.col("schedule") == "prefill_once"
    return pl.when(once).then(pl.lit("every_step")).otherwise("schedule").alias("scored_schedule")


def kept_accuracy() -> pl.Expr:
    """Cells that are shown to answer what the dense twin answers, but for ``ACCURACY_MARGIN`` at most.

    The share of questions that only the dense twin has right is at most that, with 95 % confidence: what a
    cell gains elsewhere is not counted against what it lost. Where the twin itself answers less than half of
    them, nothing is shown.
    """
    return ((pl.col("lost_at_most") <= ACCURACY_MARGIN) & knows_enough()).fill_null(False)


def knows_enough() -> pl.Expr:
    """Cells whose dense twin answers enough of the questions that there is something to lose."""
    return pl.col("dense_accuracy") >= LEAST


def wilson(right: pl.Expr, questions: pl.Expr) -> dict[str, pl.Expr]:
    """Wilson's score interval of a share, 95 %, as ``accuracy_low`` and ``accuracy_high``."""
    share, spread = right / questions, Z95**2 / questions
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * (share * (1 - share) / questions + spread / (4 * questions)).sqrt()
    # Its ends at none and at all are 0 and 1, which floats miss by a little.
    low = pl.when(right == 0).then(0.0).otherwise(middle - half)
    high = pl.when(right == questions).then(1.0).otherwise(middle + half)
    return {"accuracy_low": low, "accuracy_high": high}
