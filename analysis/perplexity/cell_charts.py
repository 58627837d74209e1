"""Charts of perplexity: U-curves, trade-off, heatmap, policies side by side, bytes. One set of points per
group serves all."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import polars as pl

from analysis import labels
from analysis.draw.marks import DASHES, Axis, equal, gradient, in_order, interval_entry, mark, names_of
from analysis.draw.panel import COMPARED, HELD, KEPT, Panel, Series
from analysis.draw.points import Group, spread, with_words
from analysis.draw.policy_looks import PolicyLooks
from analysis.draw.specification import HEIGHT, Chart, Points, chooser
from analysis.verdicts import valid

WHERE_PRUNED = "PPL ratio to dense where pruned"
SIDE_BY_SIDE = 4
"""Values of keep_ratio at which policies are set side by side."""

ABOUT = [
    ("policy", "policy"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("prune_after", "after"),
    ("settings", "variant"),
    ("PPL", "ppl", ".4~r"),
    ("PPL ratio to dense", "ratio", ".4~r"),
    interval_entry("95 % interval", "ratio_low", "ratio_high"),
    ("PPL ratio where pruned", "pruned_ratio", ".4~r"),
    interval_entry("95 % interval of it", "pruned_low", "pruned_high"),
    ("realised budget", "budget", ".1%"),
    ("recent retained", "recent_retained", ".1%"),
    ("windows", "windows", ","),
    ("verdict", "verdict"),
]
"""What a point tells: value, interval, n and the cell's settings."""

OF_BYTES = [
    ("settings", "settings"),
    ("keep_ratio", "keep_ratio", ".3~f"),
    ("mean, MiB", "kv_mean", ".4~r"),
    ("peak, MiB", "kv_peak", ".4~r"),
    ("realised budget", "budget", ".1%"),
]


def u_curves(
    group: Group, points: Points, looks: PolicyLooks, x: Axis = KEPT, name: str = "ucurve"
) -> list[Chart]:
    """PPL with interval band against keep_ratio or the realised
    budget, one panel per threshold; the minimum is ringed."""
    y = Axis("ppl", "perplexity", log_span=5, also=("ppl_low", "ppl_high", "dense"))
    charts = []
    for number, after in enumerate(names_of(points.frame, "after"), start=1):
        own = points.frame.filter(pl.col("after") == after)
        cells = own.filter(~pl.col("end"))
        seen = own if x.reach else cells
        panel = Panel(seen, x, y, looks.colour(cells), Series.of(cells, "variant"))

        line = _joined(f"prune_after {after}", group.detail)
        told = f"{cells.height} cells, {_span(cells, 'ppl')}"
        words = f"perplexity against {x.title}, {group.title}, {line}: {told}"
        drawn, where = _curves(panel, cells), {"after": after}
        charts.append(drawn.chart(name, group, points, words, line, part=number, where=where))
    return charts


def _curves(panel: Panel, cells: pl.DataFrame) -> Panel:
    """Lines that end in the dense twin where its keep_ratio lies on the x axis."""
    by_ratio = panel.x == KEPT
    panel = panel.dense(cells["dense"])
    panel = panel if by_ratio else panel.among(COMPARED)

    if by_ratio and cells["ratio_low"].drop_nulls().len():
        panel = panel.band("ppl_low", "ppl_high", opacity=0.14)
    panel = panel.line(order="keep_ratio:Q")

    if by_ratio and not cells["minimum_from"].is_null().all():
        panel = _with_minimum(panel)
    return panel.among(COMPARED).dots(ABOUT).holes(cells)


def _with_minimum(panel: Panel) -> Panel:
    """A ring around each curve's lowest point, and a bar over the keep_ratios at which the minimum may
    lie."""
    panel = panel.bars("minimum_from", "minimum_to", across=True, width=5, opacity=0.3)
    lowest = mark().transform_filter("isValid(datum.minimum_from)")
    return panel.drawn(lowest.mark_point(filled=False, size=220, strokeWidth=1.5))


def retained(group: Group, points: Points, looks: PolicyLooks) -> list[Chart]:
    """Share of the last 8 positions still held after a prune against keep_ratio, one panel per threshold."""
    x = Axis("keep_ratio", "keep_ratio", ".2~f")
    y = Axis("recent_retained", "recent positions still held", ".0%", reach=(0.0, 1.0))
    known = points.frame.filter(~pl.col("end"), pl.col("recent_retained").is_not_null())
    charts = []
    for number, after in enumerate(names_of(points.frame, "after"), start=1):
        own = known.filter(pl.col("after") == after)
        if own.is_empty():
            continue

        panel = Panel(own, x, y, looks.colour(own), Series.of(own, "variant"))
        panel = panel.among("!datum.end && isValid(datum.recent_retained)").line().dots(ABOUT)

        line = _joined(f"prune_after {after}", group.detail)
        span, where = _span(own, "recent_retained"), {"after": after}
        words = f"recent positions still held against keep_ratio, {group.title}, {line}: {span}"
        height = HEIGHT - 50
        charts.append(
            panel.chart("retained", group, points, words, line, part=number, where=where, height=height)
        )
    return charts


def trade_off(group: Group, points: Points, looks: PolicyLooks, best: pl.DataFrame) -> list[Chart]:
    """PPL ratio where pruned, with interval, against realised
    budget, every threshold in one panel; ``best``: the front."""
    known = (pl.col("ratio").is_not_null(), pl.col("budget").is_not_null())
    cells = points.frame.filter(~pl.col("end"), *known)
    x = replace(HELD, reach=(0.0, 1.0))
    y = Axis("pruned_ratio", WHERE_PRUNED, log_span=2, reach=(1.0,), also=("pruned_low", "pruned_high"))

    thresholds = Series.of(cells, "after", names_of, title="prune_after")
    panel = Panel(cells, x, y, looks.colour(cells), thresholds).rule(1.0, "")
    panel = panel.add(*_ideal(x.x(cells), y.y(cells)), *_front(best, x, y, cells)).among(COMPARED)
    panel = panel.bars("pruned_low", "pruned_high", opacity=0.7).dots(ABOUT).holes(cells)

    place, span = _joined(group.title, group.detail), _span(cells, "pruned_ratio")
    words = f"PPL ratio where pruned against {x.title}, {place}: {cells.height} cells, {span}"
    words += f"; {best.height} of them on the Pareto front"
    return [panel.chart("tradeoff", group, points, words, group.detail, height=HEIGHT + 30)]


def _ideal(x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The corner in which nobody can be."""
    words = "ideal: no cache, no loss"
    data = alt.Chart(alt.Data(values=[{"budget": 0, "pruned_ratio": 1, "label": words}]))
    corner = data.mark_point(shape="triangle-up", filled=True, size=50, fill="var(--fg)")
    label = data.mark_text(align="left", dx=-5, dy=13, fontSize=11, fill="var(--fg)")
    return [corner.encode(x=x, y=y), label.encode(x=x, y=y, text="label:N")]


def _front(best: pl.DataFrame, x: Axis, y: Axis, cells: pl.DataFrame) -> list[alt.Chart]:
    """The Pareto front as steps through its cells' upper bounds."""
    if best.is_empty():
        return []
    data = alt.Chart(alt.Data(values=best.select("budget", "pruned_high").sort("budget").to_dicts()))
    look = {"stroke": "var(--fg)", "strokeWidth": 1, "strokeDash": [4, 2], "opacity": 0.8}
    line = data.mark_line(interpolate="step-after", **look).encode(x=x.x(cells), y=y.y(cells, "pruned_high"))
    ends = data.mark_tick(orient="horizontal", size=12, thickness=2, color="var(--fg)")
    return [line, ends.encode(x=x.x(cells), y=y.y(cells, "pruned_high"))]


def heatmap(group: Group, points: Points) -> list[Chart]:
    """PPL ratio over keep_ratio and prune_after; policy and settings are chosen below it.

    None for a single threshold.
    """
    cells = points.frame.filter(~pl.col("end"), pl.col("ratio").is_not_null())
    sound = cells.filter(valid(), pl.col("after") != labels.NONE)
    thresholds = names_of(cells, "after")
    if len(thresholds) < 2 or cells["keep_ratio"].n_unique() < 2 or sound.is_empty():
        return []

    labels_flat = alt.Axis(labelAngle=0, format=".2~f")
    x = alt.X("keep_ratio:O", sort="descending", title="keep_ratio", axis=labels_flat)
    y = alt.Y("after:O", sort=thresholds, title="prune_after")
    shown = (
        mark().transform_filter(COMPARED).transform_calculate(series="datum.policy + ', ' + datum.variant")
    )
    shown = shown.transform_filter("datum.series === shown")
    panel = _hollow(_squares(Panel(cells, x, y), shown, sound["ratio"].to_list()), shown)

    series = cells.select(pl.format("{}, {}", "policy", "variant").alias("series"))
    place, span = _joined(group.title, group.detail), _span(sound, "ratio")
    words = f"PPL ratio by keep_ratio and prune_after, {place}: {span}"
    choice, height = chooser("shown", in_order(series, "series")), 34 * len(thresholds) + 20
    return [panel.chart("heatmap", group, points, words, group.detail, params=[choice], height=height)]


def _squares(panel: Panel, shown: alt.Chart, ratios: list[float]) -> Panel:
    """Squares coloured by the ratio of a sound cell, and the ratio itself in an ink that can be read on
    them."""
    low, high = min(1.0, *ratios), max(ratios)
    scale = alt.Scale(type="log", scheme="cividis", reverse=True, domain=[low, max(high, 1.01)])
    legend = gradient("PPL ratio to dense", ".3~r")
    sound = shown.transform_filter(equal("verdict", "VALID"))
    tint = alt.Color("ratio:Q", scale=scale, legend=legend)
    panel = panel.drawn(sound.mark_rect(stroke="var(--bg)"), ABOUT, color=tint)

    middle = (low * high) ** 0.5
    ink = alt.condition(f"datum.ratio > {middle:g}", alt.value("white"), alt.value("black"))
    figures = sound.transform_calculate(text="format(datum.ratio, '.3~r')").mark_text(fontSize=10)
    return panel.drawn(figures, text="text:N", fill=ink)


def _hollow(panel: Panel, shown: alt.Chart) -> Panel:
    """A ring for each of the other cells."""
    ring = {"shape": "circle", "size": 60, "fill": None, "stroke": "var(--fg)", "strokeWidth": 1.5}
    return panel.drawn(shown.transform_filter("datum.verdict !== 'VALID'").mark_point(**ring), ABOUT)


def side_by_side(group: Group, points: Points, looks: PolicyLooks) -> list[Chart]:
    """Policies under the same budget: PPL ratio with interval
    by policy at a few keep_ratios, one panel per threshold."""
    cells = points.frame.filter(~pl.col("end"), pl.col("ratio").is_not_null())
    policies = pl.col("policy").n_unique()
    charts = []
    for number, after in enumerate(names_of(cells, "after"), start=1):
        own = cells.filter(pl.col("after") == after)
        usual = own.group_by("variant", maintain_order=True).agg(policies)
        usual = usual.sort("policy", descending=True, maintain_order=True)
        variant = usual["variant"][0]
        own = own.filter(pl.col("variant") == variant)

        several = own.group_by("keep_ratio").agg(policies).filter(pl.col("policy") > 1)
        if several.is_empty():
            continue
        kept = spread(several["keep_ratio"].to_list(), SIDE_BY_SIDE)
        own = own.filter(pl.col("keep_ratio").is_in(kept))
        line = _joined(f"prune_after {after}", variant, group.detail)
        charts.append(_beside(group, number, f"beside_{points.name}_{number}", own, looks, line))
    return charts


def _beside(group: Group, number: int, data: str, own: pl.DataFrame, looks: PolicyLooks, line: str) -> Chart:
    """A row for each keep_ratio, in it a point for each policy."""
    x = Axis("ratio", "PPL ratio to dense", log_span=2, reach=(1.0,), also=("ratio_low", "ratio_high"))
    kept = own["keep_ratio"].unique().sort(descending=True).to_list()
    axis = alt.Axis(format=".2~f", grid=True, tickBand="extent")
    scale = alt.Scale(domain=kept, paddingInner=0.25)
    y = alt.Y("keep_ratio:O", title="keep_ratio", axis=axis, scale=scale)

    policies = names_of(own, "policy")
    frame, offset = _placed(own, policies)
    series = Series.of(frame, "variant")
    shapes = None if series.column == "variant" else series  # of one variant all have one shape
    panel = Panel(frame, x, y, looks.colour(frame), shapes, offset=offset).rule(1.0, "", upright=True)
    panel = panel.bars("ratio_low", "ratio_high", across=True, width=1.5)
    panel = panel.dots(ABOUT, size=50).cores(equal("hollow", True))

    told = f"{frame.height} cells, {_span(frame, 'ratio')}"
    words = f"PPL ratio by policy under the same budget, {group.title}, {line}: {told}"
    height = max(120, len(kept) * (13 * len(policies) + 12))
    return panel.chart("beside", group, Points(data, frame), words, line, part=number, height=height)


def _placed(cells: pl.DataFrame, policies: list[str]) -> tuple[pl.DataFrame, alt.YOffset]:
    """The cells with the ``place`` of their policy in a row, and the channel that moves them there.

    Numbers for the places: Vega-Lite writes a sorted or fixed
    domain of names into an expression, where some break it.
    """
    places = list(range(len(policies)))
    place = pl.col("policy").replace_strict(policies, places, return_dtype=pl.Int32)
    return cells.with_columns(place=place), alt.YOffset("place:O", scale=alt.Scale(domain=places))


def kv_bytes(group: Group) -> list[Chart]:
    """Bytes of keys and values against keep_ratio: mean over steps, and the peak dashed. Policies do not
    differ in it."""
    held = _bytes_held(group.cells)
    if held.is_empty():
        return []

    x = Axis("keep_ratio", "keep_ratio", ".2~f")
    y = Axis("kv_mean", "KV cache in MiB", also=("kv_peak", "dense"), reach=(0.0,))
    peak = mark().mark_line(strokeDash=DASHES[2], strokeWidth=1.2, opacity=0.8, color="var(--muted)")
    peak = peak.encode(x=x.x(held), y=y.y(held, "kv_peak"), detail="settings:N")
    shapes = Series.of(held, "settings", names_of, dashed=False)
    panel = Panel(held, x, y, "var(--c-knorm)", shapes).dense(held["dense"], "dense, mean")
    panel = panel.add(peak).line(opacity=None).dots(OF_BYTES)

    place, span = _joined(group.title, group.detail), _span(held, "kv_mean")
    words = f"KV bytes against keep_ratio, {place}: mean {span} MiB"
    points = Points(f"bytes_{group.number}", held)
    return [panel.chart("bytes", group, points, words, group.detail)]


def _bytes_held(cells: pl.DataFrame) -> pl.DataFrame:
    """Bytes by keep_ratio and what else they depend on: the threshold, and the layers that are left alone."""
    known = with_words(cells.filter(pl.col("policy") != "dense", pl.col("kv_bytes_mean").is_not_null()))
    chosen = known.select("skip_layers", "skip_layers_rule").iter_rows()
    skipped = [labels.skipped(layers, rule) for layers, rule in chosen]
    held = known.with_columns(pl.Series("skipped", skipped, pl.String)).select(
        "keep_ratio",
        "budget",
        kv_mean=pl.col("kv_bytes_mean") / 2**20,
        kv_peak=pl.col("kv_bytes_peak") / 2**20,
        settings=pl.format("prune_after {}, {}", "after", "skipped"),
        dense=pl.col("dense_kv_bytes_mean") / 2**20,
    )
    return held.unique(["settings", "keep_ratio"], keep="first", maintain_order=True)


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _span(frame: pl.DataFrame, name: str) -> str:
    values = frame[name].drop_nulls().sort().to_list()
    return f"from {labels.figure(values[0])} to {labels.figure(values[-1])}" if values else "no figure"
