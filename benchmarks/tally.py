"""Experiments drawn, and statements counted: how often each was made, was wrong, and may be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import polars as pl

from analysis.statistics.uncertainty import ALPHA

Measured = tuple[str, float, float, float, int]
"""A statement, how often it may be wrong, how often it was, also about the worst cell, and how often it was
made."""


class Tally:
    """How often each statement was made, and how often wrongly, per cell that it is about."""

    def __init__(self) -> None:
        self.said: dict[str, float] = {}
        self.counts: dict[str, dict[object, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def add(self, statement: str, wrong: pl.DataFrame, said: float = ALPHA) -> None:
        """``wrong``: what a statement is about, and whether it was wrong, a row for each time that it was
        made.

        ``said``: how often it may be wrong. A row without an answer was not made.
        """
        self.said[statement] = said
        for about, is_wrong in wrong.drop_nulls().iter_rows():
            count = self.counts[statement][about]
            count[0] += is_wrong
            count[1] += 1

    def add_any(self, statement: str, wrong: pl.DataFrame, said: float = ALPHA) -> None:
        """The same for a statement that speaks of all rows together."""
        self.add(statement, one("all", bool(wrong.to_series().fill_null(False).any())), said)

    def measured(self) -> Iterator[Measured]:
        """Each statement with the share that was wrong, and that of the worst cell."""
        for statement, cells in self.counts.items():
            wrong, made = (sum(count[i] for count in cells.values()) for i in (0, 1))
            worst = max(count[0] / count[1] for count in cells.values())
            yield statement, self.said[statement], wrong / made, worst, made


def drawn(rows: pl.DataFrame, key: str, count: int, rng: np.random.Generator) -> pl.DataFrame:
    """An experiment: the rows of ``count`` values of ``key`` at random with replacement, numbered anew."""
    values = rows[key].unique().sort()
    numbers = pl.DataFrame({key: values.gather(rng.integers(0, len(values), count)), "number": range(count)})
    joined = numbers.join(rows, on=key, how="left", maintain_order="left").drop(key)
    return joined.rename({"number": key}).cast({key: values.dtype})


def one(about: str, wrong: bool) -> pl.DataFrame:
    """One statement and whether it was wrong."""
    return pl.DataFrame({"about": [about], "wrong": [wrong]})


def outside(low: str, high: str, true: str = "true") -> pl.Expr:
    """Whether an interval misses the truth."""
    return (pl.col(true) < pl.col(low)) | (pl.col(true) > pl.col(high))


def tell(title: str, found: Iterator[Measured], limit: float) -> bool:
    """Print a table; whether no error is more than ``limit`` times as frequent as it may be."""
    print(f"\n{title}")
    print(f"{'statement':62} {'may err':>8} {'errs':>8} {'times':>6} {'worst cell':>11} {'made':>8}")
    fine = True
    for statement, said, measured, worst, made in found:
        beyond = measured > limit * said
        fine &= not beyond
        figures = f"{said:8.3f} {measured:8.3f} {measured / said:6.2f} {worst:11.3f} {made:8}"
        print(f"{statement:62} {figures}{'  TOO OFTEN' if beyond else ''}", flush=True)
    return fine
