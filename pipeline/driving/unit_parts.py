"""One unit's result -> parts of the tables: only rows that
are not stored, and failures of cells that miss rows."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cells.cell import Cell
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.driving.done import DoneIndex
from pipeline.planning.plan import Plan
from pipeline.store.run_store import RunStore
from pipeline.store.schema import CELL_COLUMNS, PROTOCOL_VERSION, to_arrow
from pipeline.tasks import TASKS
from workers.messages.telling import News
from workers.messages.work import Failure, UnitResult


@dataclass(frozen=True)
class PartWriter:
    """Stores results of units, each part whole or not at all."""

    plan: Plan
    store: RunStore
    run_id: str
    done: DoneIndex

    def hear(self, unit: PlannedUnit, news: News) -> int:
        """Put what a unit has finished while it goes on; returns how many rows are new."""
        return self._put(unit, news.rows, news.device_name)

    def write(self, unit: PlannedUnit, result: UnitResult, attempts: int) -> list[Failure]:
        """Put what is new of a result; returns the failures that count.

        A unit may also give rows, or fail, for cells that were complete: these stay as they are.
        """
        self._put(unit, result.rows, result.device_name)
        columns = self._columns(unit, self.run_id, result.device_name)
        missing = set(self.done.missing(unit))
        failures = [failure for failure in result.failures if failure.cell_id in missing]
        if failures:
            rows = [
                columns[failure.cell_id]
                | {k: v for k, v in asdict(failure).items() if k != "cell_id"}
                | {"task": unit.task, "attempts": attempts, "node": result.node}
                for failure in failures
            ]
            self.store.add_part("failures", unit.unit_id, to_arrow("failures", rows))
        return failures

    def _put(self, unit: PlannedUnit, given: list[dict[str, Any]], device_name: str) -> int:
        new = self.done.new_rows(unit.task, given)
        if not new:
            return 0
        task, run_id = TASKS[unit.task], self.run_id
        if task.timed and any(self.done.has_rows(cell) for cell in unit.cells):
            # another measurement, whose rounds must never be paired with the first one's
            run_id += f"-{uuid.uuid4().hex[:6]}"

        columns = self._columns(unit, run_id, device_name)
        told = task.as_stored(new, self.plan.resolved.models[unit.cells[0].model])
        rows = [columns[row["cell_id"]] | {k: v for k, v in row.items() if k != "cell_id"} for row in told]
        self.store.add_part(unit.task, unit.unit_id, to_arrow(unit.task, rows))
        self.done.add(unit.task, new)
        return len(new)

    def _columns(self, unit: PlannedUnit, run_id: str, device_name: str) -> dict[str, dict[str, Any]]:
        """By cell, the columns that every table starts with."""
        dense_id = unit.cells[0].dense.cell_id  # cells of a unit have one
        stored_as = self.plan.resolved.models[unit.cells[0].model].quantization
        return {
            cell.cell_id: cell_columns(cell, dense_id, run_id, device_name, stored_as) for cell in unit.cells
        }


def cell_columns(
    cell: Cell, dense_id: str, run_id: str, device_name: str, quantization: str | None = None
) -> dict[str, Any]:
    """The columns that every table starts with; ``quantization`` is of the model's facts."""
    own = {
        "run_id": run_id,
        "protocol_version": PROTOCOL_VERSION,
        "cell_id": cell.cell_id,
        "device_name": device_name,
    }

    rule = cell.skip_layers if isinstance(cell.skip_layers, str) else None
    layers = None if rule else list(cell.skip_layers)  # a worker's rows name those that a rule chose
    told = {
        "dense_cell_id": dense_id,
        "skip_layers": layers,
        "skip_layers_rule": rule,
        "norm_attention": None,
    }
    told |= {"bos": cell.bos is not None, "quantization": quantization}

    rest = cell.values() | own | told
    return {name: rest[name] for name in CELL_COLUMNS}
