"""``kvsweep status``: whether a run is being driven, and what of it is done, failed and missing."""

from __future__ import annotations

import io
import json
from typing import Any

import polars as pl

from pipeline.done import rows_per_cell
from pipeline.lease import describe_driver
from pipeline.provenance import CELLS_FILE
from pipeline.results import TASKS, RunStore


def describe(store: RunStore, run_json: bytes) -> list[str]:
    """Lines for a person. A cell is done when it has all its rows, and failed when it has a failure and is not done."""
    run = json.loads(run_json)
    planned = pl.read_parquet(io.BytesIO(store.get(CELLS_FILE) or b""))
    lines = [f"{run['name']} ({run['run_id']}), started {run['started_at']}", describe_driver(store)]
    for task in TASKS:
        if run["planned"].get(task):
            lines += _describe_task(store, run, planned, task)
    return lines


def _describe_task(store: RunStore, run: dict[str, Any], planned: pl.DataFrame, task: str) -> list[str]:
    stored = rows_per_cell(store, task).collect()
    cells = planned.filter(pl.col("task") == task).select("cell_id", wanted="rows")
    known = cells.join(stored, on="cell_id", how="left").with_columns(pl.col("rows").fill_null(0))
    done = known.filter(pl.col("rows") >= pl.col("wanted"))
    failures = store.scan("failures").filter(pl.col("task") == task).select("cell_id", "error_type", "message").unique()
    failed = failures.sort("error_type", "message").collect().join(done, on="cell_id", how="anti", maintain_order="left")
    failed = failed.join(cells, on="cell_id", how="semi", maintain_order="left")
    bad, count = failed["cell_id"].n_unique(), run["planned"][task]
    missing, fewest = max(0, count - len(done) - bad), "at least " if task == "generation" else ""
    lines = [
        f"{task}: {count} cells planned, {len(done)} done, {bad} failed, {missing} missing",
        f"  {known['rows'].sum()} of {fewest}{run['planned_rows'][task]} rows",
    ]
    for (kind, message), group in failed.group_by("error_type", "message", maintain_order=True):
        lines.append(f"  {group['cell_id'].n_unique()} failed: {kind}: {str(message).splitlines()[0][:200]}")
    return lines
