"""How key norm and attention go together in each model: what every figure of a policy that goes by norms rests on."""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.load import Results

BY_NORM = ["knorm", "knorm_high", "knorm_sorted"]
"""Policies whose cells carry the correlations."""

MODEL = ["model", "model_revision", "device", "dtype"]
"""What correlations belong to."""


def norm_attention(results: Results, task: str) -> pl.DataFrame:
    """One row per model that has cells of ``BY_NORM`` in a task's table: ``MODEL`` and ``norm_attention``.

    The list has a correlation per layer; it is null where no row has one, as in files of older schemas.
    """
    rows = results.scanned[task].filter(pl.col("policy").is_in(BY_NORM))
    found = rows.group_by(MODEL).agg(pl.col("norm_attention").drop_nulls().first())
    return found.collect(engine="streaming").sort(MODEL, nulls_last=True)


def in_words(found: pl.DataFrame) -> list[str]:
    """A line per model: the correlation of each layer, and what they mean for ``knorm``."""
    return [_line(row) for row in found.iter_rows(named=True)]


def _line(row: labels.Row) -> str:
    about = f"{labels.text(row['model'])} ({labels.text(row['dtype'])}, {labels.text(row['device'])})"
    values: list[float] | None = row["norm_attention"]
    if not values:
        return f"{about}: not recorded; `kvsweep diagnose` tells it."

    layers = ", ".join(f"{value:+.2f}" for value in values)
    return f"{about}, layers 0 to {len(values) - 1}: {layers}. {_meaning(values)}"


def _meaning(values: list[float]) -> str:
    together = sum(value > 0 for value in values)
    if not together:
        return "In no layer do they go together: low norms get more attention, as knorm presupposes."
    worst = max(range(len(values)), key=lambda layer: values[layer])
    where = f"In {together} of {len(values)} layers they go together, most in layer {worst}"
    turned = "knorm drops there first what is attended to most, and knorm_high keeps it"
    if together == len(values):
        return f"{where}: {turned}. In this model knorm is turned round by construction."
    return f"{where}: {turned}. In the others low norms get more attention, as knorm presupposes."
