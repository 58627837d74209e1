"""How right the time left was: from the logs of finished runs, what was said at each tenth of a run against what it then took,
and what each kind of unit took against its estimate.

    python -m benchmarks.time_left DIR [DIR ...]

The aim: within a factor of 2 from a tenth of a run on, also where its units are of many kinds, and so for each kind of unit.
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
    begin, end = (datetime.datetime.fromisoformat(turn[i]["time"]).timestamp() for i in (0, -1))
    said = [
        (datetime.datetime.fromisoformat(line["time"]).timestamp(), line["left_seconds"])
        for line in turn
        if line["event"] in ("unit", "news") and line["left_seconds"]
    ]
    kinds = {(line["task"], line["model"]) for line in turn if line["event"] == "unit"}
    units = sum(line["event"] == "unit" for line in turn)
    print(f"{name}: {units} units of {len(kinds)} kinds in {end - begin:.0f} s")
    worst = 1.0
    for tenth in range(1, 10):
        at = begin + (end - begin) * tenth / 10
        now, left = min(said, key=lambda pair: abs(pair[0] - at))
        ratio = left / max(end - now, 1e-9)
        worst = max(worst, ratio, 1 / ratio) if tenth < 9 else worst
        print(f"  at {(now - begin) / (end - begin):4.0%}: said {left:6.0f} s, was {end - now:6.0f} s, ratio {ratio:.2f}")
    print(f"  largest factor up to 80 %: {worst:.2f}")
    print(f"  first said after {said[0][0] - begin:.0f} s")
    for task, model in sorted(kinds):
        own = [line for line in turn if line["event"] == "unit" and (line["task"], line["model"]) == (task, model)]
        estimated, taken = (sum(line[name] for line in own) for name in ("estimated_seconds", "seconds"))
        longest = max(line["seconds"] for line in own)
        print(
            f"  {task} {model}: {len(own)} units, estimated {estimated / len(own):.1f} s each, took {taken / len(own):.1f} "
            f"(ratio {taken / estimated:.2f}), {longest:.1f} at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path)
    for directory in parser.parse_args().directories:
        for turn in turns(directory / "log.jsonl"):
            report(str(directory), turn)


if __name__ == "__main__":
    main()
