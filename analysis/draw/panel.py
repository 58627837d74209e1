"""One panel put together from marks: ``Panel(frame, x, y,
colour=...).band(...).line(...).dots(...).chart(...)``.

Marks lie on each other in the order of the calls. Whatever else is wanted is a layer of altair's: ``drawn``
puts it in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import altair as alt
import polars as pl

from analysis.draw.marks import (
    SHAPES,
    Axis,
    Filter,
    cycle,
    dash,
    equal,
    filtered,
    in_order,
    mark,
    shape,
    tooltips,
)
from analysis.draw.points import Group
from analysis.draw.policy_looks import look
from analysis.draw.specification import HEIGHT, Chart, Points, specification

KEPT = Axis("keep_ratio", "keep_ratio", ".2~f", reach=(1.0,))
"""As it was set, up to the dense twin's."""

HELD = Axis("budget", "realised KV budget", ".1~%")

COMPARED = equal("end", False)
"""The rows of cells, without those of the dense twin in which lines end."""

About = Sequence[tuple[str, ...]]
"""Entries of ``marks.tooltips``."""


@dataclass(frozen=True)
class Series:
    """What tells apart marks of one colour: a column whose
    ``names`` have shapes and, where ``dashed``, dashes.

    ``by`` is the column whose values have a line each; ``title`` stands above the legend.
    """

    column: str
    names: Sequence[str]
    by: str
    title: str = "settings"
    dashed: bool = True

    @classmethod
    def of(
        cls,
        frame: pl.DataFrame,
        column: str,
        order: Callable[[pl.DataFrame, str], list[str]] = in_order,
        **more: Any,
    ) -> Series:
        """By a column of the frame, or by the one that also names
        policies whose colour is taken (``policy_looks.look``)."""
        shown = look(frame, column)
        return cls(shown, order(frame, shown), column, **more)


@dataclass(frozen=True)
class Panel:
    """Marks over one pair of axes, as they were drawn so far.

    ``frame`` fixes the scales: all rows that a selection may show. An axis may also be a channel of altair's,
    ``offset`` moves marks within a row. ``colour``: the channel that colours marks, or the ink of all.
    ``rows``: what the next marks stand for, a layer with its transforms.
    """

    frame: pl.DataFrame
    x: Axis | alt.X
    y: Axis | alt.Y
    colour: alt.Color | str | None = None
    series: Series | None = None
    rows: alt.Chart = field(default_factory=mark)
    offset: alt.YOffset | None = None
    layers: tuple[alt.Chart, ...] = ()

    def among(self, *filters: Filter) -> Panel:
        """The next marks stand for the rows that pass all of these, and for those alone."""
        return replace(self, rows=filtered(mark(), *filters))

    def band(self, low: str, high: str, opacity: float, **channels: Any) -> Panel:
        """The area between two fields; where there is none, none is drawn."""
        area = filtered(self.rows, f"isValid(datum.{low})").mark_area(opacity=opacity)
        detail: dict[str, Any] = {"detail": f"{self.series.by}:N"} if self.series else {}
        return self.drawn(area, y=self._y(low), y2=alt.Y2(high), **detail | channels)

    def line(self, *, width: float = 1.5, opacity: float | None = 0.8, **channels: Any) -> Panel:
        """A line for each series."""
        rows, own = self.rows, dict[str, Any]()
        if self.series:
            own["detail"] = f"{self.series.by}:N"
        if self.series and self.series.dashed:
            # A field of its own for the dash: Vega-Lite would hide the shapes' legend along with that of the
            # dashes.
            rows = rows.transform_calculate(dash=f"datum.{self.series.column}")
            own["strokeDash"] = dash(self.series.names, "dash")
        return self.drawn(rows.mark_line(**self._look(strokeWidth=width, opacity=opacity)), **own | channels)

    def bars(
        self,
        low: str,
        high: str,
        *,
        across: bool = False,
        gaps: bool = True,
        width: float = 1.3,
        opacity: float | None = None,
    ) -> Panel:
        """An interval through each point, upright or ``across``; ``gaps``: some points may have none."""
        rows = filtered(self.rows, f"isValid(datum.{low})") if gaps else self.rows
        along = {"x": self._x(low), "x2": alt.X2(high)} if across else {"y": self._y(low), "y2": alt.Y2(high)}
        return self.drawn(rows.mark_rule(**self._look(strokeWidth=width, opacity=opacity)), **along)

    def dots(self, about: About, *, size: int = 60, opacity: float = 1) -> Panel:
        """A point for each row, in its series' shape, which tells what ``about`` names."""
        own = (
            {"shape": shape(self.series.names, self.series.column, self.series.title)} if self.series else {}
        )
        return self.drawn(
            self.rows.mark_point(**self._look(filled=True, size=size, opacity=opacity)), about, **own
        )

    def holes(self, frame: pl.DataFrame, *filters: Filter) -> Panel:
        """What makes the frame's hollow points hollow: small
        marks of the same shape in the page's colour on top.

        An unfilled mark, or a shape channel of its own, would change the legend's symbols too.
        """
        assert self.series is not None
        names, column, layers = self.series.names, self.series.column, []
        for value, own in zip(names, cycle(SHAPES, names), strict=True):
            if frame.filter(pl.col("hollow"), pl.col(column) == value).height:
                rows = filtered(mark(), equal(column, value), equal("hollow", True), *filters)
                look = rows.mark_point(filled=True, shape=own, size=24, opacity=1, fill="var(--bg)")
                layers.append(look.encode(**self._place()))
        return self.add(*layers)

    def cores(self, *hollow: Filter) -> Panel:
        """As ``holes``, where every point is round: the rows that pass these filters."""
        rows = filtered(self.rows, *hollow)
        return self.add(
            rows.mark_point(filled=True, size=18, opacity=1, fill="var(--bg)").encode(**self._place())
        )

    def rule(self, value: float, label: str, *, upright: bool = False) -> Panel:
        """A dotted line with a label at a value of the y axis, or of the x axis where it stands upright."""
        data = alt.Chart(alt.Data(values=[{"at": value, "label": label}]))
        line = data.mark_rule(strokeDash=[3, 3], stroke="var(--fg)", strokeWidth=1)
        text = data.mark_text(align="left", dx=4, dy=9, fontSize=11, fill="var(--fg)").encode(text="label:N")
        if upright:
            across = self._x("at")
            return self.add(line.encode(x=across), text.encode(x=across, y=alt.value(0)))
        up = self._y("at")
        return self.add(line.encode(y=up), text.encode(x=alt.value(0), y=up))

    def dense(self, values: pl.Series, words: str = "dense") -> Panel:
        """A rule at the dense twin's value, the first that is known; no rule where none is."""
        known = values.drop_nulls()
        return self.rule(known[0], f"{words} {known[0]:.4g}") if len(known) else self

    def drawn(self, layer: alt.Chart, about: About = (), **channels: Any) -> Panel:
        """Any mark at the panel's places and in its colours, but for the channels that are given."""
        own = self._place()
        if isinstance(self.colour, alt.Color):
            own["color"] = self.colour
        placed = layer.encode(**own | channels)
        return self.add(tooltips(placed, about) if about else placed)

    def add(self, *layers: alt.Chart) -> Panel:
        """Layers as they are."""
        return replace(self, layers=(*self.layers, *layers))

    def chart(
        self,
        name: str,
        group: Group,
        points: Points,
        words: str,
        *lines: str,
        part: int | str | None = None,
        where: dict[str, Any] | None = None,
        params: Sequence[dict[str, Any]] = (),
        height: int = HEIGHT,
        about: dict[str, str] | None = None,
    ) -> Chart:
        """The panel as the group's chart of this ``name``, or as ``part`` of several, over the rows of
        ``points`` that equal ``where``.

        ``words`` say to whom cannot see it what it shows; ``lines`` stand below the group's title.
        ``params``: what is chosen below it. ``about``: what the page's selection asks for, where that is not
        all that the group has.
        """
        title = [group.title, *lines]
        spec = specification(self.layers, points, title, words, where=where, params=params, height=height)
        whole = f"{name}-{group.number}" if part is None else f"{name}-{group.number}-{part}"
        return Chart(whole, words, spec, points, group.about if about is None else about)

    def _place(self) -> dict[str, Any]:
        return {"x": self._x(), "y": self._y()} | ({"yOffset": self.offset} if self.offset else {})

    def _x(self, name: str = "") -> alt.X:
        return self.x.x(self.frame, name) if isinstance(self.x, Axis) else self.x

    def _y(self, name: str = "") -> alt.Y:
        return self.y.y(self.frame, name) if isinstance(self.y, Axis) else self.y

    def _look(self, **look: Any) -> dict[str, Any]:
        """What is asked for of a mark, and the ink of a panel that has one."""
        ink = {"color": self.colour} if isinstance(self.colour, str) else {}
        return {name: value for name, value in look.items() if value is not None} | ink
