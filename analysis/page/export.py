"""Every chart of a report as a picture file for a paper
(PNG at print resolution, or SVG), every table as CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl
import vl_convert

from analysis.draw.specification import Chart
from analysis.page.column import Column

WIDTH, SCALE = 420, 3.0
"""Points, and pixels per point of a PNG: a column of a page at 216 dots per inch."""
STYLE = Path(__file__).with_name("style.css")


def write_charts(charts: Iterable[Chart], folder: str, form: str) -> list[str]:
    """Write ``NAME.png`` or ``NAME.svg`` of each chart into a folder, which is made; returns the files.

    Raises OSError.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)

    files = []
    for chart in charts:
        specification = _on_paper(chart)
        file = place / f"{chart.name}.{form}"
        if form == "png":
            file.write_bytes(vl_convert.vegalite_to_png(specification, scale=SCALE))
        else:
            file.write_text(vl_convert.vegalite_to_svg(specification), encoding="utf-8")
        files.append(str(file))
    return files


def write_tables(tables: Mapping[str, tuple[pl.DataFrame, Sequence[Column]]], folder: str) -> None:
    """Write ``NAME.csv`` of each table into a folder, which is made: every row, figures in full.

    Raises OSError.

    Lists are joined with commas. Text cannot start a spreadsheet's formula.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, (frame, columns) in tables.items():
        keys = [key for column in columns for key in (column.key, column.upper) if key in frame.columns]
        chosen = frame.select(*dict.fromkeys(keys))
        lists = [
            pl.col(key).cast(pl.List(pl.String)).list.join(",")
            for key, kind in chosen.schema.items()
            if kind == pl.List
        ]
        text = pl.selectors.string()
        plain = (
            pl.when(text.str.contains(r"^[=+@\t\r-]")).then(pl.lit("'") + text).otherwise(text).name.keep()
        )
        chosen.with_columns(lists).with_columns(plain).write_csv(place / f"{name}.csv")


def _on_paper(chart: Chart) -> dict[str, object]:
    """The page's chart with a width of its own, on white, in
    the page's light colours: a picture has no style sheet."""
    named = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", _light(STYLE.read_text(encoding="utf-8"))))
    coloured = re.sub(r"var\((--[\w-]+)\)", lambda match: named.get(match[1], match[0]).strip(), chart.json())
    spec = json.loads(coloured)
    spec["config"]["background"] = "white"
    spec["config"].pop("autosize")
    return spec | {"width": WIDTH, "datasets": chart.whole()["datasets"]}


def _light(style: str) -> str:
    """The first block of the style sheet's variables."""
    return style[style.index(":root") : style.index("}", style.index(":root"))]
