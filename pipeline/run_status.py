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


class NotARunError(ValueError):
    """The directory holds no run, or one that cannot be read."""


def describe(store: RunStore) -> list[str]:
    """Lines for a person. A cell is done when it has all its rows, and failed when it has a failure and is not done.

    Raises NotARunError, and what the store raises.
    """
    content, cells = store.get("run.json"), store.get(CELLS_FILE)
    if content is None:
        raise NotARunError(f"{store.directory}: holds no run.json, so it is no kvsweep run directory")
    if cells is None:
        raise NotARunError(f"{store.directory}: holds no {CELLS_FILE}; `kvsweep run` with the same sweep writes it")
    run = json.loads(content)
    planned = pl.read_parquet(io.BytesIO(cells))
    lines = [f"{run['name']} ({run['run_id']}), started {run['started_at']}", describe_driver(store)]
    try:
        lines += _describe_tasks(store, run, planned)
    except (pl.exceptions.PolarsError, FileNotFoundError):  # perhaps its driver has just put parts together: look again
        try:
            lines += _describe_tasks(store, run, planned)
        except pl.exceptions.PolarsError as error:
            raise NotARunError(
                f"{store.directory}: holds a file that is no whole Parquet file ({str(error).splitlines()[0]}); "
                "`kvsweep run` with the same sweep sets it aside and does its cells again"
            ) from error
    return [plain(line) for line in lines]


def plain(text: str) -> str:
    """Text from stored files without the control characters that would steer a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _describe_tasks(store: RunStore, run: dict[str, Any], planned: pl.DataFrame) -> list[str]:
    return [line for task in TASKS if run["planned"].get(task) for line in _describe_task(store, run, planned, task)]


def _describe_task(store: RunStore, run: dict[str, Any], planned: pl.DataFrame, task: str) -> list[str]:
    stored = rows_per_cell(store, task).collect()
    cells = planned.filter(pl.col("task") == task).select("cell_id", wanted="rows")
    known = cells.join(stored, on="cell_id", how="left").with_columns(pl.col("rows").fill_null(0))
    done = known.filter(pl.col("rows") >= pl.col("wanted"))
    failures = store.scan("failures").filter(pl.col("task") == task).select("cell_id", "error_type", "message").unique()
    failed = failures.sort("error_type", "message").collect().join(done, on="cell_id", how="anti", maintain_order="left")
    failed = failed.join(cells, on="cell_id", how="semi", maintain_order="left")
    bad, count = failed["cell_id"].n_unique(), run["planned"][task]
    missing, fewest = max(0, count - len(done) - bad), "at least " if task in ("generation", "tasks") else ""
    lines = [
        f"{task}: {count} cells planned, {len(done)} done, {bad} failed, {missing} missing",
        f"  {known['rows'].sum()} of {fewest}{run['planned_rows'][task]} rows",
    ]
    for (kind, message), group in failed.group_by("error_type", "message", maintain_order=True):
        lines.append(f"  {group['cell_id'].n_unique()} failed: {kind}: {str(message).splitlines()[0][:200]}")
    return lines
