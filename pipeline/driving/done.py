"""What a run directory holds already: which rows are there, which cells are complete, which failed for
good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import polars as pl

from pipeline.cells.cell import Cell
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.planning.plan import Plan
from pipeline.store.run_store import RunStore
from pipeline.tasks import TASKS


class DoneIndex:
    """What a store held when this was made, against what a plan wants.

    Raises PolarsError where a part is no Parquet file.
    """

    def __init__(self, plan: Plan, store: RunStore) -> None:
        cells: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in plan.grid.cells:
            cells[cell.task].append(cell)
        self._stored = {
            name: task.stored_rows(store, cells[name], plan.resolved) for name, task in TASKS.items()
        }

        own = (
            store.scan("failures")
            .filter(pl.col("traceback") != "")
            .select("cell_id", "error_type", "message")
            .collect()
        )
        self.errors: dict[str, tuple[str, str]] = {
            cell: (kind, message) for cell, kind, message in own.iter_rows()
        }
        """Errors of a cell's own code, which would only come again.
        What ended a unit from outside leaves no traceback."""

    def add(self, task: str, rows: Iterable[dict[str, Any]]) -> None:
        """Rows that have been stored since."""
        stored = self._stored[task]
        for row in rows:
            stored.add(row)

    def has_rows(self, cell: Cell) -> bool:
        """Whether any row of a cell is stored."""
        return self._stored[cell.task].has_any(cell.cell_id)

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        """Whether any of the rows that a unit gives of a cell is not stored."""
        return self._stored[cell.task].is_missing(cell, unit)

    def missing(self, unit: PlannedUnit) -> list[str]:
        """Ids of the unit's cells that miss rows of what it is asked."""
        return [cell.cell_id for cell in unit.cells if self.is_missing(cell, unit)]

    def complete(self, unit: PlannedUnit) -> frozenset[str]:
        """Ids of the unit's cells of which nothing more is wanted;
        of timed ones none, for a comparison's belong together."""
        if unit.need.timed:
            return frozenset()
        return frozenset(cell.cell_id for cell in unit.cells if not self.is_missing(cell, unit))

    def new_rows(self, task: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that are not stored. Every timing is new: those of one comparison belong together."""
        stored = self._stored[task]
        return [row for row in rows if TASKS[task].timed or not stored.is_stored(row)]
