"""The pure loop over submit and wait: keeps the executor full, repeats infrastructure faults only, gives up
on poison units."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.cluster.placement import Need
from workers.machine.code_digest import code_digest
from workers.messages.telling import News
from workers.messages.work import Failure, UnitResult, WorkUnit

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
    node: str = ""
    """Host where that was, as far as it is known."""


@dataclass(frozen=True)
class Outcome:
    """One unit that ended: a result, or the fault that ended it."""

    unit_id: str
    result: UnitResult | Fault


Hear = Callable[[str, News], None]
"""Told of a unit, by its name, while it goes on."""


def nobody(unit_id: str, news: News) -> None:
    """Where nobody wants to know."""


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
    def scout(self) -> bool:
        """Whether it goes before all that do not."""
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

    hear: Hear
    """Called, inside ``wait``, with what workers tell of units that go on."""

    def has_room(self, need: Need) -> bool:
        """Whether a unit with this need can start now."""
        ...

    def submit(self, unit: WorkUnit, need: Need, cost_seconds: float) -> None:
        """Start a unit for which there is room."""
        ...

    def wanted(self, queued: Mapping[Need, int]) -> Mapping[Need, str]:
        """Told what waits, after all that has room was submitted.

        Returns the needs that will never be met, and why.
        """
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
    on_news: Callable[[U, News], None] = lambda unit, news: None,
) -> None:
    """Run all units; ``on_result(unit, result, starts)`` once for
    each, ``on_tick(queued, running)`` at least every second.

    Scouts run first. Units of one need run in order, and needs in the order in which they first come.
    ``prepare`` is called as a unit is sent out, so that only those that run are in memory whole. A unit that
    ends in faults MAX_ATTEMPTS times is a result with one failure per cell; the rest goes on.
    """
    loop = _Loop(executor, prepare, on_result, on_retry)

    def hear(unit_id: str, news: News) -> None:
        if (unit := loop.running.get(unit_id)) is not None:  # not of one that was given up meanwhile
            on_news(unit, news)

    executor.hear = hear
    for unit in units:
        loop.queue_of(unit).append(unit)
    ended: list[tuple[U, UnitResult, int]] = []
    while True:
        loop.send_out()
        for each in ended:  # while those that were just sent out run
            on_result(*each)
        on_tick(loop.queued, len(loop.running))
        if not loop.running and not loop.queued:
            return
        ended = [end for outcome in executor.wait(1.0) if (end := loop.settle(outcome))]


class _Loop(Generic[U]):
    """What waits, what runs, and how often each unit has been tried."""

    def __init__(
        self,
        executor: Executor,
        prepare: Callable[[U], WorkUnit],
        on_result: Callable[[U, UnitResult, int], None],
        on_retry: Callable[[Retry], None],
    ) -> None:
        self.executor, self.prepare, self.on_result, self.on_retry = executor, prepare, on_result, on_retry
        self.queues: dict[tuple[bool, Need], deque[U]] = {}
        """By whether they come later than scouts, and by need."""
        self.running: dict[str, U] = {}
        self._strikes: Counter[str] = Counter()
        self._starts: Counter[str] = Counter()

    def queue_of(self, unit: U) -> deque[U]:
        """Where the unit waits."""
        return self.queues.setdefault((not unit.scout, unit.need), deque())

    @property
    def queued(self) -> int:
        """How many units wait."""
        return sum(map(len, self.queues.values()))

    def send_out(self) -> None:
        """Submit what has room; what can never have any ends as failures."""
        for (_, need), queue in sorted(self.queues.items(), key=lambda item: item[0][0]):
            while queue and self.executor.has_room(need):
                unit = queue.popleft()
                self.running[unit.unit_id] = unit
                self.executor.submit(self.prepare(unit), need, unit.cost_seconds)

        waiting: Counter[Need] = Counter()
        for (_, need), queue in self.queues.items():
            waiting[need] += len(queue)
        never = self.executor.wanted({need: count for need, count in waiting.items() if count})

        for (_, need), queue in self.queues.items():
            while queue and (reason := never.get(need)):
                unit = queue.popleft()
                result = gave_up(self.prepare(unit).cells, Fault("NoCapacity", reason))
                self.on_result(unit, result, self._starts.pop(unit.unit_id, 0))

    def settle(self, outcome: Outcome) -> tuple[U, UnitResult, int] | None:
        """A unit that ended for good, its result and how often it was started; None where it is tried
        again."""
        unit = self.running.pop(outcome.unit_id)
        result = outcome.result
        name = unit.unit_id
        if not isinstance(result, Fault):
            self._strikes.pop(name, None)
            return unit, result, self._starts.pop(name, 0) + 1

        self._strikes[name] += result.strike
        self._starts[name] += result.started
        if self._strikes[name] < MAX_ATTEMPTS and self._starts[name] < MAX_STARTS:
            self.queue_of(unit).appendleft(unit)
            self.on_retry(Retry(name, result, self._starts[name]))
            return None

        return unit, gave_up(self.prepare(unit).cells, result), self._starts.pop(name)


def gave_up(cells: Sequence[_Named], fault: Fault) -> UnitResult:
    """One failure per cell of a unit that was ended from outside."""
    failures = [Failure(cell.cell_id, fault.error_type, fault.message, "") for cell in cells]
    return UnitResult(failures=failures, node=fault.node, code=code_digest())
