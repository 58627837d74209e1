"""Charts of perplexity: U-curves, trade-off, heatmap, policies side by side, bytes. One set of points per group serves all."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis import labels
from analysis.marks import (
    DASHES,
    HEIGHT,
    Axis,
    Chart,
    Points,
    bounds,
    chooser,
    dash,
    equal,
    holes,
    in_order,
    mark,
    names_of,
    rule,
    shape,
    specification,
    tooltips,
)
from analysis.points import Group, spread, with_words
from analysis.policy_looks import PolicyLooks, look
from analysis.verdicts import valid

KEPT = Axis("keep_ratio", "keep_ratio", ".2~f", reach=(1.0,))
WHERE_PRUNED = "PPL ratio to dense where pruned"
HELD = Axis("budget", "realised KV budget", ".1~%")
SIDE_BY_SIDE = 4
"""Values of keep_ratio at which policies are set side by side."""

ABOUT = [
    ("policy", "policy"), ("keep_ratio", "keep_ratio", ".3~f"), ("prune_after", "after"), ("settings", "variant"),
    ("PPL", "ppl", ".4~r"), ("PPL ratio to dense", "ratio", ".4~r"), bounds("95 % interval", "ratio_low", "ratio_high"),
    ("PPL ratio where pruned", "pruned_ratio", ".4~r"), bounds("95 % interval of it", "pruned_low", "pruned_high"),
    ("realised budget", "budget", ".1%"), ("recent retained", "recent_retained", ".1%"), ("windows", "windows", ","),
    ("verdict", "verdict"),
]  # fmt: skip
"""What a point tells: value, interval, n and the cell's settings."""


def u_curves(group: Group, points: Points, looks: PolicyLooks, x: Axis = KEPT, name: str = "ucurve") -> list[Chart]:
    """PPL with interval band against keep_ratio or the realised budget, one panel per threshold; the minimum is ringed."""
    charts = []
    for number, after in enumerate(names_of(points.frame, "after"), start=1):
        own = points.frame.filter(pl.col("after") == after)
        cells = own.filter(~pl.col("end"))
        seen = own if x.reach else cells
        y = Axis("ppl", "perplexity", log_span=5, also=("ppl_low", "ppl_high", "dense"))
        title = [group.title, _joined(f"prune_after {after}", group.detail)]
        description = f"perplexity against {x.title}, {', '.join(title)}: {cells.height} cells, {_span(cells, 'ppl')}"
        layers = _curve_layers(seen, cells, looks, x, y)
        spec = specification(layers, points, title, description, where={"after": after})
        charts.append(Chart(f"{name}-{group.number}-{number}", description, spec, points, group.about))
    return charts


def _curve_layers(seen: pl.DataFrame, cells: pl.DataFrame, looks: PolicyLooks, x: Axis, y: Axis) -> list[alt.Chart]:
    kind = look(cells, "variant")
    variants, colour = in_order(cells, kind), looks.colour(cells)
    place = {"x": x.x(seen), "y": y.y(seen)}
    lines = mark() if x.reach else mark().transform_filter(equal("end", False))
    band = lines.transform_filter("isValid(datum.ppl_low)").mark_area(opacity=0.14)
    band = band.encode(x=x.x(seen), y=y.y(seen, "ppl_low"), y2=alt.Y2("ppl_high"), color=colour, detail="variant:N")
    # A field of its own for the dash: Vega-Lite would hide the shapes' legend along with that of the dashes.
    line = lines.transform_calculate(dash=f"datum.{kind}").mark_line(strokeWidth=1.5, opacity=0.8)
    line = line.encode(**place, color=colour, detail="variant:N", order="keep_ratio:Q", strokeDash=dash(variants, "dash"))
    dots = mark().transform_filter(equal("end", False)).mark_point(filled=True, size=60, opacity=1)
    dots = tooltips(dots.encode(**place, color=colour, shape=shape(variants, kind, "settings")), ABOUT)
    known = cells["dense"].drop_nulls()
    reference = rule(known[0], f"dense {known[0]:.4g}", y, seen) if len(known) else []
    intervals = [band] if x.reach and cells["ratio_low"].drop_nulls().len() else []
    lowest = _minimum(seen, cells, x, y, colour) if x.name == "keep_ratio" else []
    return [*reference, *intervals, line, *lowest, dots, *holes(cells, kind, variants, place)]


def _minimum(seen: pl.DataFrame, cells: pl.DataFrame, x: Axis, y: Axis, colour: alt.Color) -> list[alt.Chart]:
    """A ring around each curve's lowest point, and a bar over the keep_ratios at which the minimum may lie."""
    if cells["minimum_from"].is_null().all():
        return []
    known = mark().transform_filter("isValid(datum.minimum_from)")
    ring = known.mark_point(filled=False, size=220, strokeWidth=1.5).encode(x=x.x(seen), y=y.y(seen), color=colour)
    bar = known.mark_rule(strokeWidth=5, opacity=0.3)
    return [bar.encode(x=x.x(seen, "minimum_from"), x2=alt.X2("minimum_to"), y=y.y(seen), color=colour), ring]


def retained(group: Group, points: Points, looks: PolicyLooks) -> list[Chart]:
    """Share of the last 8 positions still held after a prune against keep_ratio, one panel per threshold."""
    charts = []
    for number, after in enumerate(names_of(points.frame, "after"), start=1):
        own = points.frame.filter(pl.col("after") == after, ~pl.col("end"), pl.col("recent_retained").is_not_null())
        if own.is_empty():
            continue
        kind, x = look(own, "variant"), Axis("keep_ratio", "keep_ratio", ".2~f")
        variants = in_order(own, kind)
        y = Axis("recent_retained", "recent positions still held", ".0%", reach=(0.0, 1.0))
        place = {"x": x.x(own), "y": y.y(own), "color": looks.colour(own)}
        cells = mark().transform_filter("!datum.end && isValid(datum.recent_retained)")
        line = cells.transform_calculate(dash=f"datum.{kind}").mark_line(strokeWidth=1.5, opacity=0.8)
        line = line.encode(**place, detail="variant:N", strokeDash=dash(variants, "dash"))
        dots = cells.mark_point(filled=True, size=60, opacity=1).encode(**place, shape=shape(variants, kind, "settings"))
        title = [group.title, _joined(f"prune_after {after}", group.detail)]
        description = f"recent positions still held against keep_ratio, {', '.join(title)}: {_span(own, 'recent_retained')}"
        spec = specification(
            [line, tooltips(dots, ABOUT)], points, title, description, where={"after": after}, height=HEIGHT - 50
        )
        charts.append(Chart(f"retained-{group.number}-{number}", description, spec, points, group.about))
    return charts


def trade_off(group: Group, points: Points, looks: PolicyLooks, best: pl.DataFrame) -> Chart:
    """PPL ratio where pruned, with interval, against realised budget, every threshold in one panel; ``best``: the front."""
    cells = points.frame.filter(~pl.col("end"), pl.col("ratio").is_not_null(), pl.col("budget").is_not_null())
    x = Axis("budget", HELD.title, HELD.form, reach=(0.0, 1.0))
    y = Axis("pruned_ratio", WHERE_PRUNED, log_span=2, reach=(1.0,), also=("pruned_low", "pruned_high"))
    kind = look(cells, "after")
    thresholds, colour = names_of(cells, kind), looks.colour(cells)
    channels = {"x": x.x(cells), "y": y.y(cells)}
    drawn = mark().transform_filter(equal("end", False))
    bars = drawn.transform_filter("isValid(datum.pruned_low)").mark_rule(strokeWidth=1.3, opacity=0.7)
    bars = bars.encode(x=x.x(cells), y=y.y(cells, "pruned_low"), y2=alt.Y2("pruned_high"), color=colour)
    dots = drawn.mark_point(filled=True, size=60, opacity=1)
    dots = dots.encode(**channels, color=colour, shape=shape(thresholds, kind, "prune_after"))
    ideal = alt.Chart(alt.Data(values=[{"budget": 0, "pruned_ratio": 1, "label": "ideal: no cache, no loss"}]))
    corner = ideal.mark_point(shape="triangle-up", filled=True, size=50, fill="var(--fg)").encode(**channels)
    ideal = ideal.mark_text(align="left", dx=-5, dy=13, fontSize=11, fill="var(--fg)").encode(**channels, text="label:N")
    layers = [*rule(1.0, "", y, cells), corner, ideal, *_front(best, x, y, cells), bars, tooltips(dots, ABOUT)]
    layers += holes(cells, kind, thresholds, channels)
    description = (
        f"PPL ratio where pruned against {x.title}, {_joined(group.title, group.detail)}: {cells.height} cells, "
        f"{_span(cells, 'pruned_ratio')}; "
        f"{best.height} of them on the Pareto front"
    )
    spec = specification(layers, points, [group.title, group.detail], description, height=HEIGHT + 30)
    return Chart(f"tradeoff-{group.number}", description, spec, points, group.about)


def _front(best: pl.DataFrame, x: Axis, y: Axis, cells: pl.DataFrame) -> list[alt.Chart]:
    """The Pareto front as steps through its cells' upper bounds."""
    if best.is_empty():
        return []
    data = alt.Chart(alt.Data(values=best.select("budget", "pruned_high").sort("budget").to_dicts()))
    look = {"stroke": "var(--fg)", "strokeWidth": 1, "strokeDash": [4, 2], "opacity": 0.8}
    line = data.mark_line(interpolate="step-after", **look).encode(x=x.x(cells), y=y.y(cells, "pruned_high"))
    ends = data.mark_tick(orient="horizontal", size=12, thickness=2, color="var(--fg)")
    return [line, ends.encode(x=x.x(cells), y=y.y(cells, "pruned_high"))]


def heatmap(group: Group, points: Points) -> Chart | None:
    """PPL ratio over keep_ratio and prune_after; policy and settings are chosen below it. None for a single threshold."""
    cells = points.frame.filter(~pl.col("end"), pl.col("ratio").is_not_null())
    sound = cells.filter(valid(), pl.col("after") != labels.NONE)
    thresholds = names_of(cells, "after")
    if len(thresholds) < 2 or cells["keep_ratio"].n_unique() < 2 or sound.is_empty():
        return None
    series = (
        cells.select(pl.format("{}, {}", "policy", "variant").alias("series")).unique(maintain_order=True)["series"].to_list()
    )
    shown = chooser("shown", series)
    place = {
        "x": alt.X("keep_ratio:O", sort="descending", title="keep_ratio", axis=alt.Axis(labelAngle=0, format=".2~f")),
        "y": alt.Y("after:O", sort=thresholds, title="prune_after"),
    }
    low, high = sound["ratio"].min(), sound["ratio"].max()
    scale = alt.Scale(type="log", scheme="cividis", reverse=True, domain=[min(1.0, low), max(high, 1.01)])  # pyright: ignore
    bar = alt.Legend(orient="bottom", direction="horizontal", title="PPL ratio to dense", gradientLength=200, format=".3~r")
    own = mark().transform_filter(equal("end", False)).transform_calculate(series="datum.policy + ', ' + datum.variant")
    own = own.transform_filter("datum.series === shown")
    squared = own.transform_filter(equal("verdict", "VALID"))
    squares = squared.mark_rect(stroke="var(--bg)").encode(**place, color=alt.Color("ratio:Q", scale=scale, legend=bar))
    middle = (min(1.0, low) * high) ** 0.5  # pyright: ignore[reportOperatorIssue, reportArgumentType]
    light = alt.condition(f"datum.ratio > {middle:g}", alt.value("white"), alt.value("black"))
    text = (
        squared.transform_calculate(text="format(datum.ratio, '.3~r')")
        .mark_text(fontSize=10)
        .encode(**place, text="text:N", fill=light)
    )
    ring = {"shape": "circle", "size": 60, "fill": None, "stroke": "var(--fg)", "strokeWidth": 1.5}
    hollow = own.transform_filter("datum.verdict !== 'VALID'").mark_point(**ring).encode(**place)
    description = f"PPL ratio by keep_ratio and prune_after, {_joined(group.title, group.detail)}: {_span(sound, 'ratio')}"
    layers = [tooltips(squares, ABOUT), text, tooltips(hollow, ABOUT)]
    height = 34 * len(thresholds) + 20
    spec = specification(layers, points, [group.title, group.detail], description, params=[shown], height=height)
    return Chart(f"heatmap-{group.number}", description, spec, points, group.about)


def side_by_side(group: Group, points: Points, looks: PolicyLooks) -> list[Chart]:
    """Policies under the same budget: PPL ratio with interval by policy at a few keep_ratios, one panel per threshold."""
    cells = points.frame.filter(~pl.col("end"), pl.col("ratio").is_not_null())
    charts = []
    for number, after in enumerate(names_of(cells, "after"), start=1):
        own = cells.filter(pl.col("after") == after)
        usual = (
            own.group_by("variant", maintain_order=True)
            .agg(pl.col("policy").n_unique())
            .sort("policy", descending=True, maintain_order=True)
        )
        variant = usual["variant"][0]
        own = own.filter(pl.col("variant") == variant)
        shared = own.group_by("keep_ratio").agg(pl.col("policy").n_unique()).filter(pl.col("policy") > 1)["keep_ratio"].to_list()
        if not shared:
            continue
        own = own.filter(pl.col("keep_ratio").is_in(spread(shared, SIDE_BY_SIDE)))
        charts.append(_beside(group, points.name, looks, own, number, after, variant))
    return charts


def _beside(group: Group, name: str, looks: PolicyLooks, own: pl.DataFrame, number: int, after: str, variant: str) -> Chart:
    x = Axis("ratio", "PPL ratio to dense", log_span=2, reach=(1.0,), also=("ratio_low", "ratio_high"))
    policies = names_of(own, "policy")
    # Numbers for the places: Vega-Lite writes a sorted or fixed domain of names into an expression, where some break it.
    own = own.with_columns(place=pl.col("policy").replace_strict(policies, range(len(policies)), return_dtype=pl.Int32))
    kept = own["keep_ratio"].unique().sort(descending=True).to_list()
    scale = alt.Scale(domain=kept, paddingInner=0.25)
    rows = alt.Y("keep_ratio:O", title="keep_ratio", axis=alt.Axis(format=".2~f", grid=True, tickBand="extent"), scale=scale)
    place = {
        "y": rows,
        "yOffset": alt.YOffset("place:O", scale=alt.Scale(domain=list(range(len(policies))))),
        "color": looks.colour(own),
    }
    bars = mark().transform_filter("isValid(datum.ratio_low)").mark_rule(strokeWidth=1.5)
    bars = bars.encode(x=x.x(own, "ratio_low"), x2=alt.X2("ratio_high"), **place)
    kind, dots = look(own, "variant"), mark().mark_point(filled=True, size=50, opacity=1).encode(x=x.x(own), **place)
    dots = dots if kind == "variant" else dots.encode(shape=shape(in_order(own, kind), kind, "settings"))
    dots = tooltips(dots, ABOUT)
    empty = mark().transform_filter(equal("hollow", True)).mark_point(filled=True, size=18, opacity=1, fill="var(--bg)")
    empty = empty.encode(x=x.x(own), **{key: place[key] for key in ("y", "yOffset")})
    title = [group.title, _joined(f"prune_after {after}", variant, group.detail)]
    description = f"PPL ratio by policy under the same budget, {', '.join(title)}: {own.height} cells, {_span(own, 'ratio')}"
    points = Points(f"beside_{name}_{number}", own)
    height = max(120, own["keep_ratio"].n_unique() * (13 * len(policies) + 12))
    layers = [*rule(1.0, "", x, own, upright=True), bars, dots, empty]
    spec = specification(layers, points, title, description, height=height)
    return Chart(f"beside-{group.number}-{number}", description, spec, points, group.about)


def kv_bytes(group: Group) -> Chart | None:
    """Bytes of keys and values against keep_ratio: mean over steps, and the peak dashed. Policies do not differ in it."""
    cells = with_words(group.cells.filter(pl.col("policy") != "dense", pl.col("kv_bytes_mean").is_not_null()))
    chosen = cells.select("skip_layers", "skip_layers_rule").iter_rows()
    skipped = pl.Series("skipped", [labels.skipped(layers, rule) for layers, rule in chosen], pl.String)
    held = cells.with_columns(skipped).select(
        "keep_ratio", "budget", kv_mean=pl.col("kv_bytes_mean") / 2**20, kv_peak=pl.col("kv_bytes_peak") / 2**20,
        settings=pl.format("prune_after {}, {}", "after", "skipped"), dense=pl.col("dense_kv_bytes_mean") / 2**20,
    )  # fmt: skip
    held = held.unique(["settings", "keep_ratio"], keep="first", maintain_order=True)
    if held.is_empty():
        return None
    points, names = Points(f"bytes_{group.number}", held), names_of(held, "settings")
    x, y = Axis("keep_ratio", "keep_ratio", ".2~f"), Axis("kv_mean", "KV cache in MiB", also=("kv_peak", "dense"), reach=(0.0,))
    ink = "var(--c-knorm)"
    peak = mark().mark_line(strokeDash=DASHES[2], strokeWidth=1.2, opacity=0.8, color="var(--muted)")
    peak = peak.encode(x=x.x(held), y=y.y(held, "kv_peak"), detail="settings:N")
    line = mark().mark_line(strokeWidth=1.5, color=ink).encode(x=x.x(held), y=y.y(held), detail="settings:N")
    dots = mark().mark_point(filled=True, size=60, opacity=1, color=ink)
    dots = dots.encode(x=x.x(held), y=y.y(held), shape=shape(names, "settings", "settings"))
    about = [
        ("settings", "settings"), ("keep_ratio", "keep_ratio", ".3~f"), ("mean, MiB", "kv_mean", ".4~r"),
        ("peak, MiB", "kv_peak", ".4~r"), ("realised budget", "budget", ".1%"),
    ]  # fmt: skip
    dense = held["dense"].drop_nulls()
    reference = rule(dense[0], f"dense, mean {dense[0]:.4g}", y, held) if len(dense) else []
    description = f"KV bytes against keep_ratio, {_joined(group.title, group.detail)}: mean {_span(held, 'kv_mean')} MiB"
    spec = specification([*reference, peak, line, tooltips(dots, about)], points, [group.title, group.detail], description)
    return Chart(f"bytes-{group.number}", description, spec, points, group.about)


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _span(frame: pl.DataFrame, name: str) -> str:
    values = frame[name].drop_nulls().sort().to_list()
    return f"from {labels.figure(values[0])} to {labels.figure(values[-1])}" if values else "no figure"
