"""Run a sweep: plan, write run.json, drive the executor, store every unit at once, write the report.

The entry point of ``ray submit`` and ``ray job submit``: ``python pipeline/sweep.py SWEEP.yaml --out URI``.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: the packages are beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from pipeline.executors import InlineExecutor, RayExecutor, start_ray
from pipeline.grid import PROTOCOL_VERSION, Cell
from pipeline.plan import Plan, PlannedUnit, make_plan, pending_units, questions_of
from pipeline.progress import Progress
from pipeline.provenance import as_json, describe_run
from pipeline.results import CELL_COLUMNS, STORE_ERRORS, TASKS, RunStore, is_remote, to_arrow
from pipeline.schedule import run_units
from pipeline.spec import SweepError, load_spec
from workers.settings import PruneSettings
from workers.windows import Window
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


def run_sweep(path: str | None, overrides: Sequence[str], options: RunOptions) -> int:
    """The whole of ``kvsweep run``; returns the exit status. The last line on stdout is the path of the report."""
    try:
        plan = make_plan(load_spec(path, overrides))
        if not options.inline and options.address != "local":
            join_cluster(options.address)
        store, run, pending = _open(plan, options.out or f"results/{plan.spec.name}")
    except SweepError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return BAD_INPUT
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    todo = sum(len(unit.cells) for unit in pending)
    print(f"{len(plan.grid.cells)} cells, {todo} to do in {len(pending)} units -> {store.directory}", file=sys.stderr)
    try:
        failures = _execute(plan, store, run["run_id"], pending, options) if pending else []
    except KeyboardInterrupt:
        print(f"interrupted; what is done is kept, the same command goes on from there ({store.directory})", file=sys.stderr)
        return INTERRUPTED
    from analysis.report import write_report

    report = write_report([store.directory], audit=options.audit)
    for (kind, message), cells in failures_by_reason(failures).items():
        print(f"failed: {len(cells)} cells: {kind}: {message}", file=sys.stderr)
    print(report)
    return SOME_FAILED if failures else DONE


def join_cluster(address: str) -> None:
    """Connect before anything is written. Raises SweepError where there is no cluster to join."""
    try:
        start_ray(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "start one with `ray start --head`, or use --address local"
        raise SweepError([f"--address {address}: no Ray cluster can be joined ({reason}); {hint}"]) from error


def _open(plan: Plan, out: str) -> tuple[RunStore, dict[str, Any], list[PlannedUnit]]:
    """The run directory with run.json written, and the units that miss rows. Raises SweepError for a directory of others."""
    if not is_remote(out):
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise SweepError([f"--out {out}: is a file; name a directory"])
        if path.is_dir() and any(path.iterdir()) and not (path / "run.json").exists():
            raise SweepError([f"--out {out}: is not empty and holds no kvsweep run; name a new directory"])
    try:
        store = RunStore(out, create=True)
        content = store.get("run.json")
        previous = json.loads(content) if content else None
        for task in TASKS:
            for name in store.set_aside_unreadable(task):
                print(f"warning: {name} is no readable Parquet file; set aside, its cells run again", file=sys.stderr)
        pending = pending_units(plan, DoneIndex(plan, store))
        run = describe_run(plan, previous)
        store.put("run.json", as_json(run), overwrite=True)
    except (*STORE_ERRORS, ValueError, pl.exceptions.PolarsError) as error:
        if isinstance(error, SweepError):
            raise
        raise SweepError([f"--out {out}: {type(error).__name__}: {str(error).splitlines()[0]}"]) from error
    return store, run, pending


class DoneIndex:
    """``DoneIndex(plan, store)(cell, windows)``: whether the store holds every row of a cell on these windows."""

    def __init__(self, plan: Plan, store: RunStore) -> None:
        self.plan = plan
        windows = store.scan("perplexity").select("cell_id", "window_index").unique().collect()
        self.windows = set(windows.iter_rows())
        self.counts: dict[str, int] = {}
        keys = {"generation": ["repeat"], "retrieval": ["kind", "context_tokens", "depth", "question_index"]}
        for task, columns in keys.items():
            rows = store.scan(task).select("cell_id", *columns).unique().group_by("cell_id").len().collect()
            self.counts |= dict(rows.iter_rows())

    def __call__(self, cell: Cell, windows: tuple[Window, ...]) -> bool:
        """See the class."""
        if cell.task == "perplexity":
            return all((cell.cell_id, window.index) in self.windows for window in windows)
        return self.counts.get(cell.cell_id, 0) >= self.plan.rows_expected(cell)


def _execute(plan: Plan, store: RunStore, run_id: str, pending: list[PlannedUnit], options: RunOptions) -> list[Failure]:
    """Drive all pending units; each result is stored before the next is asked for. Returns the failures."""
    planned = {unit.unit_id: unit for unit in pending}
    failures: list[Failure] = []
    executor = InlineExecutor(options.threads) if options.inline else RayExecutor(options.address, options.threads or 1)
    previous = signal.signal(signal.SIGTERM, _interrupt)  # after ray.init, which installs its own
    try:
        with Progress(sum(len(u.cells) for u in pending), sum(u.cost_seconds for u in pending)) as progress:

            def store_result(unit: WorkUnit, result: UnitResult, attempts: int) -> None:
                source = planned[unit.unit_id]
                _store(plan, store, run_id, source, result, attempts)
                failures.extend(result.failures)
                for warning in result.warnings:
                    print(f"warning: {warning}", file=sys.stderr)
                failed = len({failure.cell_id for failure in result.failures})
                what = f"{unit.task} {unit.model.name} {source.cells[0].dataset}"
                progress.finished(what, len(unit.cells) - failed, failed, source.cost_seconds)

            for phase in ("perplexity", "retrieval", "generation"):  # timing last, with the machine to itself
                run_units((work_unit(plan, u) for u in pending if u.task == phase), executor, store_result, progress.tick)
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


def _store(plan: Plan, store: RunStore, run_id: str, unit: PlannedUnit, result: UnitResult, attempts: int) -> None:
    """Put a unit's rows and failures as parts, whole or not at all."""
    columns = {cell.cell_id: cell_columns(cell, run_id, result.device_name) for cell in unit.cells}
    if result.rows:
        if unit.task == "retrieval":
            tokenizer = Tokenizer.from_file(plan.resolved.models[unit.cells[0].model].tokenizer_file)
            for row in result.rows:
                row["answer"] = tokenizer.decode(row["answer"]).strip()
        rows = [columns[row["cell_id"]] | {k: v for k, v in row.items() if k != "cell_id"} for row in result.rows]
        store.write_part(unit.task, unit.unit_id, to_arrow(unit.task, rows))
    if result.failures:
        rows = [
            columns[failure.cell_id]
            | {k: v for k, v in asdict(failure).items() if k != "cell_id"}
            | {"task": unit.task, "attempts": attempts, "node": result.node}
            for failure in result.failures
        ]
        store.write_part("failures", f"{unit.unit_id}-{store.next_number('failures', unit.unit_id)}", to_arrow("failures", rows))


def cell_columns(cell: Cell, run_id: str, device_name: str) -> dict[str, Any]:
    """The columns that every table starts with."""
    own = {"run_id": run_id, "protocol_version": PROTOCOL_VERSION, "cell_id": cell.cell_id, "device_name": device_name}
    rest = asdict(cell) | own | {"dense_cell_id": cell.dense.cell_id, "skip_layers": list(cell.skip_layers)}
    return {name: rest[name] for name in CELL_COLUMNS}


def failures_by_reason(failures: Iterable[Failure]) -> dict[tuple[str, str], set[str]]:
    """Cells by (error type, message)."""
    grouped: dict[tuple[str, str], set[str]] = defaultdict(set)
    for failure in failures:
        grouped[failure.error_type, failure.message].add(failure.cell_id)
    return grouped


def main(arguments: Sequence[str] | None = None) -> int:
    """``python pipeline/sweep.py`` and ``python -m pipeline.sweep``."""
    parser = argparse.ArgumentParser(prog="pipeline/sweep.py", description="Run a kvsweep sweep on this or another Ray cluster.")
    parser.add_argument("sweep", nargs="?", help="sweep file (default: the embedded one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--out", help="run directory: absolute path or s3://, gs:// (a job's working directory is thrown away)")
    parser.add_argument("--address", default="auto", help="Ray to join; 'local' starts one here (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads per worker")
    given = parser.parse_args(arguments)
    return run_sweep(given.sweep, given.overrides, RunOptions(given.out, given.address, False, given.threads))


if __name__ == "__main__":
    sys.exit(main())
