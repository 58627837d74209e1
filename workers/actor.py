"""The Ray wrapper around ``Worker``; the only file of workers that imports ray."""

from __future__ import annotations

import os
import sys

import ray

from workers.work import UnitResult, WorkUnit
from workers.worker import Worker


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One process on one node; restarts and retries are the driver's business, which knows what is already done."""

    def __init__(self, threads: int, folder: str, search_path: tuple[str, ...]) -> None:
        """``folder``: where the driver stands. ``search_path``: the driver's; policies of a user's own are found there, last."""
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path += [entry for entry in search_path if entry not in sys.path]
        self.worker = Worker(threads)

    @ray.method
    def run(self, unit: WorkUnit) -> UnitResult:
        """See ``Worker.run``."""
        return self.worker.run(unit)
