"""The pure loop over submit and wait: keeps the executor full, repeats infrastructure faults only, gives up on poison units."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pipeline.placement import Need
from workers.work import Failure, UnitResult, WorkUnit

MAX_ATTEMPTS = 2
"""Tries of a unit whose own process keeps dying."""
MAX_STARTS = 5
"""Starts of a unit in all, so that one which takes its whole node down each time ends too."""


@dataclass(frozen=True)
class Fault:
    """What ended a unit from outside: a dead process or node, a time limit, or no place to run."""

    error_type: str
    message: str
    strike: bool = True
    """Whether it counts against the unit; the death of a whole node does not."""
    started: bool = True
    """Whether the unit ran at all. One that found no place just waits again."""


@dataclass(frozen=True)
class Outcome:
    """One unit that ended: a result, or the fault that ended it."""

    unit_id: str
    result: UnitResult | Fault


class Unit(Protocol):
    """What the loop knows of a unit before it is sent out."""

    @property
    def unit_id(self) -> str:
        """Its name."""
        ...

    @property
    def need(self) -> Need:
        """Where it can run."""
        ...

    @property
    def cost_seconds(self) -> float:
        """Estimated, for its time limit."""
        ...


class _Named(Protocol):
    @property
    def cell_id(self) -> str: ...


class Executor(Protocol):
    """Where units run."""

    def has_room(self, need: Need) -> bool:
        """Whether a unit with this need can start now."""
        ...

    def submit(self, unit: WorkUnit, need: Need, cost_seconds: float) -> None:
        """Start a unit for which there is room."""
        ...

    def wanted(self, queued: Mapping[Need, int]) -> Mapping[Need, str]:
        """Told what waits, after all that has room was submitted. Returns the needs that will never be met, and why."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call; waits up to ``timeout`` seconds for the first."""
        ...


U = TypeVar("U", bound=Unit)


@dataclass(frozen=True)
class Retry:
    """A unit that goes back into the queue, told to whoever keeps the log."""

    unit_id: str
    fault: Fault
    starts: int


def run_units(
    units: Iterable[U],
    executor: Executor,
    prepare: Callable[[U], WorkUnit],
    on_result: Callable[[U, UnitResult, int], None],
    on_tick: Callable[[int, int], None] = lambda queued, running: None,
    on_retry: Callable[[Retry], None] = lambda retry: None,
) -> None:
    """Run all units; ``on_result(unit, result, starts)`` once for each, ``on_tick(queued, running)`` at least every second.

    Units of one need run in order, and needs in the order in which they first come. ``prepare`` is called as a unit is sent out,
    so that only those that run are in memory whole. A unit that ends in faults MAX_ATTEMPTS times is a result with one failure
    per cell; the rest goes on.
    """
    queues: dict[Need, deque[U]] = {}
    for unit in units:
        queues.setdefault(unit.need, deque()).append(unit)
    running: dict[str, U] = {}
    attempts: Counter[str] = Counter()
    starts: Counter[str] = Counter()

    def settle(outcome: Outcome) -> None:
        unit, result = running.pop(outcome.unit_id), outcome.result
        if isinstance(result, Fault):
            attempts[unit.unit_id] += result.strike
            starts[unit.unit_id] += result.started
            if attempts[unit.unit_id] < MAX_ATTEMPTS and starts[unit.unit_id] < MAX_STARTS:
                queues[unit.need].appendleft(unit)
                on_retry(Retry(unit.unit_id, result, starts[unit.unit_id]))
                return
            result = gave_up(prepare(unit).cells, result)
        else:
            starts[unit.unit_id] += 1
        on_result(unit, result, starts.pop(unit.unit_id))
        attempts.pop(unit.unit_id, None)

    while running or any(queues.values()):
        for need, queue in queues.items():
            while queue and executor.has_room(need):
                unit = queue.popleft()
                running[unit.unit_id] = unit
                executor.submit(prepare(unit), need, unit.cost_seconds)
        never = executor.wanted({need: len(queue) for need, queue in queues.items() if queue})
        for need, reason in never.items():
            while queues[need]:
                unit = queues[need].popleft()
                result = gave_up(prepare(unit).cells, Fault("NoCapacity", reason))
                on_result(unit, result, starts.pop(unit.unit_id, 0))
        on_tick(sum(map(len, queues.values())), len(running))
        if running or any(queues.values()):
            for outcome in executor.wait(1.0):
                settle(outcome)
    on_tick(0, 0)


def gave_up(cells: Sequence[_Named], fault: Fault) -> UnitResult:
    """One failure per cell of a unit that was ended from outside."""
    return UnitResult(failures=[Failure(cell.cell_id, fault.error_type, fault.message, "") for cell in cells])
