"""``log.jsonl`` of a run directory: what the driver did and
when, one JSON object per line, for machines to read.

An object store cannot append, so there the lines of each minute are an object ``log/TIME-NUMBER.jsonl``.
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.store.place import is_remote
from pipeline.store.run_store import RunStore

LOG_NAME = "log.jsonl"
FLUSH_SECONDS, FLUSH_LINES = 60.0, 1000


class RunLog:
    """``with RunLog(store, run_id) as log: log.write("event", key=value)``."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._lines: list[str] = []
        self._flushed, self._number = time.monotonic(), 0
        self._turn = _now().strftime("%Y%m%dT%H%M%S")
        self._file = None
        if not is_remote(store.directory):
            self._file = (Path(store.directory) / LOG_NAME).open("a", encoding="utf-8")

    def __enter__(self) -> RunLog:
        """Ready since it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left."""
        self.flush()
        if self._file:
            self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """One line; ``values`` must be plain data."""
        line = {
            "time": _now().isoformat(timespec="milliseconds"),
            "run_id": self._run_id,
            "event": event,
        } | values
        self._lines.append(json.dumps(line, allow_nan=False))
        if self._file or len(self._lines) >= FLUSH_LINES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make what was written durable. Raises STORE_ERRORS where that fails."""
        if not self._lines:
            return
        text, self._lines, self._flushed = "".join(f"{line}\n" for line in self._lines), [], time.monotonic()
        if self._file:
            self._file.write(text)
            self._file.flush()
            return
        self._store.put(f"log/{self._turn}-{self._number:05d}.jsonl", text.encode(), overwrite=True)
        self._number += 1


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
