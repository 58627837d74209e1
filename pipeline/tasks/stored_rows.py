"""Which rows of a task a run directory holds already, counted by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import polars as pl

from pipeline.cells.cell import Cell
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.store.run_store import RunStore


def rows_per_cell(store: RunStore, task: str, row_keys: Sequence[str]) -> pl.LazyFrame:
    """``cell_id`` and ``rows``, how many different ones each has by the columns ``row_keys``."""
    keys = store.scan(task).select("cell_id", *row_keys).unique()
    return keys.group_by("cell_id").agg(rows=pl.len().cast(pl.Int64))


class StoredRows(Protocol):
    """What a store holds of a task's rows."""

    def add(self, row: dict[str, Any]) -> None:
        """A row that has been stored since."""
        ...

    def has_any(self, cell_id: str) -> bool:
        """Whether any row of a cell is stored."""
        ...

    def is_stored(self, row: dict[str, Any]) -> bool:
        """Whether a row, of its cell and with its keys, is there."""
        ...

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        """Whether any of the rows that a unit gives of a cell is not stored."""
        ...


class CountedRows:
    """Of a task whose cells are done whole: how many rows each has.

    Raises PolarsError where a part is no Parquet file.
    """

    def __init__(
        self, store: RunStore, task: str, row_keys: Sequence[str], expected: Callable[[Cell], int]
    ) -> None:
        self._expected = expected
        counts: Iterable[tuple[str, int]] = rows_per_cell(store, task, row_keys).collect().iter_rows()
        self._counts = dict(counts)

    def add(self, row: dict[str, Any]) -> None:
        self._counts[row["cell_id"]] = self._counts.get(row["cell_id"], 0) + 1

    def has_any(self, cell_id: str) -> bool:
        return cell_id in self._counts

    def is_stored(self, row: dict[str, Any]) -> bool:
        """Rows of a cell are stored together, so one stands for all."""
        return self._counts.get(row["cell_id"], 0) > 0

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        return self._counts.get(cell.cell_id, 0) < self._expected(cell)
