"""The pure loop over submit and wait: keeps the executor full, repeats infrastructure faults only, gives up on poison units."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from workers.work import Failure, UnitResult, WorkUnit

MAX_ATTEMPTS = 2
"""Tries of a unit whose own process keeps dying."""
MAX_STARTS = 5
"""Starts of a unit in all, so that one which takes its whole node down each time ends too."""


@dataclass(frozen=True)
class Fault:
    """What ended a unit from outside: a dead process or node, or no place to run. ``final`` faults are not tried again."""

    error_type: str
    message: str
    final: bool = False
    strike: bool = True
    """Whether it counts against the unit; the death of a whole node does not."""


@dataclass(frozen=True)
class Outcome:
    """One finished unit: a result, or the fault that ended it."""

    unit: WorkUnit
    result: UnitResult | Fault


class Executor(Protocol):
    """Where units run."""

    def submit(self, unit: WorkUnit) -> bool:
        """Start a unit; False where there is no room now."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call; waits up to ``timeout`` seconds for the first."""
        ...


def run_units(
    units: Iterable[WorkUnit],
    executor: Executor,
    on_result: Callable[[WorkUnit, UnitResult, int], None],
    on_tick: Callable[[int, int], None] = lambda queued, running: None,
) -> None:
    """Run all units; ``on_result(unit, result, starts)`` once for each, ``on_tick(queued, running)`` at least every second.

    A unit that ends in faults MAX_ATTEMPTS times is a result with one failure per cell; the rest goes on.
    """
    queue: deque[WorkUnit] = deque(units)
    attempts: Counter[str] = Counter()
    starts: Counter[str] = Counter()
    running = 0
    while queue or running:
        for _ in range(len(queue)):
            unit = queue.popleft()
            if executor.submit(unit):
                running += 1
            else:
                queue.append(unit)
        on_tick(len(queue), running)
        for outcome in executor.wait(1.0):
            running -= 1
            unit, result = outcome.unit, outcome.result
            starts[unit.unit_id] += 1
            if isinstance(result, Fault):
                attempts[unit.unit_id] += result.strike
                tries_left = attempts[unit.unit_id] < MAX_ATTEMPTS and starts[unit.unit_id] < MAX_STARTS
                if tries_left and not result.final:
                    queue.appendleft(unit)
                    continue
                result = _gave_up(unit, result)
            on_result(unit, result, starts[unit.unit_id])
    on_tick(0, 0)


def _gave_up(unit: WorkUnit, fault: Fault) -> UnitResult:
    return UnitResult(failures=[Failure(cell.cell_id, fault.error_type, fault.message, "") for cell in unit.cells])
