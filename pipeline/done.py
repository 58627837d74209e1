"""What a run directory holds already: which rows are there, which cells are complete, which failed for good."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import polars as pl

from pipeline.cell import Cell, settings_of
from pipeline.cutting import PlannedUnit
from pipeline.plan import Plan
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
        self._cells = {cell.cell_id: cell for cell in plan.grid.cells if cell.task == "retrieval"}
        index = pl.col("window_index")
        stored = store.scan("perplexity").filter(index.is_between(0, MOST_WINDOWS)).select("cell_id", "window_index").unique()
        self._windows: dict[str, int] = {}
        for cell, indices in stored.group_by("cell_id").agg("window_index").collect().iter_rows():
            self._windows[cell] = sum(1 << index for index in indices)
        self._counts: dict[str, int] = {}
        for task in set(TASKS) - {"perplexity", "retrieval"}:
            self._counts |= dict(rows_per_cell(store, task).collect().iter_rows())
        self._asked: dict[tuple[str, str, int], int] = {}
        if self._cells:
            asked = store.scan("retrieval").filter(pl.col("cell_id").is_in(list(self._cells)))
            for row in asked.select("cell_id", *ROW_KEYS["retrieval"]).collect().iter_rows(named=True):
                self._ask(row)
        own = store.scan("failures").filter(pl.col("traceback") != "").select("cell_id", "error_type", "message").collect()
        self.errors: dict[str, tuple[str, str]] = {cell: (kind, message) for cell, kind, message in own.iter_rows()}
        """Errors of a cell's own code, which would only come again. What ended a unit from outside leaves no traceback."""

    def add(self, task: str, rows: Iterable[dict[str, Any]]) -> None:
        """Rows that have been stored since."""
        for row in rows:
            if task == "perplexity":
                cell = row["cell_id"]
                self._windows[cell] = self._windows.get(cell, 0) | 1 << row["window_index"]
            elif task == "retrieval":
                self._ask(row)
            else:
                self._counts[row["cell_id"]] = self._counts.get(row["cell_id"], 0) + 1

    def _ask(self, row: dict[str, Any]) -> None:
        """Note a question that was answered, as a bit."""
        number = self._number(row)
        if number is not None:
            place = _place(row)
            self._asked[place] = self._asked.get(place, 0) | 1 << number

    def _number(self, row: dict[str, Any]) -> int | None:
        """Of a question among those of its kind and length; None for one that the plan does not ask."""
        cell = self._cells.get(row["cell_id"])
        if cell is None:
            return None
        return _numbers(cell.settings).get(tuple(row[key] for key in ROW_KEYS["retrieval"][2:]))

    def has_rows(self, cell: Cell) -> bool:
        """Whether any row of a cell is stored."""
        return cell.cell_id in self._counts or cell.cell_id in self._windows

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        """Whether any of the rows that a unit gives of a cell is not stored."""
        if cell.task == "perplexity":
            return bool(_mask(unit.windows) & ~self._windows.get(cell.cell_id, 0))
        if unit.asked is not None:
            depths = len(settings_of(cell)["depths"])
            wanted = (1 << depths * unit.asked.end) - (1 << depths * unit.asked.first)
            return bool(wanted & ~self._asked.get((cell.cell_id, unit.asked.kind, unit.asked.context_tokens), 0))
        return self._counts.get(cell.cell_id, 0) < self._plan.rows_expected(cell)

    def missing(self, unit: PlannedUnit) -> list[str]:
        """Ids of the unit's cells that miss rows on its windows."""
        return [cell.cell_id for cell in unit.cells if self.is_missing(cell, unit)]

    def complete(self, unit: PlannedUnit) -> frozenset[str]:
        """Ids of the unit's cells of which nothing more is wanted; of timed ones none, for a comparison's belong together."""
        if unit.need.timed:
            return frozenset()
        return frozenset(cell.cell_id for cell in unit.cells if not self.is_missing(cell, unit))

    def new_rows(self, task: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that are not stored. Every timing is new: those of one comparison belong together."""
        return [row for row in rows if task == "generation" or not self._is_stored(task, row)]

    def _is_stored(self, task: str, row: dict[str, Any]) -> bool:
        if task == "perplexity":
            return bool(self._windows.get(row["cell_id"], 0) >> row["window_index"] & 1)
        if task == "retrieval":
            number = self._number(row)
            return number is not None and bool(self._asked.get(_place(row), 0) >> number & 1)
        return self._counts.get(row["cell_id"], 0) > 0


def _place(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["cell_id"], row["kind"], row["context_tokens"]


@lru_cache(maxsize=64)
def _numbers(settings: str) -> dict[tuple[Any, ...], int]:
    """Of the questions of a kind and length, in the order in which they are built, by what tells them apart."""
    axes = json.loads(settings)
    documents = itertools.product(axes["digits"], axes["distractors"], range(axes["questions"]))
    asked = ((digits, others, depth, index) for digits, others, index in documents for depth in axes["depths"])
    return {question: number for number, question in enumerate(asked)}
