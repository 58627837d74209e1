"""The Ray wrapper around ``Worker``; the only file of workers that imports ray."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ray

from workers.messages.telling import News
from workers.messages.work import UnitResult, WorkUnit
from workers.worker import Worker


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One process on one node; restarts and retries are the driver's business, which knows what is done."""

    def __init__(self, threads: int, folder: str, search_path: tuple[str, ...]) -> None:
        """``folder``: where the driver stands. ``search_path``: the driver's; policies of a user's own are
        found there, last."""
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path += [entry for entry in search_path if entry not in sys.path]
        self._thread = ThreadPoolExecutor(1, "unit")
        self._worker = self._thread.submit(Worker, threads).result()

    @ray.method(num_returns="streaming")
    def run(self, unit: WorkUnit) -> Iterator[News | UnitResult]:
        """What ``Worker.run`` tells while it goes on, and its result last.

        It works in a thread of its own, always the same one, because a stream can only be fed from where it
        was begun and what is told comes from deep inside a unit.
        """
        told: queue.SimpleQueue[News | None] = queue.SimpleQueue()
        work = self._thread.submit(self._worker.run, unit, told.put)
        work.add_done_callback(lambda _: told.put(None))
        while (news := told.get()) is not None:
            yield news
        yield work.result()
