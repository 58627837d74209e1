"""The shape of a curve over keep_ratio: where its minimum
can lie, and where it rises, falls or shows neither."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from analysis import labels
from analysis.keys import CURVE, SCORED
from analysis.statistics.pairs import POOL
from analysis.statistics.uncertainty import ALPHA, t_quantile, units, weighted_mean
from analysis.verdicts import valid

KEYS = [*SCORED, *CURVE]
"""What names a curve."""

FEWEST = 3
"""Cells that a curve needs to have a shape."""

NO_CHANGE = "no change shown"

SCHEMA = {
    "cell_id": pl.String,
    "minimum_at": pl.Float64,
    "minimum_low": pl.Float64,
    "minimum_high": pl.Float64,
    "phases": pl.String,
    "cells": pl.Int64,
}


def shapes(measured: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """One row per curve of at least three valid cells that scored
    the same texts (documents, or at least two windows).

    ``measured`` comes from ``pairs.with_dense``, ``cells`` from ``Tables.perplexity``. Adds to the settings
    of the curve and the PPL, ratio and interval of its lowest cell: ``minimum_at`` (its keep_ratio),
    ``minimum_low`` and ``minimum_high`` (between them lies the true minimum, 95 %), ``phases`` in words, from
    keep_ratio 1 (the dense twin) downwards.
    """
    sound = cells.filter(valid(), pl.col("ratio_low").is_not_null())
    sums = units(measured, POOL).join(sound.select(*POOL), on=POOL, how="semi", nulls_equal=True)
    by_cell = dict(sums.group_by(POOL))
    table = pl.DataFrame(list(_shapes(sound, by_cell)), schema=SCHEMA, orient="row")
    own_columns = [name for name in SCHEMA if name != "cell_id"]
    kept = [
        *KEYS,
        "cell_id",
        "ppl",
        "ratio",
        "ratio_low",
        "ratio_high",
        "budget",
        "n_units",
    ]
    return (
        sound.select(kept)
        .join(table, on="cell_id", how="inner", maintain_order="left")
        .select(*kept, *own_columns)
    )


def _shapes(
    sound: pl.DataFrame, by_cell: dict[tuple[object, ...], pl.DataFrame]
) -> Iterator[tuple[object, ...]]:
    for _, group in sound.group_by(KEYS, maintain_order=True):
        curve = group.sort("keep_ratio", descending=True)
        own = [by_cell[key] for key in curve.select(POOL).iter_rows()]
        if curve.height < FEWEST or curve["keep_ratio"].n_unique() < curve.height:
            continue
        if all(cell["unit"].equals(own[0]["unit"]) for cell in own):
            tokens = own[0]["tokens"].cast(pl.Float64).to_numpy()
            # A cell of more seeds has more tokens of the same unit.
            nll = np.stack([cell["nll"].to_numpy() * tokens / cell["tokens"].to_numpy() for cell in own])
            yield _shape(curve, nll, tokens)


def _shape(curve: pl.DataFrame, nll: np.ndarray, tokens: np.ndarray) -> tuple[object, ...]:
    """curve: cells with falling keep_ratio; nll: [cells, units], minus the twin's; tokens: [units]."""
    kept = curve["keep_ratio"].to_numpy()
    at = int(np.argmin(nll.sum(axis=1)))
    possible = kept[may_be_lowest(nll, tokens)]
    return (
        curve["cell_id"][at],
        kept[at],
        possible.min(),
        possible.max(),
        phases(kept, nll, tokens),
        len(kept),
    )


def may_be_lowest(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[cells], which cells the true minimum of a curve can be:
    all that are not shown to be worse than the lowest one.

    Each of the others is compared with it on the same units, one-sided, at 5 % divided by their number: the
    true minimum is among them in at least 95 of 100 curves (subset selection: Gupta 1965; Hsu 1996, Multiple
    Comparisons, section 4).
    """
    lowest = int(np.argmin(nll.sum(axis=1)))
    mean, error = weighted_mean(nll - nll[lowest], np.broadcast_to(tokens, nll.shape))
    quantile = t_quantile(1 - ALPHA / max(1, len(nll) - 1), nll.shape[1])
    return mean - quantile * error <= 0


def phases(kept: np.ndarray, nll: np.ndarray, tokens: np.ndarray) -> str:
    """Words for the run of a curve: kept [cells] with falling keep_ratio, nll [cells, units] minus the
    twin's, tokens [units].

    A step to the next cell rises or falls where the interval of the quotient of their PPLs excludes 1; the
    intervals of a curve's steps hold together (95 %, Bonferroni). Steps of one kind that follow each other
    are one phase.
    """
    with_twin = np.vstack([np.zeros_like(tokens), nll])
    mean, error = weighted_mean(np.diff(with_twin, axis=0), np.broadcast_to(tokens, nll.shape))
    half = t_quantile(1 - ALPHA / (2 * len(nll)), nll.shape[1]) * error
    kinds = [_kind(low, high) for low, high in zip(mean - half, mean + half, strict=True)]

    stops = [1.0, *kept]
    words = []
    start = 0
    for i, kind in enumerate(kinds):
        if i + 1 < len(kinds) and kinds[i + 1] == kind:
            continue
        factor = float(np.exp(mean[start : i + 1].sum()))
        change = "" if kind == NO_CHANGE else f" ×{labels.figure(factor)}"
        words.append(f"{stops[start]:g} → {stops[i + 1]:g} {kind}{change}")
        start = i + 1
    return "; ".join(words)


def _kind(low: float, high: float) -> str:
    """What the interval of a step's mean difference in NLL shows."""
    if low > 0:
        return "rises"
    return "falls" if high < 0 else NO_CHANGE
