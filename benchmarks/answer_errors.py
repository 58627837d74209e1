"""How often what a report says of answers to retrieval questions is wrong; see ``coverage.py``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from analysis.keys import CURVE, GROUP
from analysis.retrieval.findings import ASKED, least_budget
from analysis.retrieval.tables import kept_accuracy, retrieval, shown_lower
from analysis.statistics.margins import ACCURACY_MARGIN
from analysis.statistics.uncertainty import ALPHA, holm
from analysis.verdicts import valid
from benchmarks.tally import Measured, Tally, drawn, one, outside

DOCUMENTS = 12
"""Questions of each kind, length and depth in the embedded sweeps."""


def of_answers(rows: pl.DataFrame, trials: int, rng: np.random.Generator) -> Iterator[Measured]:
    """What is said of answers; as many questions of each depth are drawn, each of which has a document of its
    own."""
    keys, tally = ["cell_id", "kind", "context_tokens"], Tally()
    whole = retrieval(rows.lazy()).filter(valid())
    lost = pl.col("lost") / pl.col("paired")
    truth = whole.select(*keys, true="accuracy", true_lost=lost)
    shares = truth.select(*keys, share=(ACCURACY_MARGIN + 1e-3) / pl.col("true_lost"))
    for _ in range(trials):
        own = pl.concat(
            [
                drawn(part, "question_index", DOCUMENTS, rng)
                for _, part in rows.group_by("depth", maintain_order=True)
            ]
        )
        cells = retrieval(own.lazy()).filter(valid()).join(truth, on=keys)
        about = pl.format("{} {}", "cell_id", "kind")
        tally.add(
            "95 % interval of an accuracy", cells.select(about, outside("accuracy_low", "accuracy_high"))
        )
        lossy = retrieval(_thinned(own, shares, rng).lazy()).filter(valid()).join(truth, on=keys)
        words = f"said to keep, of those that lose just over {100 * ACCURACY_MARGIN:g} points"
        lossy = lossy.filter(pl.col("true_lost") > ACCURACY_MARGIN)
        tally.add(words, lossy.select(about, kept_accuracy()))
        for setting, curve in lossy.group_by([*CURVE, *ASKED]):
            wrong = least_budget(curve) is not None
            tally.add("a finding that a policy keeps, all its cells lose more", one(f"{setting}", wrong))

        null = retrieval(_exchanged(own, rng).lazy()).filter(valid())
        tally.add(
            "said to lose, of those that lose as many as they gain",
            null.select(about, shown_lower()),
            ALPHA / 2,
        )
        together = null.with_columns(p_value=holm(pl.col("p_value"), [*GROUP, *ASKED]))
        for asked, group in together.group_by([*GROUP, *ASKED]):
            wrong = bool(group.select(shown_lower().fill_null(False).any()).item())
            tally.add("a finding that any policy loses, of equal ones", one(f"{asked}", wrong))
    yield from tally.measured()


def _thinned(rows: pl.DataFrame, shares: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The rows with so many of each cell's lost answers left that it loses just over what is tolerated; the
    others are right.

    ``shares``: per cell, what share of its losses stays.
    """
    both = rows.join(shares, on=["cell_id", "kind", "context_tokens"], how="left")
    stays = pl.Series(rng.random(both.height)) < both["share"].fill_null(1.0)
    return both.with_columns(
        correct=pl.when(stays).then("correct").otherwise(pl.col("correct") | (pl.col("policy") != "dense"))
    ).drop("share")


def _exchanged(rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Each cell with a dense twin of its own; per question the two change places at random, so that neither
    is better."""
    question = ["kind", "context_tokens", "depth", "question_index"]
    dense = rows.filter(pl.col("policy") == "dense").select(*question, "dense_cell_id", twin="correct")
    pairs = rows.filter(pl.col("policy") != "dense").join(dense, on=[*question, "dense_cell_id"])
    turns = pl.Series(rng.random(pairs.height) < 0.5)
    pairs = pairs.with_columns(turn=turns, dense_cell_id=pl.format("{}/dense", "cell_id"))
    first = pl.when("turn").then("twin").otherwise("correct")
    second = pl.when("turn").then("correct").otherwise("twin")
    twins = pairs.with_columns(
        correct=second, policy=pl.lit("dense"), cell_id="dense_cell_id", pool_id="dense_cell_id"
    )
    return pl.concat([pairs.with_columns(correct=first), twins]).drop("twin", "turn")
