"""``kvsweep status``: what of a run is done, failed and missing."""

from __future__ import annotations

import json

import polars as pl

from pipeline.results import TASKS, RunStore


def describe(store: RunStore, run_json: bytes) -> list[str]:
    """Lines for a person. A cell counts as failed when it has a failure and no rows."""
    run = json.loads(run_json)
    failures = store.scan("failures").select("cell_id", "task", "error_type", "message").unique().collect()
    lines = [f"{run['name']} ({run['run_id']}), started {run['started_at']}"]
    for task in TASKS:
        planned = run["planned"].get(task)
        if not planned:
            continue
        rows = store.scan(task).group_by("cell_id").len().collect()
        failed = failures.filter(pl.col("task") == task).join(rows, on="cell_id", how="anti")
        bad = failed["cell_id"].n_unique()
        missing = max(0, planned - len(rows) - bad)
        lines.append(f"{task}: {planned} cells planned, {len(rows)} with rows, {bad} failed, {missing} missing")
        fewest = "at least " if task == "generation" else ""
        lines.append(f"  {rows['len'].sum()} of {fewest}{run['planned_rows'][task]} rows")
        for (kind, message), group in failed.group_by("error_type", "message"):
            lines.append(f"  {group['cell_id'].n_unique()} failed: {kind}: {str(message).splitlines()[0][:200]}")
    return lines
