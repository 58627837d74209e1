"""Units for the loop of ``pipeline.cluster.schedule`` that are ready to be sent out."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cluster.placement import Need
from workers.messages.work import WorkUnit

CPU = Need("cpu", False, 2**20, "m float32")


@dataclass(frozen=True)
class Ready:
    """A unit and where it can run."""

    unit: WorkUnit
    need: Need = CPU
    cost_seconds: float = 1.0
    scout: bool = False

    @property
    def unit_id(self) -> str:
        return self.unit.unit_id


def unwrap(ready: Ready) -> WorkUnit:
    """What ``run_units`` sends out."""
    return ready.unit
