"""Work and cells done, failed, the cell at hand, time left: a
live table on a terminal, plain timestamped lines elsewhere.

Only the driver draws. Work is counted by its estimated seconds, also inside units that go on.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.driving.streams import plain
from pipeline.driving.time_left import TimeLeft

SHOWN = 2
"""Units of which a line says what they are at."""
HEARTBEAT_SECONDS, LINE_SECONDS = 10.0, 1.0
"""Without a terminal: a line at least, and at most, this often."""
REDRAW_SECONDS = 0.5
"""On a terminal, where the table is made anew at most so often."""


class Progress:
    """Told of every finished unit, of what units are at, and of
    what waits; ``time_left`` knows the work that is done.

    A cell is done after the last unit that it missed rows of, and failed where any of them failed. What was
    complete before is not counted, though it may run again as company.
    """

    def __init__(self, missing: Iterable[Collection[str]], time_left: TimeLeft) -> None:
        self._units_left = Counter(cell for cells in missing for cell in cells)
        self._failed: set[str] = set()
        self._time_left = time_left
        self._doing: dict[str, str] = {}
        self.cells = len(self._units_left)
        self.done = self.running = self.queued = 0
        self.waiting: Sequence[str] = ()
        self.begin = self.last_line = self._drawn = time.monotonic()

        self._unsaid: str | None = None
        self._stream = sys.stderr  # the harness's tasks redirect it while they run in this process
        self._console = Console(file=self._stream)
        self._live = (
            Live(self._table(), console=self._console, refresh_per_second=2) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> Progress:
        """Start drawing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, leave the last state."""
        if self._live:
            self._live.update(self._table())
            self._live.stop()
        elif self._unsaid:
            self._line(self._unsaid)

    @property
    def failed(self) -> int:
        """Cells that failed so far."""
        return len(self._failed)

    def moved(self, unit_id: str, what: str, doing: str) -> None:
        """What a unit that goes on is at."""
        self._doing[unit_id] = plain(f"{what}: {doing}" if doing else what)
        self._show()

    def stopped(self, unit_id: str) -> None:
        """A unit does not go on."""
        self._doing.pop(unit_id, None)

    def finished(self, unit_id: str, what: str, cells: Collection[str], failed: Collection[str]) -> None:
        """A unit ended: the cells that missed rows of it, and those that failed."""
        self.running = max(0, self.running - 1)
        self.stopped(unit_id)
        for cell in failed:
            if cell not in self._failed:
                self._failed.add(cell)
                self.done -= self._units_left[cell] == 0
        for cell in cells:
            self._units_left[cell] -= 1
            self.done += self._units_left[cell] == 0 and cell not in self._failed
        self._say(f"{what}: a unit of {len(cells)} cells" + (f", {len(failed)} failed" if failed else ""))

    def tick(self, queued: int, running: int, waiting: Sequence[str] = ()) -> None:
        """Called at least every second; ``waiting`` says what there is no place for."""
        news = self.waiting != waiting
        self.queued, self.running, self.waiting = queued, running, waiting
        self._show(at_once=bool(waiting) and news)

    def _show(self, *, at_once: bool = False) -> None:
        if self._live:
            if at_once or time.monotonic() - self._drawn > REDRAW_SECONDS:
                self._drawn = time.monotonic()
                self._live.update(self._table())
        elif at_once or time.monotonic() - self.last_line > HEARTBEAT_SECONDS:
            self._line(self._at_hand() or "working")

    def _at_hand(self) -> str:
        """What units that go on are at."""
        return "; ".join(list(self._doing.values())[:SHOWN])

    def left(self) -> str:
        """Time left as text."""
        seconds = self._time_left.seconds()
        return "-" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))

    def _say(self, what: str) -> None:
        if self._live:
            return
        if time.monotonic() - self.last_line < LINE_SECONDS:
            self._unsaid = what
        else:
            self._line(what)

    def _line(self, what: str) -> None:
        self.last_line, self._unsaid = time.monotonic(), None
        now = datetime.datetime.now().strftime("%H:%M:%S")
        state = (
            f"{self._time_left.share():.0%} of the work, {self.done}/{self.cells} cells done, "
            f"{self.failed} failed, {self.running} units running, {self.queued} waiting"
        )
        waits = "".join(f"; {phrase}" for phrase in self.waiting)
        print(f"{now} {what} | {state}, about {self.left()} left{waits}", file=self._stream, flush=True)

    def _table(self) -> Table:
        table = Table(
            title="kvsweep",
            caption="; ".join(part for part in (*self.waiting, self._at_hand()) if part) or None,
        )

        elapsed = datetime.timedelta(seconds=round(time.monotonic() - self.begin))
        row = {
            "work": f"{self._time_left.share():.0%}",
            "cells": str(self.cells),
            "done": str(self.done),
            "failed": str(self.failed),
            "units running": str(self.running),
            "units waiting": str(self.queued),
            "elapsed": str(elapsed),
            "left (about)": self.left(),
        }

        for name in row:
            table.add_column(name, justify="right")
        table.add_row(*row.values())
        return table
