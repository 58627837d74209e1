"""A plan meets a run directory: what is stored already, what is left to do, who may drive."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.done import DoneIndex
from pipeline.lease import NAME as LEASE_NAME
from pipeline.lease import Lease
from pipeline.plan import Plan, PlannedUnit
from pipeline.provenance import CELLS_FILE, as_json, describe_run, planned_cells
from pipeline.results import STORE_ERRORS, TASK_COLUMNS, RunStore, is_remote
from pipeline.spec import SweepError
from pipeline.store_errors import StoreError


@dataclass(frozen=True)
class Session:
    """One driver's turn at a run directory."""

    plan: Plan
    store: RunStore
    lease: Lease
    done: DoneIndex
    run_id: str
    pending: list[PlannedUnit]
    missing: dict[str, list[str]]
    """By pending unit: its cells that miss rows."""
    failed_before: dict[str, tuple[str, str]]
    """Error of every cell that misses rows and is not run: it failed by itself and nobody asked to try again."""


@contextlib.contextmanager
def refusing(out: str) -> Iterator[None]:
    """What a store refuses, or holds that cannot be read, is bad input."""
    try:
        yield
    except SweepError:
        raise
    except (*STORE_ERRORS, ValueError, pl.exceptions.PolarsError) as error:
        told = f"{out}: {type(error).__name__}: {str(error).splitlines()[0]}"  # a StoreError names its place itself
        raise SweepError([f"--out {error if isinstance(error, StoreError) else told}"]) from error


def _is_thrown_away(path: Path) -> bool:
    """Whether the current directory is one that Ray made for `ray job submit --working-dir`, and ``path`` is in it."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir")) and path.resolve().is_relative_to(Path.cwd())


def open_store(out: str) -> RunStore:
    """The run directory. Raises SweepError for a file or a directory of others."""
    if not is_remote(out):
        path = Path(out)
        if _is_thrown_away(path):
            why = "lies in the job's working directory, which is thrown away; give an absolute path or a URL"
            raise SweepError([f"--out {out}: {why}"])
        if path.exists() and not path.is_dir():
            raise SweepError([f"--out {out}: is a file; name a directory"])
        if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in ("run.json", LEASE_NAME)):
            raise SweepError([f"--out {out}: is not empty and holds no kvsweep run; name a new directory"])
    return RunStore(out, create=True)


def begin(plan: Plan, store: RunStore, lease: Lease, *, retry_failed: bool) -> Session:
    """Look over what is stored, and write run.json."""
    content = store.get("run.json")
    previous = json.loads(content) if content else None
    done = _look_over(plan, store)
    pending, missing, before = [], {}, {}
    for unit in plan.units:
        lacking = done.missing(unit)
        if any(retry_failed or cell not in done.errors for cell in lacking):
            pending.append(unit)
            missing[unit.unit_id] = lacking
        else:
            before |= {cell: done.errors[cell] for cell in lacking}
    run = describe_run(plan, previous)
    store.put(CELLS_FILE, planned_cells(plan), overwrite=True)
    store.put("run.json", as_json(run), overwrite=True)
    return Session(plan, store, lease, done, run["run_id"], pending, missing, before)


def _look_over(plan: Plan, store: RunStore) -> DoneIndex:
    """What is stored. Parts that are no whole Parquet files are set aside: every footer is read only after a scan has failed."""

    def set_aside(*, thorough: bool) -> None:
        for task in TASK_COLUMNS:
            for name in store.set_aside_unreadable(task, thorough=thorough):
                print(f"warning: {name} is no readable Parquet file; set aside, its cells run again", file=sys.stderr)

    set_aside(thorough=False)
    try:
        return DoneIndex(plan, store)
    except (pl.exceptions.PolarsError, OSError):
        set_aside(thorough=True)
        return DoneIndex(plan, store)
