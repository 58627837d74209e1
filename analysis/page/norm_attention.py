"""How key norm and attention go together in each model: what
every figure of a policy that goes by norms rests on."""

from __future__ import annotations

import math

import polars as pl

from analysis import labels
from analysis.load import Results

BY_NORM = ["knorm", "knorm_high", "knorm_sorted"]
"""Policies whose cells carry the correlations."""

CLEAR = 0.1
"""A rank correlation over some thousand entries that is nearer to 0 says nothing either way."""

MODEL = ["model", "model_revision", "device", "dtype"]
"""What correlations belong to."""


def norm_attention(results: Results, task: str) -> pl.DataFrame:
    """One row per model that has cells of ``BY_NORM`` in a task's table: ``MODEL`` and ``norm_attention``.

    The list has a correlation per layer; it is null where no row has one, as in files of older schemas.
    """
    rows = results.scanned[task].filter(pl.col("policy").is_in(BY_NORM))
    found = rows.group_by(MODEL).agg(pl.col("norm_attention").drop_nulls().first())
    return found.collect(engine="streaming").sort(MODEL, nulls_last=True)


def correlations_in_words(found: pl.DataFrame) -> list[str]:
    """A line per model: the correlation of each layer, and what they mean for ``knorm``."""
    return [_line(row) for row in found.iter_rows(named=True)]


def _line(row: labels.Row) -> str:
    about = f"{labels.text(row['model'])} ({labels.text(row['dtype'])}, {labels.text(row['device'])})"
    values: list[float] | None = row["norm_attention"]
    if not values or not all(map(math.isfinite, values)):
        return f"{about}: not recorded; `kvsweep diagnose` tells it."

    layers = ", ".join(f"{value:+.2f}" for value in values)
    return f"{about}, layers 0 to {len(values) - 1}: {layers}. {meaning(values)}"


def meaning(values: list[float]) -> str:
    """What correlations [layers] say of ``knorm``, in words; a layer counts where its correlation is
    ``CLEAR`` of 0."""
    together = sum(value >= CLEAR for value in values)
    apart = sum(-value >= CLEAR for value in values)
    neither = len(values) - together - apart
    many = (
        f"Of {len(values)} layers key norm and attention go together in {together}, "
        f"and in {apart} low norms get more attention"
    )
    rest = f"; in {neither} neither is clear (below {CLEAR:g} either way)" if neither else ""
    if not together:
        return f"{many}, as knorm presupposes{rest}."

    worst = max(range(len(values)), key=lambda layer: values[layer])
    turned = (
        f"Where they do, most in layer {worst}, knorm drops first what is attended to most, "
        "and knorm_high keeps it"
    )
    whole = " In this model knorm is turned round by construction." if together == len(values) else ""
    return f"{many}, as knorm presupposes{rest}. {turned}.{whole}"
