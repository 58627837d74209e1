"""Every chart of a report as a picture file, for a paper: PNG at print resolution, or SVG."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import vl_convert

from analysis.charts import Chart

WIDTH, SCALE = 420, 3.0
"""Points, and pixels per point of a PNG: a column of a page at 216 dots per inch."""
STYLE = Path(__file__).with_name("style.css")


def write_charts(charts: Iterable[Chart], folder: str, form: str) -> list[str]:
    """Write ``NAME.png`` or ``NAME.svg`` of each chart into a folder, which is made; returns the files. Raises OSError."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = []
    for chart in charts:
        specification = _on_paper(chart.spec)
        file = place / f"{chart.name}.{form}"
        if form == "png":
            file.write_bytes(vl_convert.vegalite_to_png(specification, scale=SCALE))
        else:
            file.write_text(vl_convert.vegalite_to_svg(specification), encoding="utf-8")
        files.append(str(file))
    return files


def _on_paper(spec: str) -> dict[str, object]:
    """The page's chart with a width of its own, on white, in the page's light colours: a picture has no style sheet."""
    named = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", _light(STYLE.read_text(encoding="utf-8"))))
    chart = json.loads(re.sub(r"var\((--[\w-]+)\)", lambda match: named[match[1]].strip(), spec))
    chart["config"]["background"] = "white"
    chart["config"].pop("autosize")
    return chart | {"width": WIDTH}


def _light(style: str) -> str:
    """The first block of the style sheet's variables."""
    return style[style.index(":root") : style.index("}", style.index(":root"))]
