"""Generation: medians of times and bytes per cell and prompt
length, and ratios to the dense twin paired by round."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.stats import binom

from analysis.impossible import WORDS, in_cell, without_figures
from analysis.keys import CELL, VERSIONS
from analysis.perplexity.tables import beyond, in_reading_order
from analysis.statistics.pairs import finite
from analysis.statistics.uncertainty import ALPHA
from analysis.verdicts import IMPOSSIBLE

MEDIANS = [
    "ttft_seconds",
    "prompt_prune_seconds",
    "tpot_seconds",
    "prune_step_seconds",
    "plain_step_seconds",
    "total_seconds",
    "tokens_per_second",
    "prune_seconds",
    "memory_bandwidth",
    "kv_bytes_prompt",
    "kv_bytes_peak",
    "kv_bytes_final",
    "kv_bytes_allocated_peak",
    "kv_bytes_allocated_final",
    "peak_memory_bytes",
]
COMPARED = ["ttft_seconds", "tpot_seconds", "tokens_per_second"]
"""The measures of which a ratio to the dense twin is formed."""

TEXT = ["text_length", "text_ended", "text_repetition", "text_agreement"]
"""What is told of the generated text, beside the dense twin's."""

FEWEST_ROUNDS = 6
"""The range of n paired values covers the median with 1 - 2 / 2**n:
from fewer than six rounds there is no 95 % interval."""

NO_DIFFERENCE = "no difference shown"

TURNS = [
    "dense_cell_id",
    *VERSIONS,
    "run_id",
    "device_name",
    "prompt_tokens",
    "batch_size",
    "timing_protocol",
]
"""What took turns: cells are compared with the dense twin of the same run, device and prompts."""

KEYS = ["pool_id", *TURNS]

DRIFT = 0.10
"""The dense cell's time per token may change by this share from the first round to the last."""

NAMED = [
    *KEYS,
    *CELL,
    "new_tokens",
    "threads",
    "peak_memory_method",
    "repeats",
    "impossible",
    "timing",
    "fault",
    "note",
]
"""What stays of a cell of which a figure cannot be."""

WRONG = "wrong on purpose (report_2025)"


def generation(rows: pl.LazyFrame, checked: pl.DataFrame) -> pl.DataFrame:
    """One row per cell, run, device, prompt length and batch.

    Medians over rounds (seconds, bytes; null where nothing was counted), for each of ``COMPARED`` the median
    ratio to the dense twin of the same run and round (``ttft_ratio``, ``ttft_low``, ``ttft_high``,
    ``ttft_words`` and so on), ``timing`` (STABLE, UNSTABLE_TIMING, WRONG_ON_PURPOSE, IMPOSSIBLE) and
    ``note``. ``checked`` comes from ``checks`` on the same rows.
    """
    timed = rows.filter(~pl.col("control"))
    table = _beside_dense_text(_medians(timed).collect())
    table = _joined(table, checked.select(*TURNS, "timing", "fault"), TURNS)
    table = _judged(table)

    ratios = _paired_ratios(timed).collect()
    levels = timed.select(*KEYS, *COMPARED).collect()
    for measure in COMPARED:
        table = _joined(table, _level_intervals(levels, measure), KEYS)
        table = _joined(table, _ratio_intervals(ratios, measure), KEYS)
        words = pl.col(f"{short(measure)}_words")
        doubted = pl.when(pl.col("timing") == "STABLE").then(words).otherwise(pl.col("fault"))
        table = table.with_columns(
            pl.when(words.is_not_null()).then(doubted).alias(f"{short(measure)}_words")
        )

    note = pl.concat_str([pl.col("fault"), beyond(), _without_prunes()], separator="; ", ignore_nulls=True)
    return in_reading_order(
        finite(without_figures(table.with_columns(note=pl.when(note != "").then(note)), NAMED))
    )


def _medians(timed: pl.LazyFrame) -> pl.LazyFrame:
    """Medians over rounds, per cell, run, device, prompt length and batch."""
    step = pl.col("weight_bytes") + pl.col("kv_bytes_step_mean")
    return timed.group_by(KEYS, maintain_order=True).agg(
        *[pl.col(name).first() for name in CELL if name not in KEYS],
        in_cell(),
        pl.col("new_tokens", "threads", "peak_memory_method").first(),
        pl.col("repeat").n_unique().alias("repeats"),
        *[pl.col(name).cast(pl.Float64).median() for name in [*MEDIANS, "prune_events"]],
        (pl.col("ttft_seconds") - pl.col("prompt_prune_seconds")).median().alias("prefill_seconds"),
        step.median().alias("bytes_per_step"),
        (step / pl.col("tpot_seconds")).median().alias("bytes_per_second"),
        pl.col(TEXT).mean(),
    )


def _beside_dense_text(table: pl.DataFrame) -> pl.DataFrame:
    """The cells with what is told of their dense twin's text."""
    twin = table.filter(pl.col("policy") == "dense").unique(TURNS, keep="first", maintain_order=True)
    return _joined(table, twin.select(*TURNS, pl.col(TEXT).name.prefix("dense_")), TURNS)


def _joined(table: pl.DataFrame, other: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    return table.join(other, on=keys, how="left", nulls_equal=True, maintain_order="left")


def _without_prunes() -> pl.Expr:
    """The note on cells of which no step pruned: their time per
    token tells of a smaller cache, and nothing of pruning."""
    silent = (
        pl.col("prune_step_seconds").is_null() & (pl.col("policy") != "dense") & (pl.col("prune_events") > 0)
    )
    return pl.when(silent).then(
        pl.lit("no step after the prompt pruned: TPOT says what a smaller cache takes, not what pruning does")
    )


def _judged(table: pl.DataFrame) -> pl.DataFrame:
    """The timing IMPOSSIBLE for cells with a figure that cannot be, or beside a dense cell with one;
    ``fault`` names it."""
    beside = pl.when(pl.col("timing") == IMPOSSIBLE).then(pl.col("fault"))
    table = table.with_columns(impossible=pl.coalesce("impossible", beside))
    spoilt = pl.col("impossible").is_not_null()
    return table.with_columns(
        timing=pl.when(spoilt).then(pl.lit(IMPOSSIBLE)).otherwise("timing"),
        fault=pl.coalesce("impossible", "fault"),
    )


def checks(rows: pl.LazyFrame) -> pl.DataFrame:
    """One row per group that took turns: drift of the dense cell,
    A against A, and whether its timings can be compared.

    ``drift``: dense time per token in the last round / first round. ``null_ratio``, ``null_low``,
    ``null_high``: the dense cell's second run of a round against its first, by the arithmetic of every other
    ratio: its interval has to contain 1.
    """
    dense = rows.filter(pl.col("policy") == "dense").collect()
    checked = [
        (*keys, *_check(str(keys[-2]), group))
        for keys, group in dense.group_by([*TURNS, "model"], maintain_order=True)
    ]
    schema = {name: dense.schema[name] for name in [*TURNS, "model"]}
    figures = dict.fromkeys(("drift", "null_ratio", "null_low", "null_high"), pl.Float64)
    schema |= {"rounds": pl.Int64, **figures, "timing": pl.String, "fault": pl.String}
    return pl.DataFrame(checked, schema=schema, orient="row")


def _check(protocol: str, group: pl.DataFrame) -> tuple[object, ...]:
    """What ``checks`` says of a dense cell's rows, behind the columns that name the group."""
    seconds = pl.col("tpot_seconds")
    by_round = group.group_by("repeat").agg(
        both=seconds.mean(),
        first=seconds.filter(~pl.col("control")).first(),
        second=seconds.filter("control").first(),
    )
    by_round = by_round.sort("repeat")
    known = by_round.filter(pl.col("both") > 0)["both"]
    drift = known[-1] / known[0] if len(known) else None

    null = (by_round["second"] / by_round["first"]).drop_nulls().to_numpy()
    low, high = median_interval(null)
    ratio = float(np.median(null)) if len(null) else None
    fault = _fault(drift, len(null), low, high)
    timing, why = _timing(protocol, group["impossible"].drop_nulls(), fault)
    return by_round.height, drift, ratio, low, high, timing, why


def _timing(protocol: str, impossible: pl.Series, fault: str | None) -> tuple[str, str | None]:
    """The verdict on what took turns, and why; ``impossible``: what cannot be in the dense cell's rows."""
    if len(impossible):
        return IMPOSSIBLE, f"{WORDS}, in the dense cell: {impossible[0]}"
    if protocol == "report_2025":
        return "WRONG_ON_PURPOSE", WRONG
    return ("UNSTABLE_TIMING", fault) if fault else ("STABLE", None)


def _fault(drift: float | None, rounds: int, low: float | None, high: float | None) -> str | None:
    """Why timings of a group cannot be compared; None where they can."""
    if drift is None:
        return "unstable timing: the dense cell has no time per token"
    if abs(drift - 1) > DRIFT:
        return (
            f"unstable timing: the dense cell's time per token changed by {100 * (drift - 1):+.0f} % from "
            "first to last round"
        )

    if not rounds:
        return "unstable timing: the dense cell was not timed against itself"
    if low is None or high is None:
        return (
            f"unstable timing: {rounds} rounds are too few to hold the dense cell against itself, "
            f"{FEWEST_ROUNDS} are needed"
        )
    if not low <= 1 <= high:
        return f"unstable timing: the dense cell differs from itself, {low:.3f} to {high:.3f}"
    return None


def short(measure: str) -> str:
    """The prefix of a compared measure's columns: ``ttft``, ``tpot``, ``tokens``."""
    return measure.split("_")[0]


def _paired_ratios(own: pl.LazyFrame) -> pl.LazyFrame:
    """Ratio to the twin of the same run, device and round."""
    on = [*TURNS, "repeat"]
    twin = own.filter(pl.col("cell_id") == pl.col("dense_cell_id")).select(
        *on, *[pl.col(name).alias(f"dense_{name}") for name in COMPARED]
    )
    joined = own.filter(pl.col("policy") != "dense").join(twin, on=on, how="inner", nulls_equal=True)
    return joined.select(
        *KEYS, "repeat", *[(pl.col(name) / pl.col(f"dense_{name}")).alias(name) for name in COMPARED]
    )


def _level_intervals(levels: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Interval of the median of a measure itself, unpaired: ``MEASURE_low`` and ``MEASURE_high``."""
    rows = [
        (*keys, *median_interval(group[measure].drop_nulls().to_numpy()))
        for keys, group in levels.group_by(KEYS, maintain_order=True)
    ]
    schema = {key: levels.schema[key] for key in KEYS}
    schema |= {f"{measure}_low": pl.Float64, f"{measure}_high": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _ratio_intervals(ratios: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Median of the ratios of a measure with its interval, and what they say in words; per cell and group."""
    name = short(measure)
    known = ratios.filter(pl.col(measure).is_finite()).sort([*KEYS, "repeat"])
    rows = []
    for keys, group in known.group_by(KEYS, maintain_order=True):
        values = group[measure].to_numpy()
        low, high = median_interval(values)
        middle = float(np.median(values))
        words = change_in_words(middle, low, high, len(values), more_is_better=measure == "tokens_per_second")
        rows.append((*keys, len(values), middle, low, high, words))

    figures = {f"{name}_{figure}": pl.Float64 for figure in ("ratio", "low", "high")}
    columns = {f"{name}_rounds": pl.Int64, **figures, f"{name}_words": pl.String}
    schema = {key: ratios.schema[key] for key in KEYS} | columns
    return pl.DataFrame(rows, schema=schema, orient="row")


def median_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Interval of the median between two order statistics of
    ``values`` [rounds]; nulls from fewer than six rounds.

    Whatever the distribution, it covers the median in at least 95 % (David
    and Nagaraja 2003, Order Statistics, section 7.1), and in at least 92.5 %
    where rounds were run until it was narrow (``benchmarks/coverage.py``).
    """
    rank = int(binom.ppf(ALPHA / 2, len(values), 0.5)) if len(values) else 0
    if rank < 1:
        return None, None
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def change_in_words(
    ratio: float, low: float | None, high: float | None, rounds: int, *, more_is_better: bool
) -> str:
    """A speed-up or slow-down, only where the interval excludes 1 and enough rounds were run."""
    if rounds < FEWEST_ROUNDS:
        many = f"{rounds} rounds" if rounds != 1 else "one round"
        return f"{NO_DIFFERENCE} (only {many})"
    if low is None or high is None or low <= 1 <= high:
        return NO_DIFFERENCE
    factor = ratio if more_is_better else 1 / ratio
    return f"{factor:.2f}x faster" if factor > 1 else f"{1 / factor:.2f}x slower"
