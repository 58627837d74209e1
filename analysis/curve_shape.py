"""The shape of a curve over keep_ratio: where its minimum lies, with an interval, and where it rises, falls or shows neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from analysis import labels
from analysis.load import VERSION_COLUMNS
from analysis.pairs import POOL
from analysis.uncertainty import LEVEL, SEED, resampled_ratios, units
from analysis.verdicts import valid

CURVE = [
    "model", "dataset", *VERSION_COLUMNS, "device", "dtype", "window", "stride", "prune_after",
    "policy", "skip_layers", "protect_sink", "protect_recent", "schedule", "position_mode",
]  # fmt: skip
"""The settings of a curve: all but keep_ratio."""

Curve = tuple[pl.DataFrame, np.ndarray, np.ndarray]
"""Cells with falling keep_ratio, and their NLL minus the twin's and tokens, [cells, units] each."""

RESAMPLES = 2_000
CURVES_AT_ONCE = 50
FEWEST = 3
SCHEMA = {
    "cell_id": pl.String, "minimum_at": pl.Float64, "minimum_low": pl.Float64, "minimum_high": pl.Float64, "phases": pl.String,
    "cells": pl.Int64,
}  # fmt: skip


def shapes(measured: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """One row per curve of at least three valid cells that scored the same texts (documents, or at least two windows).

    ``measured`` comes from ``pairs.with_dense``, ``cells`` from ``tables.summary``. Adds to the settings of the curve and the
    PPL, ratio and interval of its lowest cell: ``minimum_at`` (its keep_ratio), ``minimum_low`` and ``minimum_high`` (where the
    minimum lies in 95 % of the resamples), ``phases`` in words, from keep_ratio 1 (the dense twin) downwards.
    """
    sound = cells.filter(valid(), pl.col("ratio_low").is_not_null())
    sums = units(measured, POOL).join(sound.select(*POOL), on=POOL, how="semi", nulls_equal=True)
    by_cell = dict(sums.group_by(POOL))
    curves: dict[int, list[Curve]] = {}
    for _, group in sound.group_by(CURVE, maintain_order=True):
        curve = group.sort("keep_ratio", descending=True)
        own = [by_cell[key] for key in curve.select(POOL).iter_rows()]
        if curve.height < FEWEST or curve["keep_ratio"].n_unique() < curve.height:
            continue
        if all(cell["unit"].equals(own[0]["unit"]) for cell in own):
            nll, tokens = (np.stack([cell[name].to_numpy() for cell in own]) for name in ("nll", "tokens"))
            curves.setdefault(own[0].height, []).append((curve, nll, tokens))
    found = [shape for same_units in curves.values() for shape in _shapes(same_units)]
    own_columns = [name for name in SCHEMA if name != "cell_id"]
    table = pl.DataFrame(found, schema=SCHEMA, orient="row")
    kept = [*CURVE, "cell_id", "ppl", "ratio", "ratio_low", "ratio_high", "budget", "n_units"]
    return sound.select(kept).join(table, on="cell_id", how="inner", maintain_order="left").select(*kept, *own_columns)


def _shapes(curves: Sequence[Curve]) -> Iterator[tuple[object, ...]]:
    """The shape of each of some curves over the same number of units, which are drawn together: it is the draws that cost."""
    for batch in (curves[i : i + CURVES_AT_ONCE] for i in range(0, len(curves), CURVES_AT_ONCE)):
        differences, tokens = (np.concatenate([curve[i] for curve in batch]) for i in (1, 2))
        ratios = resampled_ratios(differences, tokens, RESAMPLES, SEED)
        ends = np.cumsum([curve.height for curve, _, _ in batch])
        for (curve, _, _), own in zip(batch, np.split(ratios, ends[:-1]), strict=True):
            yield _shape(curve, own)


def _shape(curve: pl.DataFrame, ratios: np.ndarray) -> tuple[object, ...]:
    """curve: cells with falling keep_ratio; ratios: [cells, resamples] of their PPL to the dense twin's."""
    kept, points = curve["keep_ratio"].to_numpy(), curve["ratio"].to_numpy()
    at = int(np.argmin(points))
    low, high = np.quantile(kept[np.argmin(ratios, axis=0)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return curve["cell_id"][at], kept[at], min(low, kept[at]), max(high, kept[at]), phases(kept, points, ratios), len(kept)


def phases(kept: np.ndarray, points: np.ndarray, ratios: np.ndarray) -> str:
    """Words for the run of a curve: kept and points [cells] with falling keep_ratio, ratios [cells, resamples].

    A step to the next cell rises or falls where the 95 % interval of the quotient of their PPLs excludes 1. Steps of one kind
    that follow each other are one phase.
    """
    stops, middle = [1.0, *kept], [1.0, *points]
    logs = np.log(np.vstack([np.ones(ratios.shape[1]), ratios]))
    low, high = np.quantile(np.diff(logs, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    kinds = ["rises" if a > 0 else "falls" if b < 0 else "no change shown" for a, b in zip(low, high, strict=True)]
    words, start = [], 0
    for i, kind in enumerate(kinds):
        if i + 1 < len(kinds) and kinds[i + 1] == kind:
            continue
        factor = middle[i + 1] / middle[start]
        change = "" if kind == "no change shown" else f" ×{labels.figure(float(factor))}"
        words.append(f"{stops[start]:g} → {stops[i + 1]:g} {kind}{change}")
        start = i + 1
    return "; ".join(words)
