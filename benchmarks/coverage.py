"""How often what a report says is wrong: ``python -m benchmarks.coverage [--rows DIR] [--trials N] [--out DIR]``.

The rows of a large run are taken for the whole truth: every window of a text, and hundreds of questions, of both embedded models.
From them experiments of the embedded sweeps' sizes are drawn, windows or questions at random with replacement, and each goes
through the code that makes a report. Printed is how often an interval misses the truth, and how often a finding, a p, a
recommendation or a check of timing is wrong, beside how often it may be by what is said. Where an error needs a truth that the
rows do not hold (no difference, a loss just above what is tolerated), the rows are moved so that it holds.

Without ``--rows`` the run is made first (some 20 minutes on 2 cores) and kept in ``--out``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from analysis.audit.contrast import contrast
from analysis.generation.speed import median_interval
from analysis.keys import CURVE, GROUP, SETTINGS, VERSIONS
from analysis.load import load
from analysis.perplexity.curve_shape import KEYS, shapes
from analysis.perplexity.tables import summary
from analysis.recommend import MAX_PPL_INCREASE, recommended
from analysis.retrieval.findings import ASKED, least_budget
from analysis.retrieval.tables import kept_accuracy, retrieval, shown_lower
from analysis.statistics.margins import ACCURACY_MARGIN, PPL_MARGIN, changed, unchanged
from analysis.statistics.pairs import with_dense
from analysis.statistics.uncertainty import ALPHA, holm, widened
from analysis.verdicts import valid
from benchmarks.tally import Measured, Tally, one, outside, tell
from pipeline.store.schema import schema

SWEEP = Path(__file__).resolve().parent / "coverage.yaml"
WINDOWS = 16
"""Windows of a cell in the embedded sweeps."""
DOCUMENTS = 12
"""Questions of each kind, length and depth in the embedded sweeps."""
ROUNDS = [(6, 12), (7, 15), (6, 8)]
"""Rounds at least and at most of the embedded sweeps' timings."""
WIDTH = 0.05

RETRIEVAL = {
    **schema("retrieval"),
    "beyond_context": pl.Boolean,
    "impossible": pl.String,
    "pool_id": pl.String,
}
"""The columns of retrieval's rows as ``load`` reads them."""


def drawn(rows: pl.DataFrame, key: str, count: int, rng: np.random.Generator) -> pl.DataFrame:
    """An experiment: the rows of ``count`` values of ``key`` at random with replacement, numbered anew."""
    values = rows[key].unique().sort()
    numbers = pl.DataFrame({key: values.gather(rng.integers(0, len(values), count)), "number": range(count)})
    joined = numbers.join(rows, on=key, how="left", maintain_order="left").drop(key)
    return joined.rename({"number": key}).cast({key: values.dtype})


# Perplexity ---------------------------------------------------------------------------------------------------------------

CURVE_NAME = [pl.format("{} {}", "policy", "prune_after")]

INTERVALS = {
    "95 % interval of the PPL ratio": ("ratio", "ratio_low", "ratio_high"),
    "95 % interval of the ratio where pruned": ("pruned_ratio", "pruned_low", "pruned_high"),
    "95 % interval of KL": ("kl", "kl_low", "kl_high"),
    "95 % interval of the agreement": ("agreement", "agreement_low", "agreement_high"),
}


def of_intervals(measured: pl.DataFrame, trials: int, count: int, rng: np.random.Generator) -> Iterator[Measured]:
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
        tally.add("a curve's minimum lies between", curves.select(*CURVE_NAME, outside("minimum_low", "minimum_high")))
    yield from tally.measured()


def _knorm_to_random(measured: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    knorm, others = (cells.filter(pl.col("policy") == name) for name in ("knorm", "random"))
    return contrast(measured, knorm, others, ["policy"])


def moved(measured: pl.DataFrame, ratio: float, tokens: str) -> pl.DataFrame:
    """The rows with the NLL of every pruned cell moved so that its true PPL ratio over ``tokens`` is ``ratio``."""
    now = pl.col("nll_sum") - pl.col("dense_nll")
    mean = now.sum().over("pool_id") / pl.col(tokens).sum().over("pool_id")
    step = pl.when(pl.col("policy") != "dense").then((float(np.log(ratio)) - mean) * pl.col(tokens)).otherwise(0.0)
    return measured.with_columns(nll_sum=pl.col("nll_sum") + step)


def of_equal_cells(measured: pl.DataFrame, trials: int, count: int, rng: np.random.Generator) -> Iterator[Measured]:
    """What is said of cells that equal dense but for chance."""
    equal, tally = moved(measured, 1.0, "tokens_scored"), Tally()
    off = {ratio: moved(measured, ratio, "tokens_scored") for ratio in (1 - PPL_MARGIN, 1 + PPL_MARGIN)}
    for _ in range(trials):
        rows = drawn(equal, "window_index", count, rng)
        cells = summary(rows).filter(valid())
        tally.add_any("p (Holm) below 0.05 in any cell, all equal to dense", cells.select(pl.col("p_holm") < ALPHA))
        for ratio, frame in off.items():
            whole = summary(drawn(frame, "window_index", count, rng)).filter(valid())
            words = f"any cell shown to differ (audit), all off by {100 * (ratio - 1):+g} %"
            tally.add_any(words, widened(whole, whole.height).select(changed()))
        curves = shapes(rows, cells)
        tally.add("a flat curve said to rise or fall", curves.select(*CURVE_NAME, pl.col("phases").str.contains("rises|falls")))
    yield from tally.measured()


def of_costly_cells(measured: pl.DataFrame, trials: int, count: int, rng: np.random.Generator) -> Iterator[Measured]:
    """What is said of cells that all cost a little more than may be, where retrieval has no veto."""
    costly = moved(measured, 1 + MAX_PPL_INCREASE + 1e-9, "tokens_scored_pruned")
    different = moved(measured, 1.01 + 1e-9, "tokens_scored")
    answers, tally = retrieval(pl.LazyFrame(schema=RETRIEVAL)), Tally()
    for _ in range(trials):
        rows = drawn(costly, "window_index", count, rng)
        advised = recommended(rows, summary(rows), answers)
        limit = f"{100 * MAX_PPL_INCREASE:g} %"
        tally.add_any(f"any setting recommended, all cost over {limit}", advised.select(pl.col("budget").is_not_null()))
        cells = summary(drawn(different, "window_index", count, rng)).filter(valid())
        tally.add("a cell called unchanged that is 1 % off", cells.select("pool_id", unchanged()), ALPHA / 2)
    yield from tally.measured()


# Retrieval ----------------------------------------------------------------------------------------------------------------


def of_answers(rows: pl.DataFrame, trials: int, rng: np.random.Generator) -> Iterator[Measured]:
    """What is said of answers; as many questions of each depth are drawn, each of which has a document of its own."""
    keys, tally = ["cell_id", "kind", "context_tokens"], Tally()
    whole = retrieval(rows.lazy()).filter(valid())
    lost = pl.col("lost") / pl.col("paired")
    truth = whole.select(*keys, true="accuracy", true_lost=lost)
    shares = truth.select(*keys, share=(ACCURACY_MARGIN + 1e-3) / pl.col("true_lost"))
    for _ in range(trials):
        own = pl.concat(
            [drawn(part, "question_index", DOCUMENTS, rng) for _, part in rows.group_by("depth", maintain_order=True)]
        )
        cells = retrieval(own.lazy()).filter(valid()).join(truth, on=keys)
        about = pl.format("{} {}", "cell_id", "kind")
        tally.add("95 % interval of an accuracy", cells.select(about, outside("accuracy_low", "accuracy_high")))
        lossy = retrieval(_thinned(own, shares, rng).lazy()).filter(valid()).join(truth, on=keys)
        words = f"said to keep, of those that lose just over {100 * ACCURACY_MARGIN:g} points"
        lossy = lossy.filter(pl.col("true_lost") > ACCURACY_MARGIN)
        tally.add(words, lossy.select(about, kept_accuracy()))
        for setting, curve in lossy.group_by([*CURVE, *ASKED]):
            wrong = least_budget(curve) is not None
            tally.add("a finding that a policy keeps, all its cells lose more", one(f"{setting}", wrong))

        null = retrieval(_exchanged(own, rng).lazy()).filter(valid())
        tally.add("said to lose, of those that lose as many as they gain", null.select(about, shown_lower()), ALPHA / 2)
        together = null.with_columns(p_value=holm(pl.col("p_value"), [*GROUP, *ASKED]))
        for asked, group in together.group_by([*GROUP, *ASKED]):
            wrong = bool(group.select(shown_lower().fill_null(False).any()).item())
            tally.add("a finding that any policy loses, of equal ones", one(f"{asked}", wrong))
    yield from tally.measured()


def _thinned(rows: pl.DataFrame, shares: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The rows with so many of each cell's lost answers left that it loses just over what is tolerated; the others are right.

    ``shares``: per cell, what share of its losses stays.
    """
    both = rows.join(shares, on=["cell_id", "kind", "context_tokens"], how="left")
    stays = pl.Series(rng.random(both.height)) < both["share"].fill_null(1.0)
    return both.with_columns(
        correct=pl.when(stays).then("correct").otherwise(pl.col("correct") | (pl.col("policy") != "dense"))
    ).drop("share")


def _exchanged(rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Each cell with a dense twin of its own; per question the two change places at random, so that neither is better."""
    question = ["kind", "context_tokens", "depth", "question_index"]
    dense = rows.filter(pl.col("policy") == "dense").select(*question, "dense_cell_id", twin="correct")
    pairs = rows.filter(pl.col("policy") != "dense").join(dense, on=[*question, "dense_cell_id"])
    turns = pl.Series(rng.random(pairs.height) < 0.5)
    pairs = pairs.with_columns(turn=turns, dense_cell_id=pl.format("{}/dense", "cell_id"))
    first = pl.when("turn").then("twin").otherwise("correct")
    second = pl.when("turn").then("correct").otherwise("twin")
    twins = pairs.with_columns(correct=second, policy=pl.lit("dense"), cell_id="dense_cell_id", pool_id="dense_cell_id")
    return pl.concat([pairs.with_columns(correct=first), twins]).drop("twin", "turn")


# Times --------------------------------------------------------------------------------------------------------------------


def of_times(trials: int, rng: np.random.Generator) -> Iterator[Measured]:
    """A against A: rounds run until the interval is narrow; lognormal times, and ones with outliers."""
    for least, most in ROUNDS:
        wrong = {"": 0, ", with outliers": 0}
        for _ in range(trials):
            for words in wrong:
                times = np.exp(rng.normal(0, 0.03, (2, most)))
                if words:
                    times *= 1 + (rng.random(times.shape) < 0.1) * rng.exponential(0.3, times.shape)
                wrong[words] += not _holds_one(times[1] / times[0], least)
        for words, count in wrong.items():
            yield f"A against A, {least} to {most} rounds{words}", ALPHA, count / trials, count / trials, trials


def _holds_one(ratios: np.ndarray, least: int) -> bool:
    low = high = None
    for rounds in range(least, len(ratios) + 1):
        low, high = median_interval(ratios[:rounds])
        assert low is not None and high is not None
        if high - low <= WIDTH:
            break
    return low is not None and high is not None and low <= 1 <= high


def parsed() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="a run directory of benchmarks/coverage.yaml; made where it is left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the sweep that is run")
    parser.add_argument("--out", default="results/coverage", help="where the run is made (default: results/coverage)")
    parser.add_argument("--trials", type=int, default=400, help="experiments drawn for each table (default: 400)")
    parser.add_argument("--limit", type=float, default=1.5, help="times as often as is said an error may come")
    windows = [8, WINDOWS, 32]
    parser.add_argument("--windows", type=int, nargs="*", default=windows, help="of an experiment (default: 8 16 32)")
    return parser.parse_args()


def main() -> int:
    """Make the rows where none are given, draw experiments from them, print how often what is said of each is wrong."""
    args = parsed()
    directory = args.rows or args.out
    if args.rows is None:
        settings = [part for setting in args.set for part in ("--set", setting)]
        command = [sys.executable, "-m", "pipeline.cli", "run", str(SWEEP), "--out", directory]
        subprocess.run([*command, *settings], check=True)

    results, rng = load([directory]), np.random.default_rng(20_240_611)
    measured, answers = with_dense(results.rows("perplexity")), results.rows("retrieval").collect()
    fine = tell("Times, A against A", of_times(5 * args.trials, rng), args.limit)
    for (model,), own in answers.group_by("model", maintain_order=True):
        questions = DOCUMENTS * own["depth"].n_unique()
        title = f"Retrieval, {model}, {questions} questions of a kind"
        fine &= tell(title, of_answers(own, args.trials, rng), args.limit)
    for (model,), own in measured.group_by("model", maintain_order=True):
        whole = own["window_index"].n_unique()
        cells = own.filter(pl.col("policy") != "dense").select("pool_id", *VERSIONS).n_unique()
        for count in args.windows:
            title = f"Perplexity, {model}, {count} of {whole} windows, {cells} cells"
            for part in (of_intervals, of_equal_cells, of_costly_cells):
                named = f"{title}: {part.__name__.replace('_', ' ')}"
                fine &= tell(named, part(own, args.trials, count, rng), args.limit)
    print(f"\n{'every error' if fine else 'NOT every error'} is at most {args.limit:g} times as frequent as is said")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
