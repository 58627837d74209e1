"""Signs of measuring errors in anybody's table of results: ``kvsweep audit --table FILE.csv``.

A sign is a pattern that the known mistakes leave behind (a share taken for a time, a perplexity without a
cache, a threshold never reached, no warm-up). It names the rows it rests on; whether it is a mistake is for a
reader of the experiment to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

from analysis.audit.foreign_csv import TableError
from analysis.audit.foreign_table import LINE, read_table
from analysis.audit.impossible_results import impossible, possible

__all__ = ["CHECKS", "Sign", "TableError", "describe", "read_table", "signs"]

FEWEST_SAMPLES = 5
SAME_SHARE = 0.005
"""Shares of TTFT in the total time that differ by less than this, relatively, are one constant."""
OUTLIER = 1.5
"""A first row slower than the median of the others by this factor was not warmed up."""
EARLIER = 0.9


@dataclass(frozen=True)
class Sign:
    """One pattern and the lines of the file that show it."""

    name: str
    words: str
    lines: list[int]


def signs(frame: pl.DataFrame) -> list[Sign]:
    """All signs in a table from ``read_table``, model and dataset by model and dataset."""
    keys = [name for name in ("model", "dataset") if name in frame.columns]
    groups = [group for _, group in frame.group_by(keys, maintain_order=True)] if keys else [frame]
    return [sign for group in groups for sign in _of_group(group)]


def _of_group(group: pl.DataFrame) -> list[Sign]:
    """What cannot be comes first; the other signs do without it."""
    wrong = [Sign("a figure that cannot be", words, lines) for words, lines in impossible(group)]
    rest = possible(group)
    return wrong + [sign for check in CHECKS for sign in check(rest)]


def _has(group: pl.DataFrame, *names: str) -> bool:
    return all(name in group.columns and group[name].null_count() < group.height for name in names)


def _share_taken_for_a_time(group: pl.DataFrame) -> Iterator[Sign]:
    if not _has(group, "ttft", "total"):
        return

    shares = group.with_columns(share=pl.col("ttft") / pl.col("total")).filter(pl.col("share").is_finite())
    for rows, whose in ((shares, "all rows"), (shares.filter("dense"), "the baseline's rows")):
        values = rows["share"]
        if rows.height == 0:
            continue
        # Two rows can have one share by chance, unless it is a round one.
        is_round = abs(values[0] - round(values[0], 1)) <= SAME_SHARE * values[0]
        if rows.height < 3 and not is_round:
            continue

        if values.max() - values.min() < SAME_SHARE * values.mean():  # pyright: ignore[reportOperatorIssue]
            words = (
                f"TTFT is {100 * values[0]:.4g} % of the total time in {whose}: a share of it, "
                "not a measurement"
            )
            yield Sign("share taken for a time", words, rows[LINE].to_list())
            return


def _same_perplexity(group: pl.DataFrame) -> Iterator[Sign]:
    if not _has(group, "ppl", "keep_ratio"):
        return
    for (ppl,), rows in group.filter(pl.col("ppl").is_not_null()).group_by("ppl", maintain_order=True):
        ratios = rows["keep_ratio"].unique().sort(descending=True).to_list()
        if len(ratios) > 1:
            words = (
                f"PPL is {ppl:g} at keep_ratio {', '.join(f'{r:g}' for r in ratios)}: "
                "what was scored saw no pruned cache"
            )
            yield Sign("perplexity without pruning", words, rows[LINE].to_list())


def _never_reached(group: pl.DataFrame) -> Iterator[Sign]:
    pruned = group.filter(~pl.col("dense"))
    if _has(group, "cache_tokens", "tokens"):
        rows = pruned.filter(pl.col("cache_tokens") >= pl.col("tokens"))
        words = "the cache is as long as the text that was evaluated"
        if rows.height:
            yield Sign("nothing was dropped", words, rows[LINE].to_list())

    if _has(group, "prune_after", "tokens"):
        rows = pruned.filter(pl.col("prune_after") >= pl.col("tokens"))
        words = "prune_after is not below the tokens that were evaluated"
        if rows.height:
            yield Sign("threshold never reached", words, rows[LINE].to_list())


def _few_samples(group: pl.DataFrame) -> Iterator[Sign]:
    if _has(group, "samples"):
        rows = group.filter(pl.col("samples") < FEWEST_SAMPLES)
        words = f"fewer than {FEWEST_SAMPLES} samples: no interval to speak of"
        if rows.height:
            yield Sign("few samples", words, rows[LINE].to_list())


def _no_baseline(group: pl.DataFrame) -> Iterator[Sign]:
    if _has(group, "keep_ratio") and not group["dense"].any():
        words = "no row has keep_ratio 1: there is nothing to compare with"
        yield Sign("no baseline", words, group[LINE].to_list())


def _not_warmed_up(group: pl.DataFrame) -> Iterator[Sign]:
    for name in ("total", "ttft"):
        if _has(group, name) and group.height >= 4:
            first, others = group[name][0], group[name][1:].drop_nulls().median()
            if first is not None and isinstance(others, float) and first > OUTLIER * others:
                words = (
                    f"the first row's {name} is {first / others:.2f} times the median of the others: "
                    "no warm-up"
                )
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
            f"TTFT falls by {gain:.0f} %, but pruning starts after the prompt's pass and cannot make the "
            "first token come earlier"
        )
        yield Sign("first token too early", words, rows[LINE].to_list())


CHECKS: list[Callable[[pl.DataFrame], Iterator[Sign]]] = [
    _share_taken_for_a_time,
    _same_perplexity,
    _never_reached,
    _few_samples,
    _no_baseline,
    _not_warmed_up,
    _earlier_than_possible,
]


def describe(path: str) -> list[str]:
    """Lines for a person; empty where a table shows no sign. Raises TableError."""
    return [
        f"{sign.name}: {sign.words} ({'line' if len(sign.lines) == 1 else 'lines'} "
        f"{', '.join(map(str, sign.lines))})"
        for sign in signs(read_table(path))
    ]
