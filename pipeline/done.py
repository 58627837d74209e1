"""What a run directory holds already: which rows are there, which cells are complete, which failed for good."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import polars as pl

from pipeline.cell import Cell
from pipeline.plan import Plan, PlannedUnit
from pipeline.results import TASKS, RunStore
from pipeline.schema import ROW_KEYS
from workers.windows import Window


def rows_per_cell(store: RunStore, task: str) -> pl.LazyFrame:
    """``cell_id`` and ``rows``, how many different ones each has."""
    keys = store.scan(task).select("cell_id", *ROW_KEYS[task]).unique()
    return keys.group_by("cell_id").agg(rows=pl.len().cast(pl.Int64))


MOST_WINDOWS = 2**24
"""The largest number of a window that is believed: a row with a larger one, or none, is nobody's, and would fill the memory."""


@lru_cache(maxsize=4096)
def _mask(windows: tuple[Window, ...]) -> int:
    """Windows as bits, so that a million cells' worth of them fits in memory."""
    return sum(1 << window.index for window in windows)


class DoneIndex:
    """What a store held when this was made, against what a plan wants. Raises PolarsError where a part is no Parquet file."""

    def __init__(self, plan: Plan, store: RunStore) -> None:
        self._plan = plan
        index = pl.col("window_index")
        stored = store.scan("perplexity").filter(index.is_between(0, MOST_WINDOWS)).select("cell_id", "window_index").unique()
        self._windows: dict[str, int] = {}
        for cell, indices in stored.group_by("cell_id").agg("window_index").collect().iter_rows():
            self._windows[cell] = sum(1 << index for index in indices)
        self._counts: dict[str, int] = {}
        for task in set(TASKS) - {"perplexity", "retrieval"}:
            self._counts |= dict(rows_per_cell(store, task).collect().iter_rows())
        asked = store.scan("retrieval").select("cell_id", *ROW_KEYS["retrieval"]).unique()
        counts = asked.group_by("cell_id", "kind", "context_tokens").len().collect()
        self._asked = {(cell, kind, length): count for cell, kind, length, count in counts.iter_rows()}
        self._counts |= dict(counts.group_by("cell_id").agg(pl.col("len").sum()).iter_rows())
        partial = [c.cell_id for c in plan.grid.cells if c.task == "retrieval" and 0 < self._has(c) < plan.rows_expected(c)]
        self._answers: set[tuple[Any, ...]] = set(asked.filter(pl.col("cell_id").is_in(partial)).collect().iter_rows())
        self._partial = set(partial)
        own = store.scan("failures").filter(pl.col("traceback") != "").select("cell_id", "error_type", "message").collect()
        self.errors: dict[str, tuple[str, str]] = {cell: (kind, message) for cell, kind, message in own.iter_rows()}
        """Errors of a cell's own code, which would only come again. What ended a unit from outside leaves no traceback."""

    def _has(self, cell: Cell) -> int:
        return self._counts.get(cell.cell_id, 0)

    def has_rows(self, cell: Cell) -> bool:
        """Whether any row of a cell is stored."""
        return self._has(cell) > 0 or cell.cell_id in self._windows

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        """Whether any of the rows that a unit gives of a cell is not stored."""
        if cell.task == "perplexity":
            return bool(_mask(unit.windows) & ~self._windows.get(cell.cell_id, 0))
        if cell.task == "retrieval":
            return self._asked.get((cell.cell_id, *unit.asked), 0) < self._plan.questions_expected(cell)
        return self._has(cell) < self._plan.rows_expected(cell)

    def missing(self, unit: PlannedUnit) -> list[str]:
        """Ids of the unit's cells that miss rows on its windows."""
        return [cell.cell_id for cell in unit.cells if self.is_missing(cell, unit)]

    def new_rows(self, task: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that are not stored. Every timing is new: those of one comparison belong together."""
        return [row for row in rows if task == "generation" or not self._is_stored(task, row)]

    def _is_stored(self, task: str, row: dict[str, Any]) -> bool:
        cell = row["cell_id"]
        if task == "perplexity":
            return bool(self._windows.get(cell, 0) >> row["window_index"] & 1)
        if cell in self._partial:
            return (cell, *(row[key] for key in ROW_KEYS[task])) in self._answers
        return self._counts.get(cell, 0) > 0
