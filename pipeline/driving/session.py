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

from pipeline.cells.planned_unit import PlannedUnit
from pipeline.driving.done import DoneIndex
from pipeline.driving.planned_cells import CELLS_NAME, planned_cells
from pipeline.driving.provenance import as_json, describe_run
from pipeline.planning.plan import Plan
from pipeline.store.answer_files import AnswerFiles
from pipeline.store.exclusion import PROBE
from pipeline.store.lease import LEASE_NAME, Lease
from pipeline.store.place import PlaceError, is_remote, placed
from pipeline.store.run_json import RUN_NAME, read_run
from pipeline.store.run_store import STORE_ERRORS, RunStore
from pipeline.store.schema import TASK_COLUMNS
from pipeline.store.store_errors import RunUnreadableError, StoreError, first_line_of
from pipeline.sweepfile.sweep_error import SweepError


@dataclass(frozen=True)
class Session:
    """One driver's turn at a run directory."""

    plan: Plan
    store: RunStore
    lease: Lease
    done: DoneIndex
    answers: AnswerFiles
    run_id: str
    pending: list[PlannedUnit]
    missing: dict[str, list[str]]
    """By pending unit: its cells that miss rows."""
    failed_before: dict[str, tuple[str, str]]
    """Error of every cell that misses rows and is not run: it failed by itself and nobody asked to try
    again."""


@contextlib.contextmanager
def refusing(out: str) -> Iterator[None]:
    """What a store refuses, or holds that cannot be read, is
    bad input; it leaves no folder that was made for it."""
    made: list[Path] = []
    try:
        made += _folders_to_make(out)
        yield
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):  # one that is not empty is somebody's by now
                folder.rmdir()
        if not isinstance(error, (*STORE_ERRORS, ValueError, pl.exceptions.PolarsError)) or isinstance(
            error, SweepError
        ):
            raise

        # Such a message names its place itself.
        named = isinstance(error, StoreError | RunUnreadableError | PlaceError)
        told = error if named else f"{out}: {first_line_of(error)}"
        raise SweepError([f"--out {told}"]) from error


def _folders_to_make(out: str) -> list[Path]:
    """The folders of a local run directory that are not there yet, innermost first. Raises PlaceError."""
    place = placed(out)
    folder = Path(place)
    return [] if is_remote(place) else [path for path in (folder, *folder.parents) if not path.exists()]


def _is_thrown_away(path: Path) -> bool:
    """Whether the current directory is one that Ray made for
    `ray job submit --working-dir`, and ``path`` is in it."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir")) and path.is_relative_to(Path.cwd())


def open_store(out: str) -> RunStore:
    """The run directory. Raises SweepError for a file or a directory of others, and PlaceError."""
    place = placed(out)
    if not is_remote(place):
        path = Path(place)
        if _is_thrown_away(path):
            why = "lies in the job's working directory, which is thrown away; give an absolute path or a URL"
            raise SweepError([f"--out {out}: {why}"])
        if path.exists() and not path.is_dir():
            raise SweepError([f"--out {out}: is a file; name a directory"])

        held = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        # A run that was killed early leaves these.
        of_a_start = {RUN_NAME, LEASE_NAME, *(name for name in held if name.startswith(PROBE))}
        if held and not of_a_start.intersection(held):
            raise SweepError([f"--out {out}: is not empty and holds no kvsweep run; name a new directory"])
    return RunStore(place, create=True)


def begin(plan: Plan, store: RunStore, lease: Lease, *, retry_failed: bool) -> Session:
    """Look over what is stored, and write run.json.

    Raises RunUnreadableError where it is not one that may be written anew.
    """
    previous = read_run(store)
    done, answers = _look_over(plan, store), AnswerFiles(store)
    kept = answers.cells
    answers.drop([cell.cell_id for cell in plan.grid.cells if cell.cell_id in kept and done.has_rows(cell)])

    pending, missing, before = [], {}, {}
    for unit in plan.units:
        lacking = done.missing(unit)
        if any(retry_failed or cell not in done.errors for cell in lacking):
            pending.append(unit)
            missing[unit.unit_id] = lacking
        else:
            before |= {cell: done.errors[cell] for cell in lacking}

    run = describe_run(plan, previous)
    _write(store, {CELLS_NAME: planned_cells(plan), RUN_NAME: as_json(run)}, fresh=previous is None)
    return Session(plan, store, lease, done, answers, run["run_id"], pending, missing, before)


def _write(store: RunStore, files: dict[str, bytes], *, fresh: bool) -> None:
    """Put them all, or, in a ``fresh`` directory, none: half
    of a start would be taken for somebody else's files."""
    try:
        for name, content in files.items():
            store.put(name, content, overwrite=True)
    except BaseException:
        for name in files if fresh else ():
            with contextlib.suppress(*STORE_ERRORS):
                store.delete(name)
        raise


def _look_over(plan: Plan, store: RunStore) -> DoneIndex:
    """What is stored. Parts that cannot be read are set aside: by their footers, and by their values after a
    scan has failed."""

    set_aside(store, thorough=False)
    try:
        return DoneIndex(plan, store)
    except (pl.exceptions.PolarsError, OSError):
        set_aside(store, thorough=True)
        return DoneIndex(plan, store)


def set_aside(store: RunStore, *, thorough: bool) -> int:
    """Take every part that cannot be read out of the way, and say so; how many there were.

    Raises as the store does.
    """
    count = 0
    for task in TASK_COLUMNS:
        for name, words in store.set_aside_unreadable(task, thorough=thorough).items():
            print(f"warning: {name} {words}; set aside, its cells run again", file=sys.stderr)
            count += 1
    return count
