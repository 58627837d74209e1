"""InlineExecutor: every unit in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.placement import Need
from pipeline.schedule import Outcome
from workers.machine import usable_cpus
from workers.work import WorkUnit

if TYPE_CHECKING:
    from workers.worker import Worker


class InlineExecutor:
    """Runs units in this process, one after the other: no Ray, so a debugger works."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or usable_cpus()
        self._worker: Worker | None = None
        self._unit: WorkUnit | None = None
        self.waiting: dict[Need, int] = {}

    def places(self, need: Need) -> int:
        """One unit at a time."""
        return 1

    def has_room(self, need: Need) -> bool:
        """Whether no unit waits already."""
        return self._unit is None

    def submit(self, unit: WorkUnit, need: Need, cost_seconds: float) -> None:
        """Take a unit."""
        self._unit = unit

    def wanted(self, queued: Mapping[Need, int]) -> dict[Need, str]:
        """This process takes everything."""
        return {}

    def wait(self, timeout: float) -> list[Outcome]:
        """Run the unit that waits."""
        from workers.worker import Worker

        unit, self._unit = self._unit, None
        if unit is None:
            return []
        self._worker = self._worker or Worker(self.threads)
        return [Outcome(unit.unit_id, self._worker.run(unit))]

    def close(self) -> None:
        """Forget the model."""
        self._worker = None
