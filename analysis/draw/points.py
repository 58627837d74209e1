"""Summary tables -> the points of charts: pooled cells grouped by what may stand in one picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from analysis import labels
from analysis.keys import VARIANT
from analysis.verdicts import HOLLOW


@dataclass(frozen=True)
class Group:
    """Cells of one model, dataset, device and so on.

    ``title`` names what tells it from the page's other groups.
    """

    number: int
    title: str
    detail: str
    about: dict[str, str] = field(default_factory=dict)
    cells: pl.DataFrame = field(default_factory=pl.DataFrame)


def groups(cells: pl.DataFrame, keys: list[str]) -> Iterator[Group]:
    """The cells by ``keys`` (those that the frame has), in their order, numbered from 1. The first two are
    model and dataset."""
    keys = [key for key in keys if key in cells.columns]
    varying = [key for key in keys[2:] if varies(cells, key)]
    for number, (values, group) in enumerate(cells.group_by(keys, maintain_order=True), start=1):
        named = dict(zip(keys, values, strict=True))
        about = {key: labels.text(named[key]) for key in keys[:2]}
        detail = " · ".join(f"{key} {labels.text(named[key])[:16]}" for key in varying)
        yield Group(number, " · ".join(about.values()), detail, about, group)


def varies(cells: pl.DataFrame, key: str) -> bool:
    """Whether a title must name a setting: a revision or
    fingerprint only where one model or dataset has several."""
    owner = {"model_revision": "model", "dataset_fingerprint": "dataset"}.get(key)
    return (
        cells[key].n_unique() > 1
        if owner is None
        else cells.select(owner, key).n_unique() > cells[owner].n_unique()
    )


def with_words(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells with ``variant`` (settings beside policy, ratio and threshold, in words) and ``after``
    (prune_after as text)."""
    kinds = cells.select(VARIANT).unique(maintain_order=True)
    kinds = kinds.with_columns(
        pl.Series("variant", [labels.variant(row) for row in kinds.iter_rows(named=True)], pl.String)
    )
    after = pl.col("prune_after").cast(pl.String).fill_null(labels.NONE)
    return cells.join(kinds, on=VARIANT, how="left", nulls_equal=True, maintain_order="left").with_columns(
        after=after
    )


def cell_points(cells: pl.DataFrame, shapes: pl.DataFrame) -> pl.DataFrame:
    """The compressed cells of a group as points, and an ``end`` per line: the dense twin at keep_ratio 1.

    ``shapes`` comes from ``curve_shape.shapes``; its minimum is marked on the cell that has it.
    """
    dense = pl.col("dense_ppl")
    known = cells.filter(pl.col("policy") != "dense", pl.col("ppl").is_not_null())
    points = with_words(known).select(
        "cell_id",
        "policy",
        "variant",
        "after",
        "keep_ratio",
        "budget",
        "ppl",
        "ratio",
        "ratio_low",
        "ratio_high",
        "verdict",
        "recent_retained",
        "kl",
        "kl_low",
        "kl_high",
        "agreement",
        dense=dense,
        ppl_low=dense * pl.col("ratio_low"),
        ppl_high=dense * pl.col("ratio_high"),
        pruned_ratio=pl.coalesce("pruned_ratio", "ratio"),
        pruned_low=pl.coalesce("pruned_low", "ratio_low"),
        pruned_high=pl.coalesce("pruned_high", "ratio_high"),
        hollow=pl.col("verdict").is_in(HOLLOW),
        windows="n_windows",
        end=pl.lit(False),
    )
    lowest = shapes.select("cell_id", minimum_from="minimum_low", minimum_to="minimum_high")
    points = points.join(lowest, on="cell_id", how="left", maintain_order="left").drop("cell_id")
    ends = points.filter(pl.col("dense").is_not_null()).unique(
        ["policy", "variant", "after"], keep="first", maintain_order=True
    )
    ends = ends.select(
        "policy",
        "variant",
        "after",
        "dense",
        *[pl.col("dense").alias(n) for n in ("ppl", "ppl_low", "ppl_high")],
    )
    ends = ends.with_columns(
        keep_ratio=pl.lit(1.0), budget=pl.lit(1.0), hollow=pl.lit(False), end=pl.lit(True)
    )
    return pl.concat([points, ends], how="diagonal")


def spread(values: list[float], count: int) -> list[float]:
    """At most ``count`` of the values, the ends among them, evenly spread over their order."""
    ordered = sorted(set(values), reverse=True)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]
