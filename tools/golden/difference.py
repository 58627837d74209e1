"""Two golden runs against each other, part by part: what was compared, how much of it, and what differs."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.golden import rows
from tools.golden.machine import HARNESS
from tools.golden.machine import departures as made_otherwise
from tools.golden.page import CHARTS, TABLES, VERDICTS, WORDS, text_of
from tools.golden.refusals import REFUSALS
from tools.golden.runs import PLAN, RUN, SAID
from tools.golden.sweeps import SWEEPS
from tools.golden.values import ABSOLUTE, RELATIVE, departures, figures

MADE, REPORT = "made.json", "report"
OF_A_RUN = (
    "name",
    "protocol_version",
    "schema_version",
    "spec",
    "seed",
    "models",
    "datasets",
    "planned",
    "planned_rows",
    "dropped",
    "notes",
)
"""What is compared of run.json; the rest is the time, the machine, the code's own name."""


@dataclass(frozen=True)
class Part:
    """What was compared and how much, and every difference in a line."""

    name: str
    counted: str
    differences: list[str]
    left_out: str = ""
    """Why it was not compared."""


@dataclass(frozen=True)
class Comparison:
    """How floats were compared, in words, and the parts."""

    how: str
    parts: list[Part]


def compare(kept: Path, now: Path) -> Comparison:
    """Two folders that ``keep`` wrote, or one of them and what ``compare`` made."""
    old, new = (json.loads((folder / MADE).read_text(encoding="utf-8")) for folder in (kept, now))
    others = made_otherwise(old, new)
    exact, same_harness = not others, old[HARNESS] == new[HARNESS]
    how = "floats: bit by bit, for machine and packages are as they were"
    if others:
        bounds = f"within {RELATIVE:g} of each other, or {ABSOLUTE:g}"
        how = f"floats: {bounds}, and not bit by bit, for {', '.join(others)}"

    parts = []
    for sweep in SWEEPS:
        if sweep.source.endswith(".yaml") and not same_harness:
            why = f"the version of {HARNESS} is in the ids of its cells"
            parts.append(Part(f"{sweep.name}: run", "cells and rows", [], why))
        else:
            parts += _run(kept / sweep.name, now / sweep.name, sweep.name, exact=exact)
        parts += _report(kept / sweep.name / REPORT, now / sweep.name / REPORT, sweep.name, exact=exact)
    return Comparison(how, [*parts, _refusals(kept / REFUSALS, now / REFUSALS)])


def _run(kept: Path, now: Path, name: str, *, exact: bool) -> Iterator[Part]:
    one, other = kept / RUN, now / RUN
    yield Part(f"{name}: cells", f"{rows.count_planned(one)} cells", list(rows.planned(one, other, name)))
    found = rows.compared(one, other, name, exact=exact)
    yield Part(f"{name}: rows", f"{rows.count_rows(one)} rows", list(found))
    for file, what in ((PLAN, "plan"), (SAID, "messages")):
        yield _lines(kept / file, now / file, f"{name}: {what}")
    old, new = (_of_run(run) for run in (one, other))
    yield Part(
        f"{name}: run.json", f"{len(OF_A_RUN)} entries", _json(old, new, f"{name} run.json", exact=exact)
    )


def _of_run(run: Path) -> dict[str, Any]:
    whole = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {key: whole[key] for key in OF_A_RUN if key in whole}


def _report(kept: Path, now: Path, name: str, *, exact: bool) -> Iterator[Part]:
    tables = sorted(file.name for file in (kept / TABLES).glob("*.csv"))
    others = {file.name for file in (now / TABLES).glob("*.csv")}
    found = [f"{name} report: table {file} is gone" for file in tables if file not in others]
    found += [f"{name} report: table {file} is new" for file in sorted(others - set(tables))]
    count = 0
    for file in (file for file in tables if file in others):
        old, new = (_frame(folder / TABLES / file, exact=exact) for folder in (kept, now))
        count += len(old)
        found += _frames(old, new, f"{name} report {file}", exact=exact)
    yield Part(f"{name}: tables", f"{len(tables)} tables, {count} rows", found)

    old, new = (json.loads(text_of(folder / CHARTS)) for folder in (kept, now))
    counted = f"{len(old['specs'])} charts of {len(old['points'])} sets of points"
    yield Part(f"{name}: charts", counted, _json(old, new, f"{name} charts", exact=exact))
    for file, what in ((WORDS, "words of the page"), (VERDICTS, "verdicts")):
        yield _lines(kept / file, now / file, f"{name}: {what}")


def _frame(file: Path, *, exact: bool) -> list[dict[str, Any]]:
    """Rows by column; as text where every digit counts."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows_of_text = list(csv.DictReader(stream))
    if exact:
        return rows_of_text
    return [{name: figures(text) for name, text in row.items()} for row in rows_of_text]


def _frames(
    kept: list[dict[str, Any]], now: list[dict[str, Any]], where: str, *, exact: bool
) -> Iterator[str]:
    if len(kept) != len(now):
        yield f"{where}: kept {len(kept)} rows, now {len(now)}"
    for place, (old, new) in enumerate(zip(kept, now, strict=False)):
        if list(old) != list(new) and old.keys() == new.keys():
            yield f"{where} row {place}: columns in another order"
        for at, before, after in departures(old, new, exact=exact):
            yield f"{where} row {place} {at.lstrip('.')}: kept {before!r}, now {after!r}"


def _json(kept: Any, now: Any, where: str, *, exact: bool) -> list[str]:
    found = departures(kept, now, exact=exact)
    return [f"{where} {at.lstrip('.')}: kept {_short(one)}, now {_short(two)}" for at, one, two in found]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def _lines(kept: Path, now: Path, name: str) -> Part:
    old, new = (text_of(file).splitlines() for file in (kept, now))
    changed = difflib.unified_diff(old, new, lineterm="", n=0)
    words = {"-": "kept", "+": "now "}
    told = [
        f"{name}: {words[line[0]]} {line[1:]}"
        for line in list(changed)[2:]  # two lines name the files
        if line[0] in words
    ]
    return Part(name, f"{len(old)} lines", told)


def _refusals(kept: Path, now: Path) -> Part:
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (kept, now))
    return Part("refusals", f"{len(old)} refusals", _json(old, new, "refusal", exact=True))
