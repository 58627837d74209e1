"""``python -m tools.bars``: how the code reads, beside what is allowed. Exit status 1: a bar is broken."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.bars.frames import ROOT, SWEEPS, longest_walk
from tools.bars.syntax import BREATH, Source, measured

CORE = ("kvsweep", "pipeline", "workers", "analysis")
MOST_NODES_OF_NINE_IN_TEN = 250
MOST_DENSITY = 11.0
MOST_FUNCTION_LINES = 60
MOST_FILE_LINES = 320
WIDEST_LINE = 110
MOST_CALLS = 15


@dataclass(frozen=True)
class Bar:
    """One measure of one thing, beside what it may be at most."""

    of: str
    measure: str
    value: float
    most: float
    worst: str = ""
    """What has that value, where it is one of many."""

    @property
    def holds(self) -> bool:
        """Whether the value is allowed."""
        return self.value <= self.most

    def __str__(self) -> str:
        """As a line of the table."""
        mark = "" if self.holds else "  <-- too much"
        return f"{self.of:12} {self.measure:36} {self.value:7.4g} (at most {self.most:g}) {self.worst}{mark}"


def of_source(package: str, source: Source) -> Iterator[Bar]:
    """The bars of a package's source."""
    longest = max(source.function_lines, key=source.function_lines.__getitem__)
    largest = max(source.file_lines, key=source.file_lines.__getitem__)
    yield Bar(package, "nodes of nine functions in ten", source.p90, MOST_NODES_OF_NINE_IN_TEN)
    yield Bar(package, "nodes a line of code", source.density, MOST_DENSITY)
    yield Bar(package, "lines of a function", source.function_lines[longest], MOST_FUNCTION_LINES, longest)
    yield Bar(package, "lines of a file", source.file_lines[largest], MOST_FILE_LINES, largest)
    yield Bar(package, "columns of a line", source.widest_line, WIDEST_LINE)
    worst = source.breathless[0] if source.breathless else ""
    yield Bar(package, f"functions of {BREATH} lines in one piece", len(source.breathless), 0, worst)


def of_walks() -> Iterator[Bar]:
    """The bars of the ways from the command to a policy's score."""
    for name, blocks in SWEEPS.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            walk = longest_walk(blocks, Path(folder))
        yield Bar(name, "calls from kvsweep run to the score", len(walk), MOST_CALLS)


def main() -> int:
    """Print every bar."""
    bars = [bar for package in CORE for bar in of_source(package, measured(ROOT, [package]))]
    bars += of_walks()
    print("\n".join(map(str, bars)))
    broken = sum(not bar.holds for bar in bars)
    print(f"{len(bars)} bars, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
