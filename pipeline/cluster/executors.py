"""RayExecutor: actors on the nodes of a Ray cluster, and how Ray is started or joined.

``inline`` has the same methods.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.cluster.cluster_head import (
    ClusterLostError,
    HeadWatch,
    at_most,
    first_line,
    prepare_environment,
    start_or_join,
)
from pipeline.cluster.living_nodes import is_node_lost, living_nodes
from pipeline.cluster.node_types import node_types
from pipeline.cluster.placement import UNSAID, Fleet, Need, Seat
from pipeline.cluster.schedule import Fault, Hear, Outcome, nobody
from pipeline.cluster.slots import PLACE_SECONDS, Slot
from pipeline.cluster.waiting import Patience, Waiting
from workers.machine.gpus import gpu_memory_bytes
from workers.messages.telling import News
from workers.messages.work import UnitResult, WorkUnit

REFRESH_SECONDS, LOOK_SECONDS = 5.0, 0.2
"""How often the cluster is asked which nodes it has, and how often it is considered what has no place."""
SHUTDOWN_SECONDS = 8.0
MANY = 8
"""With fewer calls in flight, looking for more that have ended costs more than it gives."""
TIMING = "timing"
"""Ray resource of which every node has one: who holds it has the node's clock to itself."""


class RayExecutor:
    """One actor per seat, one call in flight per actor; the driver decides about places and retries.

    Each actor is bound to the node whose seat it takes, so that what a node holds is known without asking.
    ``unit_timeout``: seconds after which a unit is ended, by default many times its estimate.
    """

    def __init__(
        self,
        address: str = "local",
        threads: int = 1,
        unit_timeout: float | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.threads = threads
        self.unit_timeout = unit_timeout
        self.ray = start_ray(address)
        self._head = HeadWatch(self.ray.get_runtime_context().gcs_address)
        self._slots: list[Slot] = []
        self._idle: list[Slot] = []
        self._full: set[Need] = set()
        self._avoid: dict[str, float] = {}
        self._gpu_memory: dict[str, int | None] = {}
        self._asked: list[dict[str, float]] = []

        self._local = address == "local"
        self._kinds = None if self._local else node_types()
        self.fleet = Fleet(threads=threads)
        patience = patience or Patience(0.0 if self._local else 30.0)
        self._waiting = Waiting(self.fleet, self._kinds, patience)
        self.hear: Hear = nobody
        self._refreshed = self._checked = self._looked = 0.0
        self._refresh()

    @property
    def waiting(self) -> dict[Need, int]:
        """How many units wait for a place of which there is none now."""
        return self._waiting.counts

    def places(self, need: Need) -> int:
        """How many workers for this need the nodes that are there could hold."""
        return self.fleet.places(need)

    def has_room(self, need: Need) -> bool:
        """Whether an idle actor suits, or there is a seat for a new one."""
        if need.device == "cuda":
            self._measure_gpus()
        if need in self._full:
            return False
        if any(slot.seat.suits(need) for slot in self._idle) or self.fleet.find(need):
            return True
        self._full.add(need)
        return False

    def submit(self, unit: WorkUnit, need: Need, cost_seconds: float) -> None:
        """Give the unit to an idle actor, one that has its model if there is one, or start an actor for
        it."""
        idle = [slot for slot in self._idle if slot.seat.suits(need)]
        if idle:
            slot = next((slot for slot in idle if slot.need.model == need.model), idle[0])
            self._idle.remove(slot)
        else:
            seat = self.fleet.find(need)
            assert seat is not None, "submit without room"
            slot = self._start(seat, need)

        slot.unit_id, slot.need = unit.unit_id, need
        slot.limit = self.unit_timeout or max(1800.0, 50 * cost_seconds)
        if slot.ready:
            self._send(slot, unit)
        else:
            slot.unit = unit

    def wanted(self, queued: Mapping[Need, int]) -> dict[Need, str]:
        """End the actors that nothing which waits can use, ask an
        autoscaler for what is missing; see ``Executor.wanted``."""
        for slot in list(self._idle):
            self._drop(slot)
        keep_for_gpus = any(need.device == "cuda" for need in queued)
        if keep_for_gpus != self.fleet.keep_for_gpus:
            self.fleet.keep_for_gpus = keep_for_gpus
            self._full.clear()  # what had no place while CPUs were kept may have one now

        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS and self._slots:
            return {}
        self._looked = now
        if now - self._refreshed > REFRESH_SECONDS:
            self._refresh()

        served = {need for need in queued if any(slot.seat.suits(need) for slot in self._slots)}
        never = self._waiting.look(queued, served)
        if self._kinds is not None or self._waiting.patience.unknown_types:
            busy = Counter(slot.need for slot in self._slots)
            self._ask_for(self._waiting.bundles(self.threads, Counter(queued) + busy))
        return never

    def wait(self, timeout: float) -> list[Outcome]:
        """Results, deaths, and units that took too long or found no place."""
        pending = {slot.pending: slot for slot in self._slots if slot.unit_id is not None}
        if not pending:
            time.sleep(min(timeout, 0.2))
            return []
        done, rest = self.ray.wait(list(pending), num_returns=1, timeout=timeout)
        if len(rest) >= MANY:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        outcomes = [outcome for ref in done if (outcome := self._collect(pending[ref]))]
        return outcomes + self._overdue()

    def close(self) -> None:
        """End all actors and the connection."""
        for slot in list(self._slots):
            self._drop(slot)
        self._ask_for([])
        with at_most(SHUTDOWN_SECONDS):
            self.ray.shutdown()

    def _send(self, slot: Slot, unit: WorkUnit) -> None:
        slot.pending, slot.unit = slot.actor.run.remote(unit), None
        slot.deadline = time.monotonic() + slot.limit

    def _collect(self, slot: Slot) -> Outcome | None:
        unit_id = slot.unit_id
        assert unit_id is not None
        try:
            value: News | UnitResult = self.ray.get(next(slot.pending) if slot.ready else slot.pending)
        except StopIteration:
            self._drop(slot)
            fault = Fault("ActorDiedError", "its worker ended without a result", node=self._host(slot))
            return Outcome(unit_id, fault)
        except self.ray.exceptions.RayError as error:
            return Outcome(unit_id, self._death(slot, error))

        if not slot.ready:
            slot.ready = True
            assert slot.unit is not None
            self._send(slot, slot.unit)
            return None
        if isinstance(value, News):
            self.hear(unit_id, value)
            return None
        slot.unit_id = None
        self._idle.append(slot)
        self._full.clear()
        return Outcome(unit_id, value)

    def _death(self, slot: Slot, error: Exception) -> Fault:
        """Dead actor or node, out of memory, lost object: all end the actor."""
        self._drop(slot)
        host = self._host(slot)
        is_lost = is_node_lost(self.ray, slot.seat.node_id, error)
        if is_lost:  # before Ray lists it as dead it would fail everything that waits, in no time
            self._shun(slot.seat.node_id)
        return Fault(type(error).__name__, first_line(error), strike=not is_lost, node=host)

    def _overdue(self) -> list[Outcome]:
        """Units whose node is gone, whose actor found no place in time, and those that ran past their
        limit."""
        now = time.monotonic()
        if now - self._checked < 1:
            return []
        self._checked = now
        if now - self._refreshed > REFRESH_SECONDS:
            self._refresh()

        outcomes = []
        for slot in [slot for slot in self._slots if slot.unit_id is not None]:
            fault = slot.fault(now, self.fleet.nodes)
            if fault is None:
                continue
            if not fault.started:  # its actor found no place
                self._shun(slot.seat.node_id)
            assert slot.unit_id is not None
            outcomes.append(Outcome(slot.unit_id, replace(fault, node=self._host(slot))))
            self._drop(slot)
        return outcomes

    def _host(self, slot: Slot) -> str:
        node = self.fleet.nodes.get(slot.seat.node_id)
        return node.host if node else slot.seat.node_id[:12]

    def _shun(self, node_id: str) -> None:
        """Start nothing on a node for a while."""
        self._avoid[node_id] = time.monotonic() + PLACE_SECONDS
        self.fleet.avoid = {*self.fleet.avoid, node_id}
        self._refresh()

    def _start(self, seat: Seat, need: Need) -> Slot:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {"num_cpus": seat.cpus, "num_gpus": seat.gpus}
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(seat.node_id, soft=False)
        if self.fleet.nodes[seat.node_id].memory < UNSAID:
            options["memory"] = seat.memory
        if seat.timed:
            options["resources"] = {TIMING: 1}
        actor = self._new_actor(options, int(seat.cpus))
        slot = Slot(actor, seat, need, actor.__ray_ready__.remote(), time.monotonic())
        self._slots.append(slot)
        self.fleet.take(seat)
        return slot

    def _drop(self, slot: Slot) -> None:
        self._slots.remove(slot)
        if slot in self._idle:
            self._idle.remove(slot)
        self.fleet.free(slot.seat)
        self._full.clear()
        self._end_actor(slot.actor)

    def _new_actor(
        self, options: dict[str, Any], threads: int
    ) -> Any:  # Any: __ray_ready__ is not in Ray's types
        from workers.actor import WorkerActor

        return WorkerActor.options(**options).remote(threads, os.getcwd(), tuple(sys.path))

    def _end_actor(self, actor: Any) -> None:
        self.ray.kill(actor)

    def _refresh(self) -> None:
        """Look which nodes there are, and where a worker has just found no place. Raises ClusterLostError."""
        self._refreshed = time.monotonic()
        if not self._head.answers():
            return
        self._avoid = {node: until for node, until in self._avoid.items() if until > self._refreshed}
        nodes = living_nodes(self.ray, self._gpu_memory)
        if self._local and not nodes:
            raise ClusterLostError(
                "Ray's process on this machine (raylet) was ended, perhaps for lack of memory"
            )

        if (nodes, set(self._avoid)) != (self.fleet.nodes, self.fleet.avoid):
            self._full.clear()
        self.fleet.nodes, self.fleet.avoid = nodes, set(self._avoid)

    def _measure_gpus(self) -> None:
        """Ask each node with GPUs once how much memory one has, all nodes at the same time."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        new = [name for name, node in self.fleet.nodes.items() if node.gpus and name not in self._gpu_memory]
        if not new:
            return
        ask = self.ray.remote(num_cpus=0)(gpu_memory_bytes)
        there = {name: NodeAffinitySchedulingStrategy(name, soft=False) for name in new}
        asked = [ask.options(scheduling_strategy=there[name]).remote() for name in new]

        done, _ = self.ray.wait(asked, num_returns=len(asked), timeout=30)
        for name, answer in zip(new, asked, strict=True):
            self._gpu_memory[name] = None
            # A node that cannot tell gives whole GPUs.
            with contextlib.suppress(self.ray.exceptions.RayError):
                self._gpu_memory[name] = self.ray.get(answer) if answer in done else None
        self._refresh()

    def _ask_for(self, bundles: list[dict[str, float]]) -> None:
        """Tell the autoscaler what waits; it keeps that until it is told otherwise."""
        if bundles != self._asked:
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=bundles)
            self._asked = bundles


def start_ray(address: str) -> Any:
    """Ray, started here (``local``) or joined (``auto``, HOST:PORT), quiet and with token authentication on.

    Raises ConnectionError where there is no cluster to join, ClusterLostError where none can be started.
    """
    prepare_environment(address)
    import ray

    if not ray.is_initialized():
        start_or_join(ray, address, {TIMING: 1})
    return ray
