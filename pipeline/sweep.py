"""Run a sweep: plan, write run.json, drive the executor, store every unit at once, write the report.

The entry point of ``ray submit`` and ``ray job submit``: ``python pipeline/sweep.py SWEEP.yaml --out URI``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the packages are beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import polars as pl

from pipeline.done import DoneIndex
from pipeline.executors import InlineExecutor, RayExecutor, start_ray
from pipeline.grid import Cell
from pipeline.lease import NAME as LEASE_NAME
from pipeline.lease import Lease, LeaseLostError
from pipeline.plan import Plan, PlannedUnit, make_plan, pending_units, questions_of
from pipeline.progress import Progress
from pipeline.provenance import as_json, describe_run
from pipeline.results import STORE_ERRORS, TASKS, RunStore, is_remote
from pipeline.schedule import run_units
from pipeline.spec import SweepError, load_spec
from pipeline.store_errors import StoreError
from pipeline.unit_parts import PartWriter
from workers.settings import PruneSettings
from workers.work import Failure, GenerationWork, PerplexityWork, RetrievalWork, UnitCell, UnitResult, Work, WorkUnit

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class RunOptions:
    """How to run and what to report, which changes no number."""

    out: str | None = None
    address: str = "local"
    inline: bool = False
    threads: int | None = None
    audit: bool = False
    """Whether the report judges what the seed reports claimed."""
    retry_failed: bool = False
    """Whether cells that failed by themselves in an earlier run are tried again."""


@dataclass(frozen=True)
class Session:
    """One driver's turn at a run directory."""

    plan: Plan
    store: RunStore
    lease: Lease
    done: DoneIndex
    run_id: str
    pending: list[PlannedUnit]
    options: RunOptions

    @property
    def failed_before(self) -> dict[str, tuple[str, str]]:
        """Error of every cell that misses rows and is not run: it failed by itself and nobody asked to try again."""
        run = {(cell, unit.windows) for unit in self.pending for cell in self.done.missing(unit)}
        missing = [(cell, unit.windows) for unit in self.plan.units for cell in self.done.missing(unit)]
        return {cell: self.done.errors[cell] for cell, windows in missing if (cell, windows) not in run}


def run_sweep(path: str | None, overrides: Sequence[str], options: RunOptions) -> int:
    """The whole of ``kvsweep run``; returns the exit status. The last line on stdout is the path of the report."""
    try:
        plan = make_plan(load_spec(path, overrides))
        if not options.inline and options.address != "local":
            join_cluster(options.address)
        out = options.out or f"results/{plan.spec.name}"
        with contextlib.ExitStack() as stack:
            with _refusing(out):
                store = _open(out)
                lease = stack.enter_context(Lease(store))
                session = _begin(plan, store, lease, options)
            return _run(session)
    except SweepError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return BAD_INPUT


def _run(session: Session) -> int:
    """Everything after the start: what is pending, the report, what failed."""
    store, before = session.store, session.failed_before
    _announce(session, len(before))
    try:
        failures = _execute(session) if session.pending else []
    except KeyboardInterrupt:
        print(f"interrupted; what is done is kept, the same command goes on from there ({store.directory})", file=sys.stderr)
        return INTERRUPTED
    except LeaseLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return INTERRUPTED
    except STORE_ERRORS as error:
        what = str(error) if isinstance(error, StoreError) else f"{store.directory}: {str(error).splitlines()[0]}"
        print(f"error: {what}; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    from analysis.load import RunUnreadableError
    from analysis.report import write_report

    try:
        report = write_report([store.directory], audit=session.options.audit)
    except (RunUnreadableError, *STORE_ERRORS) as error:
        print(f"error: no report: {error}; every row is kept, `kvsweep report` writes it", file=sys.stderr)
        return SOME_FAILED
    for (kind, message), cells in cells_by_reason((f.cell_id, f.error_type, f.message) for f in failures).items():
        print(f"failed: {len(cells)} cells: {kind}: {message}", file=sys.stderr)
    for (kind, message), cells in cells_by_reason((cell, *error) for cell, error in before.items()).items():
        print(f"failed before: {len(cells)} cells: {kind}: {message}; --retry-failed runs them again", file=sys.stderr)
    print(report)
    return SOME_FAILED if failures or before else DONE


def _announce(session: Session, failed_before: int) -> None:
    """What is known before anything runs: the plan's notes, and how much there is to do."""
    for note in session.plan.notes:
        print(f"note: {note}", file=sys.stderr)
    todo = len({cell for unit in session.pending for cell in session.done.missing(unit)})
    left = f", {failed_before} failed before and are left" if failed_before else ""
    print(
        f"{len(session.plan.grid.cells)} cells, {todo} to do in {len(session.pending)} units{left} -> {session.store.directory}",
        file=sys.stderr,
    )


def join_cluster(address: str) -> None:
    """Connect before anything is written. Raises SweepError where there is no cluster to join."""
    try:
        start_ray(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "start one with `ray start --head`, or use --address local"
        raise SweepError([f"--address {address}: no Ray cluster can be joined ({reason}); {hint}"]) from error


@contextlib.contextmanager
def _refusing(out: str) -> Iterator[None]:
    """What a store refuses, or holds that cannot be read, is bad input."""
    try:
        yield
    except SweepError:
        raise
    except (*STORE_ERRORS, ValueError, pl.exceptions.PolarsError) as error:
        told = f"{out}: {type(error).__name__}: {str(error).splitlines()[0]}"  # a StoreError names its place itself
        raise SweepError([f"--out {error if isinstance(error, StoreError) else told}"]) from error


def _open(out: str) -> RunStore:
    """The run directory. Raises SweepError for a file or a directory of others."""
    if not is_remote(out):
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise SweepError([f"--out {out}: is a file; name a directory"])
        if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in ("run.json", LEASE_NAME)):
            raise SweepError([f"--out {out}: is not empty and holds no kvsweep run; name a new directory"])
    return RunStore(out, create=True)


def _begin(plan: Plan, store: RunStore, lease: Lease, options: RunOptions) -> Session:
    """Look over what is stored, and write run.json."""
    content = store.get("run.json")
    previous = json.loads(content) if content else None
    for task in TASKS:
        for name in store.set_aside_unreadable(task):
            print(f"warning: {name} is no readable Parquet file; set aside, its cells run again", file=sys.stderr)
    done = DoneIndex(plan, store)
    pending = pending_units(plan, done.is_missing if options.retry_failed else done.is_to_do)
    run = describe_run(plan, previous)
    store.put("run.json", as_json(run), overwrite=True)
    return Session(plan, store, lease, done, run["run_id"], pending, options)


def _execute(session: Session) -> list[Failure]:
    """Drive all pending units; each result is stored before the next is asked for. Returns the failures."""
    pending, options = session.pending, session.options
    planned = {unit.unit_id: unit for unit in pending}
    missing = {unit.unit_id: session.done.missing(unit) for unit in pending}
    parts = PartWriter(session.plan, session.store, session.run_id, session.done)
    failures: list[Failure] = []
    executor = InlineExecutor(options.threads) if options.inline else RayExecutor(options.address, options.threads or 1)
    previous = signal.signal(signal.SIGTERM, _interrupt)  # after ray.init, which installs its own
    try:
        with Progress(missing.values(), sum(u.cost_seconds for u in pending)) as progress:

            def store_result(unit: WorkUnit, result: UnitResult, attempts: int) -> None:
                session.lease.hold()
                source = planned[unit.unit_id]
                failed = parts.write(source, result, attempts)
                failures.extend(failed)
                for warning in result.warnings:
                    print(f"warning: {warning}", file=sys.stderr)
                what = f"{unit.task} {unit.model.name} {source.cells[0].dataset}"
                progress.finished(what, missing[unit.unit_id], {failure.cell_id for failure in failed}, source.cost_seconds)

            for phase in ("perplexity", "retrieval", "generation"):  # timing last, with the machine to itself
                units = (work_unit(session.plan, unit) for unit in pending if unit.task == phase)
                run_units(units, executor, store_result, progress.tick)
    finally:
        executor.close()
        signal.signal(signal.SIGTERM, previous)
    return failures


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def work_unit(plan: Plan, unit: PlannedUnit) -> WorkUnit:
    """A planned unit with the token ids that its worker needs."""
    first = unit.cells[0]
    cells = tuple(UnitCell(cell.cell_id, prune_settings(cell)) for cell in unit.cells)
    model = plan.resolved.models[first.model]
    return WorkUnit(unit.unit_id, unit.task, model, first.device, first.dtype, cells, _work(plan, unit))


def prune_settings(cell: Cell) -> PruneSettings:
    """What the cache needs to know of a cell."""
    return PruneSettings(
        cell.policy, cell.keep_ratio, cell.prune_after or 1, cell.skip_layers, cell.protect_sink, cell.protect_recent,
        cell.schedule, cell.position_mode, cell.seed,
    )  # fmt: skip


def _work(plan: Plan, unit: PlannedUnit) -> Work:
    first = unit.cells[0]
    tokens = plan.resolved.tokens[first.model, first.dataset]
    settings = json.loads(first.settings)
    if unit.task == "perplexity":
        ids = np.stack([tokens.ids[w.start : w.start + w.length] for w in unit.windows])
        return PerplexityWork(unit.windows, ids, tuple(tokens.document_at(w.start) for w in unit.windows), settings["stride"])
    if unit.task == "generation":
        length, batch = settings["prompt_tokens"], settings["batch_size"]
        prompts = tuple(tuple(tokens.ids[i * length : (i + 1) * length].tolist()) for i in range(batch))
        names = ("new_tokens", "repeats", "max_repeats", "interval_width", "warmup", "protocol")
        return GenerationWork(prompts, **{name: settings[name] for name in names}, seed=first.seed)
    return RetrievalWork(tuple(questions_of(plan, first)))


def cells_by_reason(failures: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], set[str]]:
    """Cells by (error type, message), from (cell, error type, message)."""
    grouped: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell, kind, message in failures:
        grouped[kind, message].add(cell)
    return grouped


def main(arguments: Sequence[str] | None = None) -> int:
    """``python pipeline/sweep.py`` and ``python -m pipeline.sweep``."""
    parser = argparse.ArgumentParser(prog="pipeline/sweep.py", description="Run a kvsweep sweep on this or another Ray cluster.")
    parser.add_argument("sweep", nargs="?", help="sweep file (default: the embedded one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--out", help="run directory: absolute path or s3://, gs:// (a job's working directory is thrown away)")
    parser.add_argument("--address", default="auto", help="Ray to join; 'local' starts one here (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads per worker")
    parser.add_argument("--retry-failed", action="store_true", help="also run cells again that failed in an earlier run")
    given = parser.parse_args(arguments)
    options = RunOptions(given.out, given.address, threads=given.threads, retry_failed=given.retry_failed)
    return run_sweep(given.sweep, given.overrides, options)


if __name__ == "__main__":
    sys.exit(main())
