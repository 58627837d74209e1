"""The marks of a chart: axes, filters, what a point tells, colours, shapes, dashes and their legends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

SHAPES = [
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
]
DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [4, 1], [1, 4], [12, 4], [6, 2, 2, 2, 2, 2]]


@dataclass(frozen=True)
class Axis:
    """An axis: the field it shows, its title, the format of its ticks, values it has to reach.

    ``log_span`` is the quotient of largest and smallest value from which the axis turns logarithmic. ``also``
    names further fields that have to fit, ``place`` the field by which marks are placed, where they are moved
    a little aside.
    """

    name: str
    title: str
    form: str = ""
    reach: tuple[float, ...] = ()
    log_span: float | None = None
    also: tuple[str, ...] = ()
    place: str = ""

    def ticks(self) -> alt.Axis:
        """About six ticks; Vega's own number format unless one was asked for."""
        return alt.Axis(tickCount=6, format=self.form) if self.form else alt.Axis(tickCount=6)

    def scale(self, frame: pl.DataFrame, pad: float = 0.05) -> alt.Scale:
        """Fixed by all rows of a panel, so that a selection among them moves nothing."""
        columns = [
            frame[name].drop_nulls().to_list() for name in (self.name, *self.also) if name in frame.columns
        ]
        values = [*self.reach, *(value for column in columns for value in column)] or [0.0, 1.0]
        low, high = min(values), max(values)
        if self.log_span is not None and low > 0 and high > self.log_span * low:
            factor = (high / low) ** 0.08
            return alt.Scale(type="log", domain=[low / factor**1.5, high * factor], nice=False)
        room = pad * (high - low) or 0.01 * abs(high) or 0.05
        return alt.Scale(domain=[low - 2 * room, high + room], zero=False, nice=False)

    def named(self, scale: alt.Scale) -> str:
        """The title, which says where a scale is logarithmic."""
        return f"{self.title} (log scale)" if scale.to_dict().get("type") == "log" else self.title

    def x(self, frame: pl.DataFrame, name: str = "") -> alt.X:
        """The channel; ``name`` is another field on the same scale."""
        scale = self.scale(frame)
        return alt.X(
            f"{name or self.place or self.name}:Q", title=self.named(scale), scale=scale, axis=self.ticks()
        )

    def y(self, frame: pl.DataFrame, name: str = "") -> alt.Y:
        """As ``x``."""
        scale = self.scale(frame)
        return alt.Y(
            f"{name or self.place or self.name}:Q", title=self.named(scale), scale=scale, axis=self.ticks()
        )


def mark() -> alt.Chart:
    """A layer over the panel's own rows."""
    return alt.Chart(alt.Undefined)


Filter = str | alt.FieldEqualPredicate | alt.FieldOneOfPredicate
"""An expression of ours, or a predicate, which takes names from outside as values."""


def filtered(layer: alt.Chart, *filters: Filter) -> alt.Chart:
    """A layer over the rows that pass all of these."""
    for each in filters:
        layer = layer.transform_filter(each)
    return layer


def equal(name: str, value: Any) -> alt.FieldEqualPredicate:
    """A filter that takes a name from outside as a value and never as an expression."""
    return alt.FieldEqualPredicate(field=name, equal=value)


def interval_entry(title: str, low: str, high: str) -> tuple[str, str, str]:
    """An interval for ``tooltips``."""
    return title, low, high


def tooltips(layer: alt.Chart, entries: Sequence[tuple[str, ...]]) -> alt.Chart:
    """A layer whose marks tell ``(title, field)``, ``(title,
    field, d3 format)`` or an interval from ``interval_entry``."""
    shown = []
    for title, name, *rest in entries:
        if not rest:
            shown.append(alt.Tooltip(f"{name}:N", title=title))
            continue

        value = f"datum['{name}']"
        form_or_end = rest[0]
        words = f"format({value}, '{form_or_end}')"
        if not form_or_end.startswith((".", ",")):
            other = f"datum['{form_or_end}']"
            words = f"'[' + format({value}, '.4~r') + ', ' + format({other}, '.4~r') + ']'"

        layer = layer.transform_calculate(**{f"{name}_text": f"isValid({value}) ? {words} : '–'"})
        shown.append(alt.Tooltip(f"{name}_text:N", title=title))
    return layer.encode(tooltip=shown)


def names_of(frame: pl.DataFrame, name: str) -> list[str]:
    """The values of a text column in reading order: numbers inside them by their size."""

    def key(value: str) -> list[tuple[bool, float, str]]:
        parts = re.split(r"(\d+(?:\.\d+)?)", value)
        return [
            (not part[:1].isdigit(), float(part) if part[:1].isdigit() else 0.0, part)
            for part in parts
            if part
        ]

    return sorted(frame[name].drop_nulls().unique().to_list(), key=key)


def in_order(frame: pl.DataFrame, name: str) -> list[str]:
    """The values of a text column in the order of the rows."""
    return frame[name].drop_nulls().unique(maintain_order=True).to_list()


def cycle(choices: list[Any], names: Sequence[str]) -> list[Any]:
    """A choice for each name, from the start again where there are too few."""
    return [choices[index % len(choices)] for index in range(len(names))]


def colour(names: Sequence[str], name: str, title: str) -> alt.Color:
    """Colours in the order of the names, for what is no policy."""
    others = cycle(
        [f"var(--c-{policy})" for policy in ("knorm", "h2o", "recent", "streaming", "snapkv", "tova")], names
    )
    colours = [
        "var(--c-dense)" if value == "dense" else look for value, look in zip(names, others, strict=True)
    ]
    look = legend(names, title, symbolType="circle")
    return alt.Color(f"{name}:N", scale=alt.Scale(domain=list(names), range=colours), legend=look)


def shape(names: Sequence[str], name: str, title: str) -> alt.Shape:
    """A shape for each name; its legend is drawn in the text's colour."""
    look = legend(names, title, symbolFillColor="var(--fg)", symbolStrokeColor="var(--fg)")
    return alt.Shape(
        f"{name}:N", scale=alt.Scale(domain=list(names), range=cycle(SHAPES, names)), legend=look
    )


def dash(names: Sequence[str], name: str) -> alt.StrokeDash:
    """A dash for each name, without a legend: the shapes have one.

    A domain would make Vega-Lite merge the scale with that
    of the shapes and hide their legend too; both sort alike.
    """
    return alt.StrokeDash(
        f"{name}:N", sort=list(names), scale=alt.Scale(range=cycle(DASHES, names)), legend=None
    )


def legend(names: Sequence[str], title: str, **look: Any) -> alt.Legend:
    """Below the chart, in columns where the names are short."""
    columns = 1 if max(map(len, names), default=0) > 14 else 3
    return alt.Legend(
        orient="bottom", columns=columns, title=title, labelLimit=300, symbolOpacity=1, symbolSize=60, **look
    )


def gradient(title: str, form: str) -> alt.Legend:
    """Below the chart, for colours of numbers."""
    return alt.Legend(orient="bottom", direction="horizontal", title=title, gradientLength=200, format=form)
