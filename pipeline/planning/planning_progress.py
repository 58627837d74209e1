"""What planning is at, on stderr, where it takes longer than a
moment: a line that is rewritten, or one every few seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

QUIET_SECONDS = 2.0
"""Plans that are made sooner say nothing."""
REWRITE_SECONDS, LINE_SECONDS = 0.5, 5.0
"""Between two looks: on a terminal, where one line is rewritten, and elsewhere."""
CLEAR = "\r\x1b[K"


class PlanningProgress:
    """Told by ``now`` what is being done; a thread looks and says it, so planning itself stops for
    nothing."""

    def __init__(self, quiet: float = QUIET_SECONDS, every: float | None = None) -> None:
        self._quiet = quiet
        self._every = every
        self._what: str = "the sweep file"
        self._count: Callable[[], int] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def now(self, what: str, count: Callable[[], int] | None = None) -> None:
        """What begins, and how much of it is done at any moment."""
        self._what, self._count = what, count

    def __enter__(self) -> PlanningProgress:
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="planning-progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        rewrites = sys.stderr.isatty()
        every = self._every or (REWRITE_SECONDS if rewrites else LINE_SECONDS)
        said = False
        wait = self._quiet
        while not self._ended.wait(wait):
            said, wait = True, every
            _write(f"{CLEAR}{self._line()}" if rewrites else f"{self._line()}\n")
        if said and rewrites:
            _write(CLEAR)

    def _line(self) -> str:
        count = f": {self._count():,}" if self._count else ""
        return f"planning, {time.monotonic() - self._begin:.0f} s: {self._what}{count}"


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # closed, or full: nothing to say it to
        pass


SILENT = PlanningProgress()
"""Never entered, so it never says anything."""
