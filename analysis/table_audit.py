"""Signs of measuring errors in anybody's table of results: ``kvsweep audit --table FILE.csv``.

A sign is a pattern that the known mistakes leave behind (a share taken for a time, a perplexity without a cache, a threshold
never reached, no warm-up). It names the rows it rests on; whether it is a mistake is for a reader of the experiment to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

COLUMNS = {
    "model": ("model", "model_name"),
    "dataset": ("dataset", "data", "text"),
    "policy": ("policy", "method", "name", "config"),
    "keep_ratio": ("keep_ratio", "ratio", "keep"),
    "prune_after": ("prune_after", "threshold"),
    "ppl": ("ppl", "perplexity"),
    "ttft": ("ttft", "ttft_seconds", "ttft_s", "time_to_first_token"),
    "total": ("total", "total_seconds", "total_time", "total_s"),
    "cache_tokens": ("cache_tokens", "cache_length", "kv_length", "cache_size"),
    "tokens": ("tokens", "evaluated_tokens", "eval_tokens", "num_tokens"),
    "samples": ("samples", "n", "runs", "repeats", "num_samples"),
}
"""What a table may hold, and the headings by which it is recognised (case, spaces and hyphens do not matter)."""

FEWEST_SAMPLES = 5
SAME_SHARE = 0.005
"""Shares of TTFT in the total time that differ by less than this, relatively, are one constant."""
OUTLIER = 1.5
"""A first row slower than the median of the others by this factor was not warmed up."""
EARLIER = 0.9
LINE = "line"


class TableError(ValueError):
    """A file that cannot be audited. The message says why and what is allowed."""


@dataclass(frozen=True)
class Sign:
    """One pattern and the lines of the file that show it."""

    name: str
    words: str
    lines: list[int]


def read_table(path: str) -> pl.DataFrame:
    """The known columns of a CSV file under their names here, with ``line``. Raises TableError."""
    try:
        raw = pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TableError(f"{path}: is no readable CSV file ({str(error).splitlines()[0]})") from error
    known: dict[str, str] = {}
    for heading in raw.columns:
        plain = heading.strip().lower().replace(" ", "_").replace("-", "_")
        name = next((name for name, spellings in COLUMNS.items() if plain in spellings), None)
        if name is not None and name not in known.values():
            known[heading] = name
    if not {"ppl", "ttft", "total", "cache_tokens", "samples"} & set(known.values()):
        raise TableError(
            f"{path}: none of its columns ({', '.join(raw.columns)}) holds a known figure; give at least one of ppl, "
            "ttft, total, cache_tokens, samples"
        )
    frame = raw.select(pl.col(heading).alias(name) for heading, name in known.items()).with_row_index(LINE, offset=2)
    try:
        return frame.with_columns(
            pl.col(name).cast(pl.Float64) for name in frame.columns if name not in ("model", "dataset", "policy", LINE)
        )
    except pl.exceptions.PolarsError as error:
        raise TableError(f"{path}: a figure is not a number ({str(error).splitlines()[0]})") from error


def signs(frame: pl.DataFrame) -> list[Sign]:
    """All signs in a table from ``read_table``, model and dataset by model and dataset."""
    keys = [name for name in ("model", "dataset") if name in frame.columns]
    groups = [group for _, group in frame.group_by(keys, maintain_order=True)] if keys else [frame]
    return [sign for group in groups for check in CHECKS for sign in check(group.with_columns(_is_dense(group)))]


def _is_dense(group: pl.DataFrame) -> pl.Expr:
    """Rows of the baseline: keep_ratio 1, or a policy called so."""
    found = pl.lit(False)
    if "keep_ratio" in group.columns:
        found = found | (pl.col("keep_ratio") >= 1)
    if "policy" in group.columns:
        found = found | pl.col("policy").str.to_lowercase().is_in(["dense", "baseline", "none", "full"])
    return found.fill_null(False).alias("dense")


def _has(group: pl.DataFrame, *names: str) -> bool:
    return all(name in group.columns and group[name].null_count() < group.height for name in names)


def _share_taken_for_a_time(group: pl.DataFrame) -> Iterator[Sign]:
    if not _has(group, "ttft", "total"):
        return
    shares = group.with_columns(share=pl.col("ttft") / pl.col("total")).filter(pl.col("share").is_finite())
    for rows, whose in ((shares, "all rows"), (shares.filter("dense"), "the baseline's rows")):
        values = rows["share"]
        if rows.height == 0 or (rows.height < 3 and abs(values[0] - round(values[0], 1)) > SAME_SHARE * values[0]):
            continue
        if values.max() - values.min() < SAME_SHARE * values.mean():  # pyright: ignore[reportOperatorIssue]
            words = f"TTFT is {100 * values[0]:.4g} % of the total time in {whose}: a share of it, not a measurement"
            yield Sign("share taken for a time", words, rows[LINE].to_list())
            return


def _same_perplexity(group: pl.DataFrame) -> Iterator[Sign]:
    if not _has(group, "ppl", "keep_ratio"):
        return
    for (ppl,), rows in group.filter(pl.col("ppl").is_not_null()).group_by("ppl", maintain_order=True):
        ratios = rows["keep_ratio"].unique().sort(descending=True).to_list()
        if len(ratios) > 1:
            words = f"PPL is {ppl:g} at keep_ratio {', '.join(f'{r:g}' for r in ratios)}: what was scored saw no pruned cache"
            yield Sign("perplexity without pruning", words, rows[LINE].to_list())


def _never_reached(group: pl.DataFrame) -> Iterator[Sign]:
    pruned = group.filter(~pl.col("dense"))
    if _has(group, "cache_tokens", "tokens"):
        rows = pruned.filter(pl.col("cache_tokens") >= pl.col("tokens"))
        if rows.height:
            yield Sign("nothing was dropped", "the cache is as long as the text that was evaluated", rows[LINE].to_list())
    if _has(group, "prune_after", "tokens"):
        rows = pruned.filter(pl.col("prune_after") >= pl.col("tokens"))
        if rows.height:
            yield Sign("threshold never reached", "prune_after is not below the tokens that were evaluated", rows[LINE].to_list())


def _few_samples(group: pl.DataFrame) -> Iterator[Sign]:
    if _has(group, "samples"):
        rows = group.filter(pl.col("samples") < FEWEST_SAMPLES)
        if rows.height:
            yield Sign("few samples", f"fewer than {FEWEST_SAMPLES} samples: no interval to speak of", rows[LINE].to_list())


def _no_baseline(group: pl.DataFrame) -> Iterator[Sign]:
    if _has(group, "keep_ratio") and not group["dense"].any():
        yield Sign("no baseline", "no row has keep_ratio 1: there is nothing to compare with", group[LINE].to_list())


def _not_warmed_up(group: pl.DataFrame) -> Iterator[Sign]:
    for name in ("total", "ttft"):
        if _has(group, name) and group.height >= 4:
            first, others = group[name][0], group[name][1:].drop_nulls().median()
            if first is not None and isinstance(others, float) and first > OUTLIER * others:
                words = f"the first row's {name} is {first / others:.2f} times the median of the others: no warm-up"
                yield Sign("first run slow", words, group[LINE].to_list()[:1])
                return


def _earlier_than_possible(group: pl.DataFrame) -> Iterator[Sign]:
    if not _has(group, "ttft") or not group["dense"].any():
        return
    base = group.filter("dense")["ttft"].median()
    rows = group.filter(~pl.col("dense"), pl.col("ttft") < EARLIER * pl.lit(base))
    if rows.height and isinstance(base, float):
        gain = 100 * (1 - float(rows["ttft"].median() or 0) / base)  # pyright: ignore[reportArgumentType]
        words = (
            f"TTFT falls by {gain:.0f} %, but pruning starts after the prompt's pass and cannot make the first token come earlier"
        )
        yield Sign("first token too early", words, rows[LINE].to_list())


CHECKS: list[Callable[[pl.DataFrame], Iterator[Sign]]] = [
    _share_taken_for_a_time, _same_perplexity, _never_reached, _few_samples, _no_baseline, _not_warmed_up, _earlier_than_possible,
]  # fmt: skip


def describe(path: str) -> list[str]:
    """Lines for a person; empty where a table shows no sign. Raises TableError."""
    return [
        f"{sign.name}: {sign.words} ({'line' if len(sign.lines) == 1 else 'lines'} {', '.join(map(str, sign.lines))})"
        for sign in signs(read_table(path))
    ]
