"""A chart as one Vega-Lite specification; its data lies outside, in a ``Points`` that several can share.

Text, grid and series colours are CSS variables of the page, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl

from analysis.labels import LINE_ENDS

DIGITS = 6
"""Significant digits of a number in a chart's data."""

HEIGHT = 270


@dataclass(frozen=True)
class Points:
    """The data of one or several charts; ``name`` is a word."""

    name: str
    frame: pl.DataFrame

    def rows(self) -> list[dict[str, Any]]:
        """As Vega takes them."""
        return self._rounded().to_dicts()

    def json(self) -> str:
        """Column by column, which names each column once.

        Raises ValueError where a number has no word in JSON.
        """
        return json.dumps(self._rounded().to_dict(as_series=False), allow_nan=False, separators=(",", ":"))

    def _rounded(self) -> pl.DataFrame:
        words = pl.selectors.string().str.replace_all("[\u2028\u2029]", "⏎")  # as labels.text writes them
        return self.frame.with_columns(pl.selectors.float().round_sig_figs(DIGITS), words)


@dataclass(frozen=True)
class Chart:
    """One panel: its container has the id ``chart-NAME``.

    ``about`` is what the page's selection asks for: model, dataset.
    """

    name: str
    description: str
    spec: dict[str, Any]
    points: Points
    about: dict[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """The specification without its data, not yet escaped for HTML."""
        return json.dumps(self.spec, allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(
            LINE_ENDS
        )

    def whole(self) -> dict[str, Any]:
        """The specification with its data, as a renderer outside the page takes it."""
        return json.loads(self.json()) | {"datasets": {self.points.name: self.points.rows()}}


def specification(
    layers: Sequence[Any],
    points: Points,
    title: Sequence[str],
    description: str,
    *,
    where: dict[str, Any] | None = None,
    params: Sequence[dict[str, Any]] = (),
    height: int = HEIGHT,
) -> dict[str, Any]:
    """Layers over the rows of ``points`` that equal ``where``;
    a policy chosen on the page hides those of the others."""
    chosen = "chosen === '' || !isValid(datum.policy) || datum.policy === chosen"
    filters = [{"filter": {"field": name, "equal": value}} for name, value in (where or {}).items()] + [
        {"filter": chosen}
    ]

    # Put together as plain dicts: altair checks and copies every layer at each step, and does not know
    # legend.layout.
    return alt.layer(*layers, data=alt.NamedData(points.name)).to_dict(validate=False) | {
        "transform": filters,
        "params": [{"name": "chosen", "value": ""}, *params],
        "title": {"text": title[0], "subtitle": [line for line in title[1:] if line]},
        "description": description,
        "width": "container",
        "height": height,
        "config": config(),
    }


def chooser(label: str, names: Sequence[str], signal: str = "shown") -> dict[str, Any]:
    """A list below the chart; what is chosen there is the
    value of ``signal``, at first the first of the names."""
    options = [name.translate(LINE_ENDS) for name in names]
    return {
        "name": signal,
        "value": options[0],
        "bind": {"input": "select", "options": options, "name": f"{label}: "},
    }


def config() -> dict[str, Any]:
    """Fonts and the page's colours."""
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
    title = {
        "color": "var(--fg)",
        "font": font,
        "fontSize": 13,
        "anchor": "start",
        "offset": 10,
        "limit": 360,
    }

    return {
        "axis": {
            **text,
            **lines,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "labelFlush": False,
            "labelOverlap": "greedy",
        },
        "legend": {
            **text,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "rowPadding": 3,
            "layout": {"bottom": below},
        },
        "title": {
            **title,
            "subtitleFont": font,
            "subtitleColor": "var(--muted)",
            "subtitleFontSize": 11,
            "subtitlePadding": 4,
        },
        "view": {"stroke": "transparent"},
        "font": font,
        "background": "transparent",
        "autosize": {"type": "fit-x", "contains": "padding"},
    }
