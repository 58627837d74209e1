"""How often what a report says of perplexities is wrong; see ``coverage.py``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from analysis.audit.contrast import contrast
from analysis.keys import SETTINGS
from analysis.perplexity.curve_shape import KEYS, shapes
from analysis.perplexity.tables import summary
from analysis.recommend import MAX_PPL_INCREASE, recommended
from analysis.retrieval.tables import retrieval
from analysis.statistics.margins import PPL_MARGIN, changed, unchanged
from analysis.statistics.uncertainty import ALPHA, widened
from analysis.verdicts import valid
from benchmarks.tally import Measured, Tally, drawn, one, outside
from pipeline.store.schema import schema

RETRIEVAL = {
    **schema("retrieval"),
    "beyond_context": pl.Boolean,
    "impossible": pl.String,
    "pool_id": pl.String,
}
"""The columns of retrieval's rows as ``load`` reads them."""

CURVE_NAME = [pl.format("{} {}", "policy", "prune_after")]

INTERVALS = {
    "95 % interval of the PPL ratio": ("ratio", "ratio_low", "ratio_high"),
    "95 % interval of the ratio where pruned": ("pruned_ratio", "pruned_low", "pruned_high"),
    "95 % interval of KL": ("kl", "kl_low", "kl_high"),
    "95 % interval of the agreement": ("agreement", "agreement_low", "agreement_high"),
}


def of_intervals(
    measured: pl.DataFrame, trials: int, count: int, rng: np.random.Generator
) -> Iterator[Measured]:
    """Intervals of cells, of pairs of cells and of minima, with the rows as they are."""
    truth, tally = summary(measured).filter(valid()), Tally()
    quotients = _knorm_to_random(measured, truth).select(*SETTINGS, true="factor")
    lowest = truth.sort("ratio").unique(KEYS, keep="first").select(*KEYS, true="keep_ratio")
    for _ in range(trials):
        rows = drawn(measured, "window_index", count, rng)
        cells = summary(rows).filter(valid())
        for statement, (name, low, high) in INTERVALS.items():
            both = cells.join(truth.select("pool_id", true=name), on="pool_id")
            tally.add(statement, both.select("pool_id", outside(low, high)))
        for (after,), group in cells.group_by("prune_after"):
            together = widened(group, group.height).join(truth.select("pool_id", true="ratio"), on="pool_id")
            missed = bool(together.select(outside("wide_low", "wide_high").any()).item())
            tally.add("a finding's intervals, all cells together", one(str(after), missed))
        pairs = _knorm_to_random(rows, cells).join(quotients, on=SETTINGS, nulls_equal=True)
        tally.add("95 % interval of a cell against another", pairs.select("pool_id", outside("low", "high")))
        curves = shapes(rows, cells).join(lowest, on=KEYS, nulls_equal=True)
        tally.add(
            "a curve's minimum lies between",
            curves.select(*CURVE_NAME, outside("minimum_low", "minimum_high")),
        )
    yield from tally.measured()


def _knorm_to_random(measured: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    knorm, others = (cells.filter(pl.col("policy") == name) for name in ("knorm", "random"))
    return contrast(measured, knorm, others, ["policy"])


def moved(measured: pl.DataFrame, ratio: float, tokens: str) -> pl.DataFrame:
    """The rows with the NLL of every pruned cell moved so that its true PPL ratio over ``tokens`` is
    ``ratio``."""
    now = pl.col("nll_sum") - pl.col("dense_nll")
    mean = now.sum().over("pool_id") / pl.col(tokens).sum().over("pool_id")
    step = (
        pl.when(pl.col("policy") != "dense")
        .then((float(np.log(ratio)) - mean) * pl.col(tokens))
        .otherwise(0.0)
    )
    return measured.with_columns(nll_sum=pl.col("nll_sum") + step)


def of_equal_cells(
    measured: pl.DataFrame, trials: int, count: int, rng: np.random.Generator
) -> Iterator[Measured]:
    """What is said of cells that equal dense but for chance."""
    equal, tally = moved(measured, 1.0, "tokens_scored"), Tally()
    off = {ratio: moved(measured, ratio, "tokens_scored") for ratio in (1 - PPL_MARGIN, 1 + PPL_MARGIN)}
    for _ in range(trials):
        rows = drawn(equal, "window_index", count, rng)
        cells = summary(rows).filter(valid())
        tally.add_any(
            "p (Holm) below 0.05 in any cell, all equal to dense", cells.select(pl.col("p_holm") < ALPHA)
        )
        for ratio, frame in off.items():
            whole = summary(drawn(frame, "window_index", count, rng)).filter(valid())
            words = f"any cell shown to differ (audit), all off by {100 * (ratio - 1):+g} %"
            tally.add_any(words, widened(whole, whole.height).select(changed()))
        curves = shapes(rows, cells)
        tally.add(
            "a flat curve said to rise or fall",
            curves.select(*CURVE_NAME, pl.col("phases").str.contains("rises|falls")),
        )
    yield from tally.measured()


def of_costly_cells(
    measured: pl.DataFrame, trials: int, count: int, rng: np.random.Generator
) -> Iterator[Measured]:
    """What is said of cells that all cost a little more than may be, where retrieval has no veto."""
    costly = moved(measured, 1 + MAX_PPL_INCREASE + 1e-9, "tokens_scored_pruned")
    different = moved(measured, 1.01 + 1e-9, "tokens_scored")
    answers, tally = retrieval(pl.LazyFrame(schema=RETRIEVAL)), Tally()
    for _ in range(trials):
        rows = drawn(costly, "window_index", count, rng)
        advised = recommended(rows, summary(rows), answers)
        limit = f"{100 * MAX_PPL_INCREASE:g} %"
        tally.add_any(
            f"any setting recommended, all cost over {limit}", advised.select(pl.col("budget").is_not_null())
        )
        cells = summary(drawn(different, "window_index", count, rng)).filter(valid())
        tally.add("a cell called unchanged that is 1 % off", cells.select("pool_id", unchanged()), ALPHA / 2)
    yield from tally.measured()
