"""What a report shows, read from the page that ``kvsweep report`` writes.

Its tables, the data and encodings of its charts, its words.
"""

from __future__ import annotations

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tools.golden.command import demanded

TABLES, CHARTS, WORDS, VERDICTS = "tables", "charts.json.gz", "words.txt.gz", "verdicts.txt"

SILENT = ("script", "style")
"""Elements whose text no reader sees."""


def keep_report(run: Path, place: Path, scratch: Path, cache: Path, *, audit: bool) -> None:
    """Write the data of a run directory's report into ``place``. Raises CommandError where there is no
    report."""
    place.mkdir(parents=True)
    page = scratch / "page.html"
    asked = ["--audit"] if audit else []
    said = demanded("report", run, "-o", page, "--csv", place / TABLES, *asked, folder=scratch, cache=cache)
    verdicts = said.out.splitlines()[:-1]  # the last line is the page's place
    (place / VERDICTS).write_text("\n".join([*verdicts, ""]), encoding="utf-8")

    read = _Page()
    read.feed(page.read_text(encoding="utf-8"))
    charts = {"specs": read.specs, "points": read.points}
    write_packed(place / CHARTS, _lines(charts))
    write_packed(place / WORDS, read.words().replace(str(run), "RUN"))


def write_packed(file: Path, text: str) -> None:
    """A text as gzip, with no time in it: equal texts are equal files."""
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def text_of(file: Path) -> str:
    """Of a kept file, packed or not."""
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode()


def _lines(charts: dict[str, dict[str, Any]]) -> str:
    """JSON with a line for each specification and each set of points; a configuration of all stands once."""
    configs = [spec.pop("config", None) for spec in charts["specs"].values()]
    same = configs[0] if configs and all(config == configs[0] for config in configs) else configs
    blocks = {"config": {"all": same}, **charts}
    written = [
        f"{json.dumps(block)}: {{\n"
        + ",\n".join(f"{json.dumps(name)}: {_compact(value)}" for name, value in entries.items())
        + "\n}"
        for block, entries in blocks.items()
    ]
    return "{" + ",\n".join(written) + "}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class _Page(HTMLParser):
    """Specifications and points by name, and all text that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: dict[str, Any] = {}
        self.points: dict[str, Any] = {}
        self._into: tuple[dict[str, Any], str] | None = None
        self._silent = False
        self._texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._silent = self._silent or tag in SILENT
        if tag == "script" and given.get("class") == "spec":
            self._into = self.specs, str(given["data-chart"])
        elif tag == "script" and given.get("class") == "points":
            self._into = self.points, str(given["data-points"])

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            self._silent, self._into = False, None
        elif tag in ("td", "th"):
            self._texts.append(" | ")

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            block, name = self._into
            block[name] = json.loads(data)
        elif not self._silent:
            self._texts.append(data)

    def words(self) -> str:
        """Line by line, as the page's source breaks them."""
        lines = (" ".join(line.split()) for line in "".join(self._texts).splitlines())
        return "\n".join([line for line in lines if line.strip(" |")]) + "\n"
