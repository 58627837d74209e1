"""What was planned, what came back, what failed and why."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.keys import VERSIONS
from analysis.load import ROW_KEYS, Results
from pipeline.results import TASKS


def coverage(results: Results) -> pl.DataFrame:
    """Cells per run and task: ``planned`` (null where not recorded), ``done``, ``failed``, ``missing``.

    A cell is done when it has as many rows as the fullest cell with the same dense twin; a cell that failed
    once and was completed later is done.
    """
    frames = []
    for task in TASKS:
        done, failed = _done(results, task), _failed(results, task)
        outcome = failed.join(done, on=["source", "cell_id"], how="full", coalesce=True)
        frames.append(outcome.with_columns(pl.lit(task).alias("task")).collect())
    outcomes = pl.concat(frames)
    rows = [
        _count(outcomes, index, task, run.info) for index, run in enumerate(results.runs) for task in TASKS
    ]
    schema = {"run": pl.String, "task": pl.String} | dict.fromkeys(
        ("planned", "done", "failed", "missing"), pl.Int64
    )
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.filter((pl.col("planned").fill_null(0) > 0) | (pl.col("done") > 0) | (pl.col("failed") > 0))


def _done(results: Results, task: str) -> pl.LazyFrame:
    keys = [key for key in ROW_KEYS[task] if key not in ("cell_id", "run_id", "control", *VERSIONS)]
    counted = (
        results.scanned[task]
        .group_by("source", "cell_id")
        .agg(pl.col("dense_cell_id").first(), found=pl.struct(keys).n_unique())
    )
    return counted.select(
        "source", "cell_id", done=pl.col("found") == pl.col("found").max().over("source", "dense_cell_id")
    )


def _failed(results: Results, task: str) -> pl.LazyFrame:
    return (
        results.scanned["failures"]
        .filter(pl.col("task") == task)
        .select("source", "cell_id", failed=True)
        .unique()
    )


def _count(outcomes: pl.DataFrame, source: int, task: str, info: dict[str, Any]) -> tuple[Any, ...]:
    mine = outcomes.filter((pl.col("source") == source) & (pl.col("task") == task))
    done = int(mine["done"].fill_null(False).sum())
    failed = mine.filter(pl.col("failed").fill_null(False) & ~pl.col("done").fill_null(False)).height
    planned_by_task = info.get("planned")
    planned = planned_by_task.get(task) if isinstance(planned_by_task, dict) else None
    if not isinstance(planned, int):
        return info.get("run_id"), task, None, done, failed, None
    return info.get("run_id"), task, planned, done, failed, max(0, planned - done - failed)


def coverage_in_words(covered: pl.DataFrame, excluded: pl.DataFrame) -> str:
    """All tasks and runs of ``coverage`` in one line for the
    head of the page, and what ``Tables.excluded`` leaves out."""
    planned = covered["planned"]
    asked = (
        "a number of cells that was not recorded"
        if planned.null_count() or covered.is_empty()
        else f"{planned.sum():,} cells"
    )
    found = ", ".join(f"{name} {covered[name].sum():,}" for name in ("done", "failed", "missing"))
    left_out = ", ".join(
        f"{cells:,} {verdict}" for verdict, cells in excluded.select("verdict", "cells").iter_rows()
    )
    return f"planned {asked}; {found}; in no aggregate: {left_out or 'none'}"


def failures(results: Results) -> pl.DataFrame:
    """One row per cell, task and kind of error, with the cell's settings; the longest-tried attempt count."""
    rows = results.rows("failures").drop("source", "pool_id")
    return rows.sort(
        "task", "error_type", "message", "model", "dataset", "policy", "keep_ratio", nulls_last=False
    ).collect()


def failure_kinds(table: pl.DataFrame) -> pl.DataFrame:
    """Failures grouped by task, error and message: how many cells, and one traceback."""
    return (
        table.group_by("task", "error_type", "message", maintain_order=True)
        .agg(
            cells=pl.col("cell_id").n_unique(),
            attempts=pl.col("attempts").max(),
            traceback=pl.col("traceback").first(),
        )
        .sort("cells", descending=True, maintain_order=True)
    )
