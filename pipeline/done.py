"""What a run directory holds already: which rows are there, which cells are complete, which failed for good."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from pipeline.grid import Cell
from pipeline.plan import Plan, PlannedUnit
from pipeline.results import TASKS, RunStore
from workers.windows import Window

ROW_KEYS = {
    "perplexity": ["window_index"],
    "generation": ["repeat"],
    "retrieval": ["kind", "context_tokens", "depth", "question_index"],
}
"""What tells the rows of one cell apart."""


def rows_per_cell(store: RunStore, task: str) -> pl.LazyFrame:
    """``cell_id`` and ``rows``, how many different ones each has."""
    keys = store.scan(task).select("cell_id", *ROW_KEYS[task]).unique()
    return keys.group_by("cell_id").agg(rows=pl.len().cast(pl.Int64))


class DoneIndex:
    """What a store held when this was made, against what a plan wants."""

    def __init__(self, plan: Plan, store: RunStore) -> None:
        self._plan = plan
        self._rows: set[tuple[Any, ...]] = set()
        for task in ("perplexity", "retrieval"):
            self._rows.update(store.scan(task).select("cell_id", *ROW_KEYS[task]).unique().collect().iter_rows())
        self._counts: dict[str, int] = {}
        for task in TASKS:
            self._counts |= dict(rows_per_cell(store, task).collect().iter_rows())
        own = store.scan("failures").filter(pl.col("traceback") != "").select("cell_id", "error_type", "message").collect()
        self.errors: dict[str, tuple[str, str]] = {cell: (kind, message) for cell, kind, message in own.iter_rows()}
        """Errors of a cell's own code, which would only come again. What ended a unit from outside leaves no traceback."""

    def is_missing(self, cell: Cell, windows: tuple[Window, ...]) -> bool:
        """Whether any row of a cell on these windows is not stored."""
        if cell.task == "perplexity":
            return any((cell.cell_id, window.index) not in self._rows for window in windows)
        return self._counts.get(cell.cell_id, 0) < self._plan.rows_expected(cell)

    def is_to_do(self, cell: Cell, windows: tuple[Window, ...]) -> bool:
        """Whether rows are missing that may come: none do from a cell that failed by itself before."""
        return self.is_missing(cell, windows) and cell.cell_id not in self.errors

    def missing(self, unit: PlannedUnit) -> list[str]:
        """Ids of the unit's cells that miss rows on its windows."""
        return [cell.cell_id for cell in unit.cells if self.is_missing(cell, unit.windows)]

    def new_rows(self, task: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that are not stored. Every timing is new: those of one comparison belong together."""
        if task == "generation":
            return list(rows)
        return [row for row in rows if (row["cell_id"], *(row[key] for key in ROW_KEYS[task])) not in self._rows]
