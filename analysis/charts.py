"""Which charts the report has, and what their points are: one per pooled cell of the summary tables."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from analysis import labels
from analysis.marks import Axis, Point, specification
from analysis.speed import COMPARED, WRONG, short

HOLLOW = ("NEVER_PRUNED", "BARELY_PRUNED", "BEYOND_CONTEXT")
"""Verdicts whose points are drawn hollow: their figures say nothing, or little, about pruning alone."""

PANEL = [
    "model", "dataset", "prune_after", "model_revision", "dataset_fingerprint", "protocol_version", "device", "dtype",
    "window", "stride", "prompt_tokens", "batch_size", "timing_protocol", "run_id",
]  # fmt: skip
"""Settings of which each combination gets a panel of its own; those that a frame lacks are ignored."""


@dataclass(frozen=True)
class Chart:
    """One panel: its container has the id ``chart-NAME``; ``spec`` is JSON text, not yet escaped for HTML."""

    name: str
    description: str
    spec: str


KEPT = Axis("keep_ratio", ".2~f", reach=(1.0,))
HELD = Axis("realised KV budget", ".1~%")


def u_curves(cells: pl.DataFrame, *, realised: bool) -> list[Chart]:
    """PPL with interval against keep_ratio, or against the realised budget; one panel per model, dataset and threshold.

    ``cells`` comes from ``tables.summary``. Intervals are the dense PPL times the ratio's interval.
    """
    x_field, x_axis, name = ("budget", HELD, "budget") if realised else ("keep_ratio", KEPT, "ucurve")
    dense = pl.col("dense_ppl")
    usable = cells.filter(pl.col("policy") != "dense", pl.col("ppl").is_not_null(), pl.col(x_field).is_not_null()).with_columns(
        x=x_field, y="ppl", low=dense * pl.col("ratio_low"), high=dense * pl.col("ratio_high"), reference=dense, n="n_windows"
    )
    y_axis = Axis("perplexity", log_span=5)
    return _panels(usable, name, x_axis, y_axis, "perplexity", lines=True)


def trade_off(cells: pl.DataFrame) -> list[Chart]:
    """PPL ratio with interval against realised budget, every threshold in one panel per model and dataset."""
    usable = cells.filter(pl.col("policy") != "dense", pl.col("ratio").is_not_null(), pl.col("budget").is_not_null())
    usable = usable.with_columns(
        x="budget", y="ratio", low="ratio_low", high="ratio_high", reference=pl.lit(1.0), n="n_paired", after="prune_after"
    )
    y_axis = Axis("PPL ratio to dense", log_span=2)
    return _panels(
        usable.drop("prune_after"), "tradeoff", Axis(HELD.title, HELD.form, reach=(0.0, 1.0)), y_axis, "PPL ratio", lines=False
    )


def speed_curves(speeds: pl.DataFrame, measure: str) -> list[Chart]:
    """Ratio of a time to the dense twin's with interval against keep_ratio; ``measure`` is one of ``speed.COMPARED``."""
    if measure not in COMPARED:
        raise ValueError(f"no ratio of {measure!r}; there are {COMPARED}")
    name = short(measure)
    usable = speeds.filter(pl.col(f"{name}_ratio").is_not_null()).with_columns(
        device="device_name", x="keep_ratio", y=f"{name}_ratio", low=f"{name}_low", high=f"{name}_high", reference=pl.lit(1.0),
        n=f"{name}_rounds", ratio=f"{name}_ratio", ratio_low=f"{name}_low", ratio_high=f"{name}_high", verdict=f"{name}_words",
    )  # fmt: skip
    return _panels(usable, name, KEPT, Axis(f"{name.upper()} ratio to dense", log_span=5), f"{name.upper()} ratio", lines=True)


def _varies(cells: pl.DataFrame, key: str) -> bool:
    """Whether a title must name a setting: a revision or fingerprint only where one model or dataset has several."""
    owner = {"model_revision": "model", "dataset_fingerprint": "dataset"}.get(key)
    return cells[key].n_unique() > 1 if owner is None else cells.select(owner, key).n_unique() > cells[owner].n_unique()


def _panels(cells: pl.DataFrame, name: str, x: Axis, y: Axis, what: str, *, lines: bool) -> list[Chart]:
    keys = [key for key in PANEL if key in cells.columns]
    varying = [key for key in keys[2:] if key == "prune_after" or _varies(cells, key)]
    charts = []
    for number, (values, group) in enumerate(cells.group_by(keys, maintain_order=True), start=1):
        named = dict(zip(keys, values, strict=True))
        title = [f"{named['model']} · {named['dataset']}", " · ".join(f"{key} {labels.text(named[key])[:16]}" for key in varying)]
        if named.get("timing_protocol") == "report_2025":
            title[0] += f" · {WRONG.upper()}"
        rows = [_point(row) for row in group.iter_rows(named=True)]
        description = f"{what} against {x.title}, {', '.join(part for part in title if part)}: {len(rows)} cells, {_span(group)}"
        spec = specification(rows, x, y, title, description, lines=lines)
        charts.append(Chart(f"{name}-{number}", description, spec))
    return charts


def _span(group: pl.DataFrame) -> str:
    values = group["y"].sort().to_list()
    return f"from {labels.figure(values[0])} to {labels.figure(values[-1])}"


def _point(row: labels.Row) -> Point:
    """What a mark needs of a cell: places as numbers, everything a tooltip says as text."""
    after = row.get("prune_after", row.get("after"))
    return {
        "x": row["x"], "y": row["y"], "low": row["low"], "high": row["high"], "reference": row["reference"],
        "order": row["keep_ratio"],
        "policy": row["policy"], "variant": labels.variant(row), "after": labels.text(after),
        "hollow": row["verdict"] in HOLLOW or row.get("timing", "STABLE") != "STABLE",
        "kept": labels.ratio_setting(row["keep_ratio"]), "value": labels.figure(row["y"]),
        "ratio": labels.figure(row["ratio"]), "bounds": labels.interval(row["ratio_low"], row["ratio_high"]),
        "held": labels.percent(row.get("budget")), "n": labels.count(row["n"]), "verdict": row["verdict"],
    }  # fmt: skip
