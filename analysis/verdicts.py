"""What a cell's figures can speak for: every verdict, why
some enter no aggregate, and how the page warns of them."""

from __future__ import annotations

import polars as pl

BARELY = 0.05
"""Below this share of scored tokens that saw a pruned cache, a cell says little about pruning."""

IMPOSSIBLE = "IMPOSSIBLE"

WHY_EXCLUDED = {
    "FAILED": "it raised an error; the reasons are under Failures",
    IMPOSSIBLE: "a figure that cannot be: the row was not measured as it stands; its note names the figure",
    "NOT_FINITE": "a sum is missing, infinite or not a number",
    "BEYOND_CONTEXT": "the text is longer than the model was trained on",
    "NEVER_PRUNED": "the threshold was never reached: every figure equals dense by construction",
    "BARELY_PRUNED": f"fewer than {100 * BARELY:g} % of its tokens were scored with a pruned cache",
}
"""Verdicts of cells that enter no aggregate."""

WARNED = {
    "NEVER_PRUNED": "Never pruned anything, so that PPL equals dense by construction",
    "BARELY_PRUNED": (
        f"Scored under {100 * BARELY:g} % of the tokens with a pruned cache, so that PPL says little"
    ),
    "BEYOND_CONTEXT": "Texts longer than the model was trained on, so that PPL shows that too",
    "NOT_FINITE": "No finite perplexity: a sum is missing, infinite or not a number",
}
"""What the page's warnings say of cells of perplexity; those of ``IMPOSSIBLE`` are counted for every task."""

HOLLOW = ("NEVER_PRUNED", "BARELY_PRUNED", "BEYOND_CONTEXT")
"""Verdicts whose points are drawn hollow: their figures say nothing, or little, about pruning alone."""


def valid() -> pl.Expr:
    """The cells that findings, recommendations, families of p-values and claims rest on."""
    return pl.col("verdict") == "VALID"


def scored_verdict() -> pl.Expr:
    """What a cell's perplexity can speak for, as ``verdict``."""
    share = pl.col("share_pruned")

    return (
        pl.when(pl.col("impossible").is_not_null())
        .then(pl.lit(IMPOSSIBLE))
        .when(pl.col("policy") == "dense")
        .then(pl.lit("DENSE"))
        .when(pl.col("ppl").is_null())
        .then(pl.lit("NOT_FINITE"))
        .when(pl.col("beyond_context"))
        .then(pl.lit("BEYOND_CONTEXT"))
        .when(share == 0)
        .then(pl.lit("NEVER_PRUNED"))
        .when(share < BARELY)
        .then(pl.lit("BARELY_PRUNED"))
        .otherwise(pl.lit("VALID"))
        .alias("verdict")
    )


def plain_verdict(never: pl.Expr | None = None) -> pl.Expr:
    """The verdict on a cell that has no perplexity; ``never``
    tells that none of its figures saw a pruned cache."""
    saw_none = pl.lit(False) if never is None else never

    return (
        pl.when(pl.col("impossible").is_not_null())
        .then(pl.lit(IMPOSSIBLE))
        .when(pl.col("policy") == "dense")
        .then(pl.lit("DENSE"))
        .when(saw_none)
        .then(pl.lit("NEVER_PRUNED"))
        .when(pl.col("beyond_context"))
        .then(pl.lit("BEYOND_CONTEXT"))
        .when(pl.col("prune_events") == 0)
        .then(pl.lit("NEVER_PRUNED"))
        .otherwise(pl.lit("VALID"))
        .alias("verdict")
    )
