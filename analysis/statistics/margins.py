"""What counts as equal and as different: the margins of
every claim of equality, and intervals held against them.

An interval that holds both "no change" and a large change shows nothing.
Equality is claimed only where the whole interval lies within a margin, a
difference only where it lies outside. Of what is between, the data cannot tell.
"""

from __future__ import annotations

import polars as pl

PPL_MARGIN = 0.01
"""PPLs that differ by at most this share are called unchanged."""

ACCURACY_MARGIN = 0.10
"""An accuracy that is at most so much below dense is called kept. Some 40 questions can just show it."""


def within(low: str, high: str, least: float, most: float) -> pl.Expr:
    """Rows whose whole interval lies from ``least`` to ``most``."""
    return ((pl.col(low) >= least) & (pl.col(high) <= most)).fill_null(False)


def outside(low: str, high: str, least: float, most: float) -> pl.Expr:
    """Rows whose whole interval lies below ``least`` or above ``most``."""
    return ((pl.col(high) < least) | (pl.col(low) > most)).fill_null(False)


def unchanged(low: str = "ratio_low", high: str = "ratio_high") -> pl.Expr:
    """Rows whose ratio is shown to be 1, give or take the margin."""
    return within(low, high, 1 - PPL_MARGIN, 1 + PPL_MARGIN)


def changed(low: str = "wide_low", high: str = "wide_high") -> pl.Expr:
    """Rows whose ratio is shown to be further from 1 than the margin.

    By default by intervals that hold together
    (``uncertainty.widened``), because one of many cells errs by chance.
    """
    return outside(low, high, 1 - PPL_MARGIN, 1 + PPL_MARGIN)


def mostly(rows: pl.DataFrame, shown: pl.Expr) -> bool:
    """Whether more than half of the rows show it.

    One of many is shown by chance; more than half are in at most 5 of 100 experiments without a difference,
    whatever the dependence between rows, because each one errs to either side in 2.5 (Markov's inequality).
    """
    return 2 * rows.filter(shown).height > rows.height
