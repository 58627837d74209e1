"""How right the time left was, from the logs of finished runs.

    python -m benchmarks.time_left DIR [DIR ...]

What was said at each tenth of a run is told against what it then took, and what each kind of unit took
against its estimate. The aim: within a factor of 2 from a tenth of a run on, also where its units are of many
kinds, and so for each kind of unit. A run in which no time left was said, because it was over before, has
only the second part.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any


def turns(file: Path) -> list[list[dict[str, Any]]]:
    """The lines of each turn that went from start to end without being cut off."""
    found: list[list[dict[str, Any]]] = []
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if line["event"] == "start":
            found.append([])
        found[-1].append(line)
    return [turn for turn in found if turn[-1].get("reason") == "all units ended"]


def report(name: str, turn: list[dict[str, Any]]) -> None:
    """The time left at each tenth of a turn, and each kind of its units."""
    units = [line for line in turn if line["event"] == "unit"]
    kinds = sorted({(line["task"], line["model"]) for line in units})
    begin, end = _time(turn[0]), _time(turn[-1])
    print(f"{name}: {len(units)} units of {len(kinds)} kinds in {end - begin:.0f} s")

    told = [line for line in turn if line["event"] in ("unit", "news") and line["left_seconds"]]
    if told:
        _tenths(begin, end, [(_time(line), line["left_seconds"]) for line in told])
    else:
        print("  no time left was said")
    for task, model in kinds:
        _kind(f"{task} {model}", [line for line in units if (line["task"], line["model"]) == (task, model)])


def _time(line: dict[str, Any]) -> float:
    return datetime.datetime.fromisoformat(line["time"]).timestamp()


def _tenths(begin: float, end: float, said: list[tuple[float, float]]) -> None:
    """``said``: when, and how many seconds were said to be left."""
    worst = 1.0
    for tenth in range(1, 10):
        at = begin + (end - begin) * tenth / 10
        now, left = min(said, key=lambda pair: abs(pair[0] - at))
        was = end - now
        ratio = left / max(was, 1e-9)
        worst = max(worst, ratio, 1 / ratio) if tenth < 9 else worst
        passed = (now - begin) / (end - begin)
        print(f"  at {passed:4.0%}: said {left:6.0f} s, was {was:6.0f} s, ratio {ratio:.2f}")
    print(f"  largest factor up to 80 %: {worst:.2f}")
    print(f"  first said after {said[0][0] - begin:.0f} s")


def _kind(name: str, units: list[dict[str, Any]]) -> None:
    """A line about units of one kind."""
    estimated, taken = (sum(unit[column] for unit in units) for column in ("estimated_seconds", "seconds"))
    longest = max(unit["seconds"] for unit in units)
    print(
        f"  {name}: {len(units)} units, estimated {estimated / len(units):.1f} s each, "
        f"took {taken / len(units):.1f} (ratio {taken / estimated:.2f}), {longest:.1f} at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", type=Path)
    for directory in parser.parse_args().directories:
        found = turns(directory / "log.jsonl")
        if not found:
            print(f"{directory}: no turn of it went from start to end")
        for turn in found:
            report(str(directory), turn)


if __name__ == "__main__":
    main()
