"""Cells done, failed, time left: a live table on a terminal, plain timestamped lines elsewhere. Only the driver draws."""

from __future__ import annotations

import datetime
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

HEARTBEAT_SECONDS = 30.0


class Progress:
    """Told of every finished unit; ``cost`` is the plan's estimate, from which the time left is scaled.

    A cell is done after the last unit that it missed rows of, and failed where any of them failed. What was complete before is
    not counted, though it may run again as company.
    """

    def __init__(self, missing: Iterable[Collection[str]], cost: float) -> None:
        self._units_left = Counter(cell for cells in missing for cell in cells)
        self._failed: set[str] = set()
        self.cells, self.cost = len(self._units_left), cost
        self.done = self.running = self.queued = 0
        self.cost_done = 0.0
        self.begin = self.last_line = time.monotonic()
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

    @property
    def failed(self) -> int:
        """Cells that failed so far."""
        return len(self._failed)

    def finished(self, what: str, cells: Collection[str], failed: Collection[str], cost: float) -> None:
        """A unit ended: the cells that missed rows of it, those that failed, and what the plan had estimated for it."""
        self.running = max(0, self.running - 1)
        self._failed.update(failed)
        self._units_left.subtract(cells)
        self.done = sum(left == 0 and cell not in self._failed for cell, left in self._units_left.items())
        self.cost_done += cost
        self._say(f"{what}: a unit of {len(cells)} cells" + (f", {len(failed)} failed" if failed else ""))

    def tick(self, queued: int, running: int) -> None:
        """Called at least every second."""
        self.queued, self.running = queued, running
        if self._live:
            self._live.update(self._table())
        elif time.monotonic() - self.last_line > HEARTBEAT_SECONDS:
            self._say("working")

    def left(self) -> str:
        """Time left as text, from the share of the estimated cost that is done."""
        if self.cost_done <= 0 or self.cost_done >= self.cost:
            return "-"
        elapsed = time.monotonic() - self.begin
        return str(datetime.timedelta(seconds=round(elapsed * (self.cost - self.cost_done) / self.cost_done)))

    def _say(self, what: str) -> None:
        self.last_line = time.monotonic()
        if self._live:
            return
        now = datetime.datetime.now().strftime("%H:%M:%S")
        state = f"{self.done}/{self.cells} cells done, {self.failed} failed, {self.running} units running, {self.queued} waiting"
        print(f"{now} {what} | {state}, about {self.left()} left", file=sys.stderr, flush=True)

    def _table(self) -> Table:
        table = Table(title="kvsweep")
        row = {
            "cells": str(self.cells), "done": str(self.done), "failed": str(self.failed), "units running": str(self.running),
            "units waiting": str(self.queued), "elapsed": str(datetime.timedelta(seconds=round(time.monotonic() - self.begin))),
            "left (about)": self.left(),
        }  # fmt: skip
        for name in row:
            table.add_column(name, justify="right")
        table.add_row(*row.values())
        return table
