"""Cells done, failed, time left: a live table on a terminal, plain timestamped lines elsewhere. Only the driver draws."""

from __future__ import annotations

import datetime
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

HEARTBEAT_SECONDS, LINE_SECONDS = 30.0, 1.0
"""Without a terminal: a line at least, and at most, this often."""


class Progress:
    """Told of every finished unit, and of what waits; ``left`` gives the estimated seconds that are left.

    A cell is done after the last unit that it missed rows of, and failed where any of them failed. What was complete before is
    not counted, though it may run again as company.
    """

    def __init__(self, missing: Iterable[Collection[str]], left: Callable[[], float | None]) -> None:
        self._units_left = Counter(cell for cells in missing for cell in cells)
        self._failed: set[str] = set()
        self._left = left
        self.cells = len(self._units_left)
        self.done = self.running = self.queued = 0
        self.waiting: Sequence[str] = ()
        self.begin = self.last_line = time.monotonic()
        self._unsaid: str | None = None
        self._console = Console(stderr=True)
        self._live = Live(self._table(), console=self._console, refresh_per_second=2) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        """Start drawing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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

    def finished(self, what: str, cells: Collection[str], failed: Collection[str]) -> None:
        """A unit ended: the cells that missed rows of it, and those that failed."""
        self.running = max(0, self.running - 1)
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
        if self._live:
            self._live.update(self._table())
        elif (waiting and news) or time.monotonic() - self.last_line > HEARTBEAT_SECONDS:
            self._line("working")

    def left(self) -> str:
        """Time left as text."""
        seconds = self._left()
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
        state = f"{self.done}/{self.cells} cells done, {self.failed} failed, {self.running} units running, {self.queued} waiting"
        waits = "".join(f"; {phrase}" for phrase in self.waiting)
        print(f"{now} {what} | {state}, about {self.left()} left{waits}", file=sys.stderr, flush=True)

    def _table(self) -> Table:
        table = Table(title="kvsweep", caption="; ".join(self.waiting) or None)
        row = {
            "cells": str(self.cells), "done": str(self.done), "failed": str(self.failed), "units running": str(self.running),
            "units waiting": str(self.queued), "elapsed": str(datetime.timedelta(seconds=round(time.monotonic() - self.begin))),
            "left (about)": self.left(),
        }  # fmt: skip
        for name in row:
            table.add_column(name, justify="right")
        table.add_row(*row.values())
        return table
