"""``kvsweep status``: whether a run is being driven, and what of it is done, failed and missing."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.driving.planned_cells import read_planned_cells
from pipeline.driving.streams import plain
from pipeline.store.lease import describe_driver
from pipeline.store.run_json import required_run
from pipeline.store.run_store import RunStore
from pipeline.store.store_errors import RunUnreadableError, first_line_of
from pipeline.tasks import TASKS
from pipeline.tasks.stored_rows import rows_per_cell


def status_lines(store: RunStore) -> list[str]:
    """Lines for a person.

    A cell is done when it has all its rows, and failed when it has a failure and is not done.

    Raises RunUnreadableError, and what the store raises.
    """
    run = required_run(store)
    planned = read_planned_cells(store)
    lines = [f"{run['name']} ({run['run_id']}), started {run['started_at']}", describe_driver(store)]
    try:
        lines += _describe_tasks(store, run, planned)
    except (pl.exceptions.PolarsError, FileNotFoundError):
        # Perhaps its driver has just put parts together: look again.
        try:
            lines += _describe_tasks(store, run, planned)
        except pl.exceptions.PolarsError as error:
            raise RunUnreadableError(
                f"{store.directory}: holds a part that cannot be read ({str(error).splitlines()[0]}); "
                "`kvsweep run` with the same sweep sets it aside and does its cells again"
            ) from error
    return [plain(line) for line in lines]


def _describe_tasks(store: RunStore, run: dict[str, Any], planned: pl.DataFrame) -> list[str]:
    asked = [task for task in TASKS if run["planned"].get(task)]
    for task in [*asked, "failures"] if asked else []:
        store.check_parts(task)
    return [line for task in asked for line in _describe_task(store, run, planned, task)]


def _describe_task(store: RunStore, run: dict[str, Any], planned: pl.DataFrame, task: str) -> list[str]:
    stored = rows_per_cell(store, task, TASKS[task].row_keys).collect()
    cells = planned.filter(pl.col("task") == task).select("cell_id", wanted="rows")
    known = cells.join(stored, on="cell_id", how="left").with_columns(pl.col("rows").fill_null(0))
    done = known.filter(pl.col("rows") >= pl.col("wanted"))

    failures = (
        store.scan("failures")
        .filter(pl.col("task") == task)
        .select("cell_id", "error_type", "message")
        .unique()
    )
    failed = (
        failures.sort("error_type", "message")
        .collect()
        .join(done, on="cell_id", how="anti", maintain_order="left")
    )
    failed = failed.join(cells, on="cell_id", how="semi", maintain_order="left")

    bad = failed["cell_id"].n_unique()
    count = run["planned"][task]
    missing = max(0, count - len(done) - bad)
    told = run.get("planned_rows")
    wanted = told[task] if isinstance(told, dict) and task in told else cells["wanted"].sum()
    fewest = "at least " if TASKS[task].at_least else ""

    lines = [
        f"{task}: {count} cells planned, {len(done)} done, {bad} failed, {missing} missing",
        f"  {known['rows'].sum()} of {fewest}{wanted} rows",
    ]
    for (kind, message), group in failed.group_by("error_type", "message", maintain_order=True):
        lines.append(f"  {group['cell_id'].n_unique()} failed: {kind}: {first_line_of(message)[:200]}")
    return lines
