"""InlineExecutor: every unit in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.cluster.placement import Need
from pipeline.cluster.schedule import Hear, Outcome, nobody
from workers.machine.host import usable_cpus
from workers.messages.telling import News
from workers.messages.work import WorkUnit

if TYPE_CHECKING:
    from workers.worker import Worker


class InlineExecutor:
    """Runs units in this process, one after the other: no Ray, so a debugger works."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or usable_cpus()
        self._worker: Worker | None = None
        self._unit: WorkUnit | None = None
        self.waiting: dict[Need, int] = {}
        self.hear: Hear = nobody

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
        faults: list[Exception] = []

        def tell(news: News) -> None:
            """What goes wrong here, such as a full disk, is no fault of the cell at hand: it waits until the
            unit has ended."""
            try:
                if not faults:
                    self.hear(unit.unit_id, news)
            except Exception as error:
                faults.append(error)

        result = self._worker.run(unit, tell)
        if faults:
            raise faults[0]
        return [Outcome(unit.unit_id, result)]

    def close(self) -> None:
        """Forget the model."""
        self._worker = None
