"""Vega-Lite specifications of the report's charts, drawn from the summary tables (one point per pooled cell).

Axes, text and series colours are CSS variables of the page, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from analysis import labels
from analysis.speed import COMPARED, short

PALETTE = ["knorm", "knorm_high", "random", "recent", "streaming", "h2o", "snapkv", "tova"]
"""Policies with a colour of their own (``--c-NAME`` in style.css), in the order of the legend."""

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [4, 1], [1, 4]]
PANEL = [
    "model", "dataset", "prune_after", "model_revision", "dataset_fingerprint", "protocol_version", "device", "dtype",
    "window", "stride", "prompt_tokens",
]  # fmt: skip
"""Settings of which each combination gets a panel of its own; those that a frame lacks are ignored."""

HOLLOW = ("NEVER_PRUNED", "BARELY_PRUNED")
LOG_SPAN = 5
"""Where the largest value is more than this many times the smallest, the axis is logarithmic and says so."""

TOOLTIPS = {
    "policy": "policy", "kept": "keep_ratio", "after": "prune_after", "variant": "settings", "value": "value",
    "ratio": "ratio to dense", "bounds": "95 % interval", "held": "realised budget", "n": "n", "verdict": "verdict",
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One panel: the id of its container is ``chart-`` and ``name``; ``spec`` is JSON text, not yet escaped for HTML."""

    name: str
    description: str
    spec: str


@dataclass(frozen=True)
class Axis:
    """How a field is drawn: its key, its title, the format of its ticks, and whether it may turn logarithmic."""

    field: str
    title: str
    form: str = "~g"
    elastic: bool = False


KEPT = Axis("x", "keep_ratio", ".2~f")
HELD = Axis("x", "realised KV budget", ".0%")


def u_curves(cells: pl.DataFrame, *, realised: bool) -> list[Chart]:
    """PPL with interval against keep_ratio, or against the realised budget; one panel per model, dataset and threshold.

    ``cells`` comes from ``tables.summary``. Intervals are the dense PPL times the ratio's interval.
    """
    x_field, x_axis, name = ("budget", HELD, "budget") if realised else ("keep_ratio", KEPT, "ucurve")
    dense = pl.col("dense_ppl")
    usable = cells.filter(pl.col("policy") != "dense", pl.col("ppl").is_not_null(), pl.col(x_field).is_not_null()).with_columns(
        x=x_field, y="ppl", low=dense * pl.col("ratio_low"), high=dense * pl.col("ratio_high"), reference=dense, n="n_windows"
    )
    y_axis = Axis("y", "perplexity", elastic=True)
    return _panels(usable, name, x_axis, y_axis, "perplexity", lines=True)


def trade_off(cells: pl.DataFrame) -> list[Chart]:
    """PPL ratio with interval against realised budget, every threshold in one panel per model and dataset."""
    usable = cells.filter(pl.col("policy") != "dense", pl.col("ratio").is_not_null(), pl.col("budget").is_not_null())
    usable = usable.with_columns(
        x="budget", y="ratio", low="ratio_low", high="ratio_high", reference=pl.lit(1.0), n="n_paired", after="prune_after"
    )
    y_axis = Axis("y", "PPL ratio to dense", elastic=True)
    return _panels(usable.drop("prune_after"), "tradeoff", HELD, y_axis, "PPL ratio", lines=False)


def speed_curves(speeds: pl.DataFrame, measure: str) -> list[Chart]:
    """Ratio of a time to the dense twin's with interval against keep_ratio; ``measure`` is one of ``speed.COMPARED``."""
    if measure not in COMPARED:
        raise ValueError(f"no ratio of {measure!r}; there are {COMPARED}")
    name = short(measure)
    usable = speeds.filter(pl.col(f"{name}_ratio").is_not_null()).with_columns(
        x="keep_ratio", y=f"{name}_ratio", low=f"{name}_low", high=f"{name}_high", reference=pl.lit(1.0),
        n=f"{name}_rounds", ratio=f"{name}_ratio", ratio_low=f"{name}_low", ratio_high=f"{name}_high", verdict=f"{name}_words",
    )  # fmt: skip
    return _panels(usable, name, KEPT, Axis("y", f"{name.upper()} ratio to dense", elastic=True), f"{name.upper()} ratio", lines=True)


def _panels(cells: pl.DataFrame, name: str, x: Axis, y: Axis, what: str, *, lines: bool) -> list[Chart]:
    keys = [key for key in PANEL if key in cells.columns]
    varying = [key for key in keys[2:] if cells[key].n_unique() > 1 or key == "prune_after"]
    charts = []
    for number, (values, group) in enumerate(cells.group_by(keys, maintain_order=True), start=1):
        named = dict(zip(keys, values, strict=True))
        title = [f"{named['model']} · {named['dataset']}", " · ".join(f"{key} {labels.text(named[key])[:16]}" for key in varying)]
        rows = [_point(row) for row in group.iter_rows(named=True)]
        description = f"{what} against {x.title}, {', '.join(part for part in title if part)}: {len(rows)} cells"
        spec = _draw(rows, x, y, lines=lines).properties(title=_title(title), description=description, width="container", height=270)
        charts.append(Chart(f"{name}-{number}", description, to_json(_finish(spec))))
    return charts


def _point(row: labels.Row) -> dict[str, Any]:
    """What a mark needs of a cell: places as numbers, everything a tooltip says as text."""
    after = row.get("prune_after", row.get("after"))
    return {
        "x": row["x"], "y": row["y"], "low": row["low"], "high": row["high"], "reference": row["reference"],
        "policy": row["policy"], "variant": labels.variant(row), "after": labels.text(after),
        "hollow": row["verdict"] in HOLLOW, "kept": labels.ratio_setting(row["keep_ratio"]), "value": labels.figure(row["y"]),
        "ratio": labels.figure(row["ratio"]), "bounds": labels.interval(row["ratio_low"], row["ratio_high"]),
        "held": labels.percent(row.get("budget")), "n": labels.count(row["n"]), "verdict": row["verdict"],
    }  # fmt: skip


def _draw(rows: list[dict[str, Any]], x: Axis, y: Axis, *, lines: bool) -> alt.LayerChart:
    reference = next((row["reference"] for row in rows if row["reference"] is not None), None)
    x_place, y_place = _x(rows, x), _y(rows, y)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x_place, y=y_place, color=_colour(rows))
    series = "variant" if lines else "after"
    shape = _by_series(rows, series)
    points = base.encode(shape=shape, tooltip=[alt.Tooltip(f"{key}:N", title=title) for key, title in TOOLTIPS.items()])
    layers: list[Any] = [] if reference is None else [_reference_rule(reference, y_place, "dense" if lines else "ratio 1")]
    if lines:
        anchored = rows + _anchors(rows, x, reference)
        layers.append(
            alt.Chart(alt.Data(values=anchored)).mark_line(strokeWidth=1.5, opacity=0.75)
            .encode(x=x_place, y=y_place, color=_colour(rows), strokeDash=_dash(rows), detail="variant:N", order="x:Q")
        )  # fmt: skip
    layers.append(base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.2, opacity=0.8).encode(y=y_place, y2="high:Q").encode(alt.Y("low:Q", scale=y_place["scale"], axis=y_place["axis"])))
    layers.append(points.transform_filter("!datum.hollow").mark_point(filled=True, size=55, opacity=1))
    layers.append(points.transform_filter("datum.hollow").mark_point(filled=False, size=65, strokeWidth=1.8, fill="var(--bg)", opacity=1))
    if not lines:
        layers.append(_ideal(x_place, y_place))
    return alt.layer(*layers)
