"""How a panel is drawn: one Vega-Lite specification from points, two axes and a title.

Text, grid and series colours are CSS variables of the page, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import altair as alt

PALETTE = ["knorm", "knorm_high", "random", "recent", "streaming", "h2o", "snapkv", "tova"]
"""Policies with a colour of their own (``--c-NAME`` in style.css), in the order of the legend."""

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [4, 1], [1, 4]]

TOOLTIPS = {
    "policy": "policy", "kept": "keep_ratio", "after": "prune_after", "variant": "settings", "value": "value drawn",
    "ratio": "ratio to dense", "bounds": "95 % interval", "held": "realised budget", "n": "n", "verdict": "verdict",
}  # fmt: skip

Point = dict[str, Any]
"""``x y low high reference order`` are numbers or null, ``hollow`` a bool, ``policy variant after`` and other tooltips text."""


@dataclass(frozen=True)
class Axis:
    """An axis: its title, the format of its ticks, values it has to reach.

    ``log_span`` is the quotient of largest and smallest value from which the axis turns logarithmic.
    """

    title: str
    form: str = ""
    reach: tuple[float, ...] = ()
    log_span: float | None = None

    def ticks(self) -> alt.Axis:
        """About six ticks; Vega's own number format unless one was asked for."""
        return alt.Axis(tickCount=6, format=self.form) if self.form else alt.Axis(tickCount=6)


def specification(points: list[Point], x: Axis, y: Axis, title: list[str], description: str, *, lines: bool) -> str:
    """A panel as JSON text (not yet escaped for HTML). ``lines`` joins the points of a policy and its settings.

    Raises ValueError where a point holds a number that JSON has no word for.
    """
    chart = alt.layer(*_layers(points, x, y, lines=lines)).properties(
        title=alt.TitleParams(title[0], subtitle=[line for line in title[1:] if line] or alt.Undefined),
        description=description,
        width="container",
        height=270,
    )
    # As plain dicts: altair's schema does not know legend.layout, which Vega has, and checks every point slowly.
    return json.dumps(chart.to_dict() | {"datasets": {"points": points}, "config": _config()}, allow_nan=False)


def _layers(points: list[Point], x: Axis, y: Axis, *, lines: bool) -> list[Any]:
    place = {"x": _x(points, x), "y": _y(points, y), "color": _colour(points)}
    series = "variant" if lines else "after"
    shape = _shape(points, series)
    tooltip = [alt.Tooltip(f"{key}:N", title=title) for key, title in TOOLTIPS.items()]
    reference = next((point["reference"] for point in points if point["reference"] is not None), None)
    layers = (
        []
        if reference is None
        else _reference(reference, place["y"], f"dense {reference:.4g}" if lines else "★ ideal: no cache, no loss")
    )
    if lines:
        layers.append(_line(points, x, place))
    if any(point["low"] is not None for point in points):
        mark = (
            alt.Chart(alt.NamedData("points"))
            .transform_filter("isValid(datum.low)")
            .mark_rule(strokeWidth=1.3, opacity=0.8)
            .encode(**place)
        )
        layers.append(mark.encode(y=_y(points, y, "low"), y2=alt.Y2("high")))
    layers.append(
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(**place, shape=shape, tooltip=tooltip)
    )
    hollow = [point for point in points if point["hollow"]]
    layers += [
        layer.encode(x=place["x"], y=place["y"], tooltip=tooltip) for layer in _holes(hollow, _names(points, series), series)
    ]
    return layers


def _chart(points: list[Point]) -> alt.Chart:
    return alt.Chart(alt.Data(values=points))


def _holes(hollow: list[Point], names: list[str], series: str) -> list[alt.Chart]:
    """What makes points hollow: small marks of the same shape in the page's colour on top.

    An unfilled mark, or a shape channel of its own, would change the legend's symbols too.
    """
    layers = []
    for name, shape in zip(names, _cycle(SHAPES, names), strict=True):
        own = [point for point in hollow if point[series] == name]
        if own:
            layers.append(_chart(own).mark_point(filled=True, shape=shape, size=24, opacity=1, fill="var(--bg)"))
    return layers


def _line(points: list[Point], x: Axis, place: dict[str, Any]) -> alt.Chart:
    """One line per policy and settings; where the axis reaches the dense twin (keep_ratio 1), each line ends in it."""
    names = _names(points, "variant")
    dash = alt.StrokeDash("dash:N", scale=alt.Scale(range=_cycle(DASHES, names)), legend=None)
    twins = {(point["policy"], point["variant"]): point["reference"] for point in points if point["reference"] is not None}
    ends = [{"policy": p, "variant": v, "x": end, "y": y, "order": end} for (p, v), y in twins.items() for end in x.reach]
    # No domain, and a field of its own: Vega-Lite would hide the shapes' legend along with that of the dashes. Both sort alike.
    own = [
        {**{key: point[key] for key in ("policy", "variant", "x", "y", "order")}, "dash": point["variant"]}
        for point in points + ends
    ]
    line = _chart(own).mark_line(strokeWidth=1.5, opacity=0.75)
    return line.encode(**place, strokeDash=dash, detail="variant:N", order="order:Q")


def _reference(value: float, y: alt.Y, label: str) -> list[alt.Chart]:
    place = alt.Y("reference:Q", scale=y["scale"], title=y["title"])
    data = _chart([{"reference": value, "label": label}])
    rule = data.mark_rule(strokeDash=[3, 3], stroke="var(--fg)", strokeWidth=1).encode(y=place)
    text = data.mark_text(align="left", dx=4, dy=9, fontSize=11, fill="var(--fg)")
    return [rule, text.encode(x=alt.value(0), y=place, text="label:N")]


def _x(points: list[Point], axis: Axis) -> alt.X:
    places = [*(point["x"] for point in points), *axis.reach]
    low, high = min(places), max(places)
    pad = 0.04 * (high - low) or 0.05
    scale = alt.Scale(domain=[low - pad, high + pad], nice=False)
    return alt.X("x:Q", title=axis.title, scale=scale, axis=axis.ticks())


def _y(points: list[Point], axis: Axis, field: str = "y") -> alt.Y:
    values = [point[key] for point in points for key in ("y", "low", "high", "reference") if point[key] is not None]
    low, high = min(values), max(values)
    logarithmic = axis.log_span is not None and low > 0 and high > axis.log_span * low
    if logarithmic:
        factor = (high / low) ** 0.08
        scale = alt.Scale(type="log", domain=[low / factor, high * factor], nice=False)
    else:
        pad = max(0.05 * (high - low), 0.01 * abs(high))
        scale = alt.Scale(domain=[low - pad, high + pad], zero=False, nice=True)
    title = f"{axis.title} (log scale)" if logarithmic else axis.title
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis.ticks())


def _names(points: list[Point], field: str) -> list[str]:
    return sorted(
        {point[field] for point in points}, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)
    )


def _cycle(choices: list[Any], names: list[str]) -> list[Any]:
    return [choices[index % len(choices)] for index in range(len(names))]


def _colour(points: list[Point]) -> alt.Color:
    found = {point["policy"] for point in points}
    names = [name for name in PALETTE if name in found] + sorted(found - set(PALETTE))
    colours = [f"var(--c-{name})" if name in PALETTE else "var(--c-other)" for name in names]
    legend = _legend(names, "policy", symbolType="circle")
    return alt.Color("policy:N", title="policy", scale=alt.Scale(domain=names, range=colours), legend=legend)


def _shape(points: list[Point], field: str) -> alt.Shape:
    names = _names(points, field)
    title = "settings" if field == "variant" else "prune_after"
    legend = _legend(names, title, symbolFillColor="var(--fg)", symbolStrokeColor="var(--fg)")
    return alt.Shape(f"{field}:N", title=title, scale=alt.Scale(domain=names, range=_cycle(SHAPES, names)), legend=legend)


def _legend(names: list[str], title: str, **look: Any) -> alt.Legend:
    columns = 1 if max(map(len, names)) > 14 else 3
    return alt.Legend(orient="bottom", columns=columns, title=title, labelLimit=300, symbolOpacity=1, symbolSize=60, **look)


def _config() -> dict[str, Any]:
    font = "system-ui, sans-serif"
    text = {
        "labelColor": "var(--fg)",
        "titleColor": "var(--fg)",
        "labelFont": font,
        "titleFont": font,
        "titleFontWeight": "normal",
    }
    lines = {"gridColor": "var(--line)", "domainColor": "var(--muted)", "tickColor": "var(--muted)"}
    below = {"direction": "vertical", "anchor": "start", "margin": 8}
    title = {"color": "var(--fg)", "font": font, "fontSize": 13, "anchor": "start", "offset": 10, "limit": 360}
    return {
        "axis": {**text, **lines, "labelFontSize": 11, "titleFontSize": 12, "labelFlush": False, "labelOverlap": "greedy"},
        "legend": {**text, "labelFontSize": 11, "titleFontSize": 11, "rowPadding": 3, "layout": {"bottom": below}},
        "title": {**title, "subtitleFont": font, "subtitleColor": "var(--muted)", "subtitleFontSize": 11, "subtitlePadding": 4},
        "view": {"stroke": "transparent"},
        "font": font,
        "background": "transparent",
        "autosize": {"type": "fit-x", "contains": "padding"},
    }
