"""``cells.parquet``: every planned cell, the rows that make it complete, and whether it can ever prune."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.store_errors import RunUnreadableError

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.store.run_store import RunStore

CELLS_NAME = "cells.parquet"
MOST_CELLS_BYTES = 2**30
"""Of a cells.parquet; that of a million cells has 20 MB."""

COLUMNS = {"task": pl.String(), "cell_id": pl.String(), "rows": pl.Int64(), "never_prunes": pl.Boolean()}


def planned_cells(plan: Plan) -> bytes:
    """The file of a plan."""
    never = {cell.cell_id for cell in plan.never_prune}
    columns = {
        "task": [cell.task for cell in plan.grid.cells],
        "cell_id": [cell.cell_id for cell in plan.grid.cells],
        "rows": [plan.rows_expected(cell) for cell in plan.grid.cells],
        "never_prunes": [cell.cell_id in never for cell in plan.grid.cells],
    }
    buffer = io.BytesIO()
    pl.DataFrame(columns, schema=COLUMNS).write_parquet(buffer)
    return buffer.getvalue()


def read_planned_cells(store: RunStore) -> pl.DataFrame:
    """The cells that a run directory plans.

    Raises RunUnreadableError where its file is not there, or is none of ours.
    """
    place, remedy = f"{store.directory}/{CELLS_NAME}", "`kvsweep run` with the same sweep writes it anew"
    content = store.get(CELLS_NAME, MOST_CELLS_BYTES)
    if content is None:
        raise RunUnreadableError(f"{store.directory}: holds no {CELLS_NAME}; {remedy}")
    try:
        found = pl.DataFrame(pq.read_table(io.BytesIO(content)))
    except (pa.ArrowException, OSError, ValueError, pl.exceptions.PolarsError) as error:
        words = " ".join(str(error).split())[:80]
        raise RunUnreadableError(f"{place}: is no readable Parquet file ({words}); {remedy}") from error

    wrong = [name for name, kind in COLUMNS.items() if found.schema.get(name) != kind]
    if wrong:
        raise RunUnreadableError(f"{place}: has no column {wrong[0]} of type {COLUMNS[wrong[0]]}; {remedy}")
    return found.select(*COLUMNS)
