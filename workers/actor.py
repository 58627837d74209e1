"""The Ray wrapper around ``Worker``; the only file of workers that imports ray."""

from __future__ import annotations

import ray

from workers.work import UnitResult, WorkUnit
from workers.worker import Worker


@ray.remote(max_restarts=0, max_task_retries=0)
class WorkerActor:
    """One process on one node; restarts and retries are the driver's business, which knows what is already done."""

    def __init__(self, threads: int) -> None:
        self.worker = Worker(threads)

    @ray.method
    def run(self, unit: WorkUnit) -> UnitResult:
        """See ``Worker.run``."""
        return self.worker.run(unit)
