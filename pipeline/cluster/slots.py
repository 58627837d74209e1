"""An actor of the cluster on its seat: what it has, and when it took too long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.placement import Need, Seat
from pipeline.cluster.schedule import Fault
from workers.messages.work import WorkUnit

PLACE_SECONDS = 60.0
"""How long a worker may take to start on a node that should have room; others' work may have it."""


@dataclass(eq=False)
class Slot:
    """One actor: not ready yet, idle, or with one unit in flight."""

    actor: Any
    seat: Seat
    need: Need
    """Of the unit that it has, or had last."""
    pending: Any
    """What is waited for: the reference of its readiness first, then the stream of what it tells of its
    unit."""
    born: float
    unit_id: str | None = None
    unit: WorkUnit | None = None
    """Held until the actor is ready."""
    limit: float = 0.0
    deadline: float = 0.0
    ready: bool = False

    def fault(self, now: float, nodes: Collection[str]) -> Fault | None:
        """Why its unit is given up: its node is none of ``nodes``, it ran past its limit, or it found no
        place. None while it may go on."""
        if self.seat.node_id not in nodes:
            message = f"the node {self.seat.node_id[:12]} it ran on is gone"
            return Fault("NodeDiedError", message, strike=False)

        if self.ready and now > self.deadline:
            message = f"did not end within {self.limit:.0f} s: too slow, or its process or node hangs"
            return Fault("UnitTimeoutError", message)

        if not self.ready and now - self.born > PLACE_SECONDS:
            message = f"no worker could start within {PLACE_SECONDS:.0f} s: the node is busy with other work"
            return Fault("NoCapacity", message, strike=False, started=False)
        return None
