"""InlineExecutor and RayExecutor: the same two methods, the same rows."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.schedule import Fault, Outcome
from workers.work import WorkUnit

if TYPE_CHECKING:
    from workers.worker import Worker

PLACE_SECONDS = 30.0
"""How long a unit waits for an actor on a cluster that cannot grow before it is given up."""
TIMING = "timing"
"""Ray resource of which every node has one: who holds it has the node's clock to itself."""


class InlineExecutor:
    """Runs units in this process, one after the other: no Ray, so a debugger works."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1
        self._worker: Worker | None = None
        self._unit: WorkUnit | None = None

    def submit(self, unit: WorkUnit) -> bool:
        """Take a unit unless one waits already."""
        if self._unit is not None:
            return False
        self._unit = unit
        return True

    def wait(self, timeout: float) -> list[Outcome]:
        """Run the unit that waits."""
        from workers.worker import Worker

        unit, self._unit = self._unit, None
        if unit is None:
            return []
        self._worker = self._worker or Worker(self.threads)
        return [Outcome(unit, self._worker.run(unit))]

    def close(self) -> None:
        """Forget the model."""
        self._worker = None


@dataclass
class _Slot:
    """One actor: not ready yet, idle, or with one unit in flight."""

    actor: Any
    shape: tuple[str, bool]
    pending: Any
    """The reference being waited for: readiness first, then the unit's result."""
    unit: WorkUnit | None = None
    ready: bool = False
    born: float = 0.0


class RayExecutor:
    """One pool of actors per resource shape, one call in flight per actor; the driver decides about retries."""

    def __init__(self, address: str = "local", threads: int = 1) -> None:
        self.threads = threads
        self.ray = start_ray(address)
        self._slots: list[_Slot] = []
        self._refused: list[Outcome] = []
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self._nodes = nodes

    def submit(self, unit: WorkUnit) -> bool:
        """Give the unit to an idle actor of its shape, or start one; False where all are busy."""
        shape = (unit.device, unit.task == "generation")
        if self._capacity(shape) == 0:
            self._refused.append(Outcome(unit, Fault("NoCapacity", self._no_capacity(shape), final=True)))
            return True
        mine = [slot for slot in self._slots if slot.shape == shape]
        idle = [slot for slot in mine if slot.unit is None]
        if not idle:
            if len(mine) >= self._capacity(shape):
                return False
            others_busy = any(slot.unit for slot in self._slots if slot.shape != shape)
            if (shape[1] or any(slot.shape[1] for slot in self._slots)) and others_busy:
                return False  # timing has the machine to itself: wait until the other kind is done
            for slot in [slot for slot in self._slots if slot.shape != shape and slot.unit is None]:
                self._drop(slot)
            idle = [self._start(shape)]
        slot = min(idle, key=lambda s: s.ready is False)
        slot.unit = unit
        if slot.ready:
            slot.pending = slot.actor.run.remote(unit)
        return True

    def wait(self, timeout: float) -> list[Outcome]:
        """Results, deaths, and units that found no place."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        waiting = {slot.pending: slot for slot in self._slots if slot.unit is not None}
        if not waiting:
            time.sleep(min(timeout, 0.05))
            return []
        done, rest = self.ray.wait(list(waiting), num_returns=1, timeout=timeout)
        if rest:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        outcomes = [outcome for ref in done if (outcome := self._collect(waiting[ref]))]
        return outcomes + self._overdue()

    def close(self) -> None:
        """End all actors and the connection."""
        for slot in list(self._slots):
            self._drop(slot)
        self.ray.shutdown()

    def _collect(self, slot: _Slot) -> Outcome | None:
        unit = slot.unit
        assert unit is not None
        try:
            value = self.ray.get(slot.pending)
        except self.ray.exceptions.RayError as error:  # dead actor or node, out of memory, lost object: all end the actor
            self._drop(slot)
            return Outcome(unit, Fault(type(error).__name__, _first_line(error), strike="its node has died" not in str(error)))
        if not slot.ready:
            slot.ready = True
            slot.pending = slot.actor.run.remote(unit)
            return None
        slot.unit = None
        return Outcome(unit, value)

    def _overdue(self) -> list[Outcome]:
        """Units whose actor found no place in time."""
        late = [s for s in self._slots if s.unit and not s.ready and time.monotonic() - s.born > PLACE_SECONDS]
        outcomes = []
        for slot in late:
            assert slot.unit is not None
            message = f"no actor for {_describe(slot.shape)} could start within {PLACE_SECONDS:.0f} s; the cluster is busy"
            outcomes.append(Outcome(slot.unit, Fault("NoCapacity", message)))
            self._drop(slot)
        return outcomes

    def _start(self, shape: tuple[str, bool]) -> _Slot:
        from workers.actor import WorkerActor

        device, timing = shape
        threads = self._timing_threads() if timing else self.threads
        options: dict[str, Any] = {"num_cpus": threads, "num_gpus": 1 if device == "cuda" else 0}
        if timing:
            options["resources"] = {TIMING: 1}
        actor: Any = WorkerActor.options(**options).remote(threads)  # Any: __ray_ready__ is not in Ray's types
        slot = _Slot(actor, shape, actor.__ray_ready__.remote(), born=time.monotonic())
        self._slots.append(slot)
        return slot

    def _drop(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        self.ray.kill(slot.actor)

    def _timing_threads(self) -> int:
        return int(min(node.get("CPU", 1) for node in self._nodes if node.get(TIMING)))

    def _capacity(self, shape: tuple[str, bool]) -> int:
        """How many actors of a shape the nodes can hold at once."""
        device, timing = shape
        total = 0
        for node in self._nodes:
            places = int(node.get(TIMING, 0)) if timing else int(node.get("CPU", 0) // self.threads)
            if device == "cuda":
                places = min(places, int(node.get("GPU", 0)))
            total += places
        return total

    def _no_capacity(self, shape: tuple[str, bool]) -> str:
        has = "; ".join(", ".join(f"{k} {v:g}" for k, v in sorted(n.items()) if ":" not in k) for n in self._nodes)
        hint = " Start nodes with --resources='{\"timing\": 1}'." if shape[1] else ""
        return f"no node of this cluster can ever hold {_describe(shape)} (nodes have: {has}).{hint}"


def _describe(shape: tuple[str, bool]) -> str:
    return f"a {shape[0]} worker{' with a timing slot' if shape[1] else ''}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__


def start_ray(address: str) -> Any:
    """Ray, started here (``local``) or joined (``auto``, HOST:PORT), quiet and with token authentication on.

    Raises ConnectionError where there is no cluster to join.
    """
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_DEDUP_LOGS": "0",
    }.items():  # fmt: skip
        os.environ.setdefault(key, value)
    os.environ["RAY_AUTH_MODE"] = "token"  # whatever the environment says: Ray listens on all interfaces
    if address == "local" and "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for this run only; nothing is written to the home directory
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    if address == "local":
        ray.init("local", num_cpus=os.cpu_count(), resources={TIMING: 1}, object_store_memory=400_000_000, **options)
    else:
        options.pop("include_dashboard")
        ray.init(None if address == "auto" and "RAY_ADDRESS" in os.environ else address, **options)
    return ray
