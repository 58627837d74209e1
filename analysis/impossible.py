"""Figures that cannot be, such as a negative NLL: the one list of them for every table, told row by row
before rows are pooled.

No measurement gives such a figure, so a row that has one was edited, damaged, or written by something else.
Where a schema lacks a column, or a value is missing, infinite or not a number, nothing is told: that is
NOT_FINITE, not IMPOSSIBLE.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

from pipeline.results import CELL_COLUMNS, PRUNING

ROUNDING = 1e-4
"""Nats per token that rounding may take from zero: a token of probability 1 can have an NLL of -1e-6, and so
can a KL divergence. Log-probabilities are float32; those of logits up to 100 are off by at most 2e-5."""

NEAR = 1e-6
"""The share by which a mean of counts, or of shares, may pass its bound by rounding."""

FAR = 1e-3
"""The share by which the sum of a window's NLLs, which are stored in float32, may differ from ``nll_sum``."""

LARGEST = {"acc": 1.0, "acc_norm": 1.0, "exact_match": 1.0, "f1": 100.0}
"""Metrics of lm-evaluation-harness that are shares, and the largest value. Some of its tasks (squadv2) give
F1 in per cent."""

TWICE = 0.01
"""The share by which two rows of one window of one cell may
differ in their NLL: more than any hardware's rounding."""

OF_LISTS = {
    "nll_tokens": pl.col("nll").list.len().cast(pl.Int64),
    "nll_lowest": pl.col("nll").list.min(),
    "nll_total": pl.col("nll").list.sum(),
}
"""Of a window's NLLs token by token, what ``reason`` looks at; the lists themselves would fill the memory."""

WORDS = "a figure that cannot be"


def reason(task: str) -> pl.Expr:
    """What cannot be in a row of a table, in words, as ``impossible``; null where everything can.

    Rows of perplexity need the columns ``OF_LISTS``.
    """
    told = pl.concat_str(_SETTINGS + _CONDITIONS.get(task, []), separator=", ", ignore_nulls=True)
    return told.replace("", None).alias("impossible")


def once(rows: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """Each row once, by what names it.

    Windows that are there again, with another ``nll_sum`` or number, get a reason.
    """
    kept = rows.unique(keys, keep="first", maintain_order=True)
    if "nll_sum" not in rows.collect_schema():
        return kept

    told = kept.join(_apart(rows, keys), on=list(keys), how="left", nulls_equal=True, maintain_order="left")
    words = pl.format("nll_sum {} and {} of one window", "low", "high")

    place = [*(key for key in keys if key != "window_index"), "document", "window_start"]
    numbered = kept.filter(pl.col("window_start").is_not_null())
    shared = numbered.group_by(place).agg(others=pl.len()).filter(pl.col("others") > 1)
    told = told.join(shared, on=place, how="left", nulls_equal=True, maintain_order="left")
    again = pl.format("{} windows that begin at one token, {}", "others", "window_start")
    return told.with_columns(impossible=pl.coalesce("impossible", words, again)).drop("low", "high", "others")


def _apart(rows: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """Windows of which rows have sums, ``low`` to ``high``, that no rounding explains."""
    low, high = pl.col("low"), pl.col("high")
    spans = rows.group_by(keys).agg(low=pl.col("nll_sum").min(), high=pl.col("nll_sum").max())
    return spans.filter(low.is_finite() & high.is_finite() & (high - low > TWICE * low.abs()))


def beside_twin() -> pl.Expr:
    """``impossible`` of a row that has its dense twin's
    ``dense_cache_tokens`` and ``dense_impossible``, from ``reason``.

    A pruned cache never holds more than the full one, and
    what rests on a figure that cannot be cannot be either.
    """
    held, whole = pl.col("cache_tokens_mean"), pl.col("dense_cache_tokens")
    above = held.is_finite() & whole.is_finite() & (held > whole * (1 + NEAR))
    words = pl.when(above).then(pl.format("cache_tokens_mean {} above the dense twin's {}", held, whole))
    return pl.coalesce("impossible", of_twin("dense_impossible"), words).alias("impossible")


def at_twins_place() -> pl.Expr:
    """``impossible`` of a window beside its dense twin's
    ``dense_start`` and ``dense_document``: both lie at one place."""
    same = pl.col("window_start").eq_missing(pl.col("dense_start")) & pl.col("document").eq_missing(
        pl.col("dense_document")
    )
    known = pl.col("window_start").is_not_null() & pl.col("dense_start").is_not_null()
    places = ["window_start", "document", "dense_start", "dense_document"]
    told = [pl.col(name).cast(pl.String).fill_null("no number") for name in places]
    words = pl.format("a window at {} of document {} and its dense twin's at {} of {}", *told)
    return pl.coalesce("impossible", pl.when(known & ~same).then(words)).alias("impossible")


def of_twin(name: str) -> pl.Expr:
    """The words of a dense twin's own ``reason``, for the cells that are compared with it."""
    return pl.format("in the dense twin, {}", name)


def in_cell() -> pl.Expr:
    """``impossible`` of a cell, for ``agg``: the first reason among its rows, and how many of them have
    one."""
    own = pl.col("impossible")
    return pl.format(
        f"{WORDS}: {{}} ({{}} of {{}} rows)", own.drop_nulls().first(), own.count(), pl.len()
    ).alias("impossible")


def without_figures(cells: pl.DataFrame, kept: Collection[str]) -> pl.DataFrame:
    """The cells, with nothing but the columns ``kept`` of those
    that are ``impossible``: nothing can be made of them."""
    figures = [name for name in cells.columns if name not in kept]
    return cells.with_columns(pl.when(pl.col("impossible").is_null()).then(pl.col(figures)).name.keep())


def _told(condition: pl.Expr, words: str, *names: str) -> pl.Expr:
    """The words, with the values of these columns, where the condition holds. NaN is above everything, so it
    is left out."""
    known = pl.all_horizontal(pl.col(name).is_finite() for name in names)
    return pl.when(known & condition).then(pl.format(words, *names))


def _below(name: str, least: float | pl.Expr = 0.0) -> pl.Expr:
    return _told(pl.col(name) < least, f"{name} {{}}", name)


def _not_positive(name: str) -> pl.Expr:
    return _told(pl.col(name) <= 0, f"{name} {{}}", name)


def _no_share(name: str) -> pl.Expr:
    return _told(~pl.col(name).is_between(-NEAR, 1 + NEAR), f"{name} {{}}", name)


def _no_part(name: str, whole: str) -> pl.Expr:
    """Counts below 0, or above that of which they are a part."""
    above = pl.col(name) > pl.col(whole) * (1 + NEAR)
    return pl.coalesce(_below(name), _told(above, f"{name} {{}} of {{}} {whole}", name, whole))


def _list_of_nll() -> list[pl.Expr]:
    """What a window's NLLs token by token contradict."""
    length, lowest, summed = (pl.col(name) for name in OF_LISTS)
    scored, total = pl.col("tokens_scored"), pl.col("nll_sum")
    far = ~summed.is_finite() | ((summed - total).abs() > FAR * pl.max_horizontal(total.abs(), 1.0))
    return [
        pl.when(lowest < -ROUNDING).then(pl.format("nll of a token {}", lowest)),
        pl.when(length != scored).then(pl.format("nll of {} tokens for {} tokens_scored", length, scored)),
        pl.when(total.is_finite() & (length == scored) & far).then(
            pl.format("nll_sum {} for tokens of {}", total, summed)
        ),
    ]


def _metric() -> pl.Expr:
    """A share above its largest value, or below 0."""
    largest = pl.col("metric").replace_strict(LARGEST, default=None, return_dtype=pl.Float64)
    outside = (pl.col("value") < 0) | (pl.col("value") > largest)
    return pl.when(pl.col("value").is_finite() & largest.is_not_null() & outside).then(
        pl.format("{} {}", "metric", "value")
    )


def _absent(*names: str) -> list[pl.Expr]:
    """Columns without which nobody knows what a row is of, and that every schema has had."""
    return [pl.when(pl.col(name).is_null()).then(pl.lit(f"no {name}")) for name in names]


def _no_number(name: str) -> pl.Expr:
    """A setting that is infinite or not a number, which no sweep file can ask for."""
    return pl.when(~pl.col(name).is_finite()).then(pl.format(f"{name} {{}}", name))


_SETTINGS = [
    *_absent("model", "policy", "keep_ratio"),
    _no_number("keep_ratio"),
    _told((pl.col("keep_ratio") <= 0) | (pl.col("keep_ratio") > 1), "keep_ratio {}", "keep_ratio"),
    *[_below(name) for name in PRUNING if CELL_COLUMNS[name].is_integer()],
    _below("prune_events"),
]

_TIMED = (
    "ttft_seconds",
    "tpot_seconds",
    "total_seconds",
    "tokens_per_second",
    "memory_bandwidth",
    "new_tokens",
    "batch_size",
)
"""What a timing lasts, or is of: above 0."""

_COUNTED = (
    "prompt_prune_seconds",
    "prune_seconds",
    "prune_step_seconds",
    "plain_step_seconds",
    "step_low",
    "kv_bytes_prompt",
    "kv_bytes_peak",
    "kv_bytes_final",
    "kv_bytes_allocated_peak",
    "kv_bytes_allocated_final",
    "kv_bytes_step_mean",
    "weight_bytes",
    "peak_memory_bytes",
    "text_length",
    "text_agreement",
)
"""What a timing may have none of: 0 or more."""

_PER_TOKEN = -ROUNDING * pl.max_horizontal(pl.col("tokens_scored").cast(pl.Float64), 1.0)

_CONDITIONS: dict[str, list[pl.Expr]] = {
    "perplexity": [
        *_absent("window_index", "window"),
        *[_below(name) for name in ("window_index", "document", "window_start")],
        _not_positive("tokens_scored"),
        _below("nll_sum", _PER_TOKEN),
        *_list_of_nll(),
        _below("kl_sum", _PER_TOKEN),
        _no_part("tokens_correct", "tokens_scored"),
        _no_part("tokens_scored_pruned", "tokens_scored"),
        _no_part("tokens_agreed", "tokens_scored"),
        _not_positive("cache_tokens_mean"),
        _no_part("cache_tokens_mean", "window"),
        *[_below(name) for name in ("kv_bytes_mean", "kv_bytes_peak", "rounding_nats", "rounding_ppl")],
        *[_no_share(name) for name in ("recent_retained", "sink_retained", "score_ties")],
    ],
    "generation": [
        *_absent("prompt_tokens", "repeat"),
        _not_positive("prompt_tokens"),
        _below("repeat"),
        *[_not_positive(name) for name in _TIMED],
        *[_below(name) for name in _COUNTED],
        _no_share("text_ended"),
        _no_share("text_repetition"),
    ],
    "retrieval": [
        *_absent("kind", "context_tokens", "depth", "question_index", "correct"),
        _not_positive("context_tokens"),
        _no_number("depth"),
        _no_share("depth"),
        _below("question_index"),
        _not_positive("answer_tokens"),
        _below("answer_nll", -ROUNDING * pl.max_horizontal("answer_tokens", 1)),
        _no_share("answer_position_retained"),
        _no_share("answer_retained_weighted"),
        _no_share("answer_retained_least"),
        _not_positive("cache_tokens_mean"),
    ],
    "tasks": [
        *_absent("task_name", "metric"),
        _metric(),
        *[_below(name) for name in ("stderr", "documents", "tokens_predicted")],
        _no_part("tokens_predicted_pruned", "tokens_predicted"),
        _below("cache_tokens_mean"),
    ],
}
"""What cannot be in a row of each table. Of several, the words follow each other in this order."""
