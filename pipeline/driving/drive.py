"""One driver's turn: sends out what is pending, stores each
result at once, logs, shows progress, compacts small parts."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cluster import waiting
from pipeline.cluster.executors import RayExecutor
from pipeline.cluster.inline import InlineExecutor
from pipeline.cluster.placement import Need
from pipeline.cluster.schedule import Fault, Retry, gave_up, run_units
from pipeline.driving.compaction import compact
from pipeline.driving.progress import Progress
from pipeline.driving.session import Session
from pipeline.driving.time_left import TimeLeft
from pipeline.driving.unit_memory import beyond_plan
from pipeline.driving.unit_parts import PartWriter
from pipeline.planning.cutting import unit_seconds
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.run_log import RunLog
from pipeline.store.store_errors import RunUnreadableError
from workers.machine.code_digest import OtherCodeError, code_digest
from workers.messages.telling import News
from workers.messages.work import Failure, UnitResult, WorkUnit
from workers.models.pace import Pace

COMPACT_EVERY = 2000
"""Parts of one table, after which they are put together: a
directory of a hundred thousand files is slow to read anywhere."""

NEWS_SECONDS = 15.0
"""How often the log says how far units are, where nothing of them is stored."""

AnyExecutor = InlineExecutor | RayExecutor


def execute(session: Session, executor: AnyExecutor) -> list[Failure]:
    """Drive all pending units to their end; returns the failures. Ends the executor whatever happens."""
    with RunLog(session.store, session.run_id) as log:
        turn = _Turn(session, executor, log)
        log.write("start", cells=turn.progress.cells, units=len(session.pending))

        try:
            with turn.progress:
                run_units(
                    session.pending, executor, turn.prepare, turn.finished, turn.tick, turn.again, turn.hear
                )
        except BaseException as error:
            log.write(
                "end",
                reason=f"{type(error).__name__}: {error}"[:400],
                done=turn.progress.done,
                failed=turn.progress.failed,
            )
            raise
        finally:
            executor.close()
        log.write("end", reason="all units ended", done=turn.progress.done, failed=turn.progress.failed)
        return turn.failures


def of_this_code(unit: PlannedUnit, result: UnitResult) -> UnitResult:
    """The result, or a failure of every cell where it was made by other code than this: a worker too old to
    look by itself."""
    refused = not result.rows and {failure.error_type for failure in result.failures} == {
        OtherCodeError.__name__
    }
    if result.code == code_digest() or refused:  # a worker that refused says what lies where
        return result

    told = (
        f"its worker ran other code ({result.code[:8] or 'an older version'}) "
        f"than its driver ({code_digest()[:8]})"
    )
    return gave_up(
        unit.cells,
        Fault("OtherCodeError", f"{told}; install the driver's version on every node", node=result.node),
    )


def _what(unit: PlannedUnit) -> str:
    """A unit in words."""
    first = unit.cells[0]
    return " ".join(filter(None, (unit.task, first.model, first.dataset, unit.part.words)))


@dataclass
class _Turn:
    """What the loop reports, and what is done about it."""

    session: Session
    executor: AnyExecutor
    log: RunLog
    failures: list[Failure] = field(default_factory=list)
    _parts: Counter[str] = field(default_factory=Counter)
    _warned: set[str] = field(default_factory=set)
    _rows: Counter[str] = field(default_factory=Counter)
    """Of units that go on, what they have told of."""
    _told: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._time_left = TimeLeft(self._workers)
        self._samples = {(unit.task, unit.need): unit for unit in self.session.pending}
        for unit in self.session.pending:
            self._time_left.planned(unit.unit_id, (unit.task, unit.need), unit.cost_seconds)
        self.progress = Progress(self.session.missing.values(), self._time_left)
        self._writer = PartWriter(
            self.session.plan, self.session.store, self.session.run_id, self.session.done
        )

    def prepare(self, unit: PlannedUnit) -> WorkUnit:
        """What a worker is sent; a unit that is started again is asked for what is not stored yet."""
        complete = self.session.done.complete(unit)
        answers = self.session.answers.of(cell.cell_id for cell in unit.cells if cell.cell_id not in complete)
        if answers:
            self.log.write("known", unit_id=unit.unit_id, answers=sum(len(each.answers) for each in answers))
        return work_unit(self.session.plan, unit, complete, answers)

    def hear(self, unit: PlannedUnit, news: News) -> None:
        """Store what a unit has finished while it goes on."""
        if news.pace is not None:
            self._hint(unit, news.pace)

        rows = 0
        if news.rows or news.answers:
            self.session.lease.hold()
        if news.answers:
            self.session.answers.add(news.answers)
        if news.rows:
            rows = self._writer.hear(unit, news)
            self._rows[unit.unit_id] += rows
            self._count_part(unit.task)

        self._time_left.moved(unit.unit_id, news.share, news.seconds)
        self.progress.moved(unit.unit_id, _what(unit), news.doing)

        if rows or (news.share > 0 and time.monotonic() - self._told > NEWS_SECONDS):
            self._told = time.monotonic()
            self.log.write(
                "news",
                unit_id=unit.unit_id,
                rows=rows,
                share=round(news.share, 4),
                seconds=round(news.seconds, 4),
                left_seconds=self._time_left.seconds(),
            )

    def _hint(self, unit: PlannedUnit, pace: Pace) -> None:
        """How long units of every kind with this unit's model take, as one of each tells."""
        first = unit.cells[0]
        rates = Rates.measured(pace, self.session.plan.resolved.models[first.model], first)
        for kind, sample in self._samples.items():
            if (sample.need.model, sample.need.device) == (unit.need.model, unit.need.device):
                self._time_left.hint(kind, unit_seconds(sample, rates) / sample.cost_seconds)

    def finished(self, unit: PlannedUnit, result: UnitResult, starts: int) -> None:
        """Store a result before the next is asked for."""
        self.session.lease.hold()
        result = of_this_code(unit, result)
        failed = self._writer.write(unit, result, starts)
        self.session.answers.drop(self.session.done.complete(unit))  # whose rows were stored, and read back
        # Tracebacks are stored, and long.
        self.failures.extend(replace(failure, traceback="") for failure in failed)

        estimated = self._time_left.estimate(unit.unit_id)
        self._time_left.ended(unit.unit_id, result.seconds)
        missing = self.session.missing.pop(unit.unit_id)
        first = unit.cells[0]

        rows = self._rows.pop(unit.unit_id, 0) + len(result.rows)
        self.log.write(
            "unit",
            unit_id=unit.unit_id,
            task=unit.task,
            model=first.model,
            dataset=first.dataset,
            cells=len(unit.cells),
            rows=rows,
            failed=len(failed),
            starts=starts,
            node=result.node,
            seconds=round(result.seconds, 4),
            load_seconds=round(result.load_seconds, 4),
            estimated_seconds=round(estimated, 4),
            left_seconds=self._time_left.seconds(),
            peak_bytes=result.peak_bytes,
            planned_bytes=unit.need.memory_bytes,
        )

        kinds = Counter((failure.error_type, failure.message) for failure in failed)
        for (kind, message), count in kinds.items():
            about = {"cells": count, "error_type": kind, "message": message[:2000]}
            self.log.write("failed", unit_id=unit.unit_id, **about)

        for warning in result.warnings:
            self._warn(warning)
        if (beyond := beyond_plan(unit.task, first.model, unit.need, result.peak_bytes)) is not None:
            self._warn(beyond, about=f"memory of {unit.task} {first.model}")

        self.progress.finished(unit.unit_id, _what(unit), missing, {failure.cell_id for failure in failed})
        self._count_part(unit.task)
        if failed:
            self._count_part("failures")

    def tick(self, queued: int, running: int) -> None:
        """Called at least every second."""
        phrases = waiting.waiting_in_words(self.executor.waiting)
        if phrases and phrases != self.progress.waiting:
            self.log.write("waiting", what=phrases)
        self.progress.tick(queued, running, phrases)

    def again(self, retry: Retry) -> None:
        """A unit goes back into the queue."""
        fault = retry.fault
        self._time_left.moved(retry.unit_id, 0.0, 0.0)
        self.progress.stopped(retry.unit_id)
        self.log.write(
            "retry",
            unit_id=retry.unit_id,
            starts=retry.starts,
            error_type=fault.error_type,
            message=fault.message[:2000],
            strike=fault.strike,
            node=fault.node,
        )

    def _warn(self, warning: str, about: str = "") -> None:
        """Once, though every unit of a model may say it; ``about`` stands for warnings whose figures
        differ."""
        if (about or warning) in self._warned:
            return
        self._warned.add(about or warning)
        self.log.write("warning", message=warning)
        print(f"warning: {warning}", file=sys.stderr)

    def _count_part(self, task: str) -> None:
        self._parts[task] += 1
        if self._parts[task] >= COMPACT_EVERY:
            self._parts[task] = 0
            try:
                self.log.write("compacted", task=task, parts=compact(self.session.store, (task,)))
            except (
                RunUnreadableError
            ) as error:  # which only makes reading slower; the end of the run sets that part aside
                self._warn(f"small files were not put together: {error}")

    def _workers(self, kind: Hashable) -> int:
        assert isinstance(kind, tuple)
        need = kind[1]
        assert isinstance(need, Need)
        return self.executor.places(need)
