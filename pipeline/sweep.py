"""Run a sweep: plan, write run.json, drive the executor, store every unit at once, write the report.

The entry point of ``ray submit`` and ``ray job submit``: ``python pipeline/sweep.py SWEEP.yaml --out URI``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the packages are beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cluster_head import ClusterLostError
from pipeline.drive import Executor, execute
from pipeline.executors import RayExecutor, start_ray
from pipeline.foreign_code import check_nothing_in_the_way
from pipeline.inline import InlineExecutor
from pipeline.interrupts import as_ctrl_c, interruptible
from pipeline.lease import Lease, LeaseLostError
from pipeline.plan import make_plan
from pipeline.planning_progress import PlanningProgress
from pipeline.ray_folder import ray_folder
from pipeline.resolve import check_cuda_here
from pipeline.results import STORE_ERRORS, RunStore
from pipeline.run_status import plain
from pipeline.session import Session, begin, open_store, refusing, set_aside
from pipeline.spec import SweepError, load_spec
from pipeline.store_errors import RunUnreadableError, StoreError, first_line_of
from pipeline.streams import run_guarded, say_last
from pipeline.waiting import Patience

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
    unit_timeout: float | None = None
    """Seconds after which a unit is ended; by default many times its estimate."""
    wait_for_nodes: float | None = None
    """Seconds to wait for nodes that may yet join, such as those that an autoscaler starts."""


def run_sweep(path: str | None, overrides: Sequence[str], options: RunOptions) -> int:
    """The whole of ``kvsweep run``; returns the exit status. The last line on stdout is the path of the report."""
    try:
        with interruptible():
            return _plan_and_run(path, overrides, options)
    except SweepError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _plan_and_run(path: str | None, overrides: Sequence[str], options: RunOptions) -> int:
    with PlanningProgress() as said:
        plan = make_plan(load_spec(path, overrides), said=said)
    if options.inline or options.address == "local":
        check_cuda_here(plan.spec)
    if not options.inline:
        _prepare_ray(options.address)
    out = f"results/{plan.spec.name}" if options.out is None else options.out
    with contextlib.ExitStack() as driving:
        with refusing(out), contextlib.ExitStack() as starting:
            store = open_store(out)
            lease = starting.enter_context(Lease(store))
            session = begin(plan, store, lease, retry_failed=options.retry_failed)
            driving.enter_context(starting.pop_all())
        return _run(session, options)


def _prepare_ray(address: str) -> None:
    """Whatever may keep Ray from running is found before anything is written. Raises SweepError."""
    if address != "local":
        join_cluster(address)
        return
    _, note = ray_folder()
    if note:
        print(f"note: {note}", file=sys.stderr)


def _executor(options: RunOptions) -> Executor:
    if options.inline:
        return InlineExecutor(options.threads)
    patience = None
    if options.wait_for_nodes is not None:
        patience = Patience(options.wait_for_nodes, options.wait_for_nodes, unknown_types=options.address != "local")
    executor = RayExecutor(options.address, options.threads or 1, options.unit_timeout, patience)
    as_ctrl_c()  # ray.init has put its own handlers in place
    return executor


def _run(session: Session, options: RunOptions) -> int:
    """Everything after the start: what is pending, the report, what failed."""
    store, before = session.store, session.failed_before
    _announce(session)
    try:
        failures = execute(session, _executor(options)) if session.pending else []
    except LeaseLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return INTERRUPTED
    except ClusterLostError as error:
        print(f"error: {error}; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except STORE_ERRORS as error:
        what = str(error) if isinstance(error, StoreError) else f"{store.directory}: {first_line_of(error)}"
        print(f"error: {what}; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    from analysis.report import make_report

    try:
        report = make_report([store.directory], audit=options.audit)
    except (RunUnreadableError, *STORE_ERRORS) as error:
        print(f"error: no report: {_no_report(store, error)}", file=sys.stderr)
        return SOME_FAILED
    for (kind, message), cells in cells_by_reason((f.cell_id, f.error_type, f.message) for f in failures).items():
        print(f"failed: {len(cells)} cells: {kind}: {_line(message)}", file=sys.stderr)
    for (kind, message), cells in cells_by_reason((cell, *error) for cell, error in before.items()).items():
        print(f"failed before: {len(cells)} cells: {kind}: {_line(message)}; --retry-failed runs them again", file=sys.stderr)
    say_last(str(report))
    return SOME_FAILED if failures or before else DONE


def _no_report(store: RunStore, error: Exception) -> str:
    """Why there is none and what to do. Parts with a sound end and broken values are found here, and set aside."""
    try:
        broken = set_aside(store, thorough=True) if isinstance(error, RunUnreadableError) else 0
    except (RunUnreadableError, *STORE_ERRORS):
        broken = 0
    if broken:
        return f"{broken} parts could not be read and were set aside; the same command runs their cells again"
    return f"{first_line_of(error)}; every row is kept, `kvsweep report` writes it"


def _announce(session: Session) -> None:
    """What is known before anything runs: the plan's notes, and how much there is to do."""
    for note in session.plan.notes:
        print(f"note: {note}", file=sys.stderr)
    todo = len({cell for cells in session.missing.values() for cell in cells})
    before = len(session.failed_before)
    left = f", {before} failed before and are left" if before else ""
    print(
        f"{len(session.plan.grid.cells)} cells, {todo} to do in {len(session.pending)} units{left} -> {session.store.directory}",
        file=sys.stderr,
    )


def join_cluster(address: str) -> None:
    """Connect before anything is written. Raises SweepError where there is no cluster to join, or other code is in the way."""
    check_nothing_in_the_way()
    try:
        start_ray(address)
        as_ctrl_c()
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "is it there, and is its token yours (docs/cluster.md)? Or use --address local"
        raise SweepError([f"--address {address}: no Ray cluster can be joined ({reason}); {hint}"]) from error


def _line(message: str) -> str:
    """A failure's message, which models, policies and stores of others have made, as one line for a terminal."""
    return plain(" ".join(message.split()))[:400]


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
    parser.add_argument(
        "--out", help="run directory: absolute path or s3://, gs://, az:// (a job's working directory is thrown away)"
    )
    parser.add_argument("--address", default="auto", help="Ray to join; 'local' starts one here (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads per worker")
    parser.add_argument("--retry-failed", action="store_true", help="also run cells again that failed in an earlier run")
    parser.add_argument("--unit-timeout", type=float, metavar="SECONDS", help="end a unit that takes longer (default: 50 times "
                        "its estimate, at least half an hour)")  # fmt: skip
    parser.add_argument("--wait-for-nodes", type=float, metavar="SECONDS", help="wait so long for nodes that units need and that "
                        "are not there (default: 20 minutes where the cluster file can start them, else 30 seconds)")  # fmt: skip
    given = parser.parse_args(arguments)
    options = RunOptions(
        given.out, given.address, threads=given.threads, retry_failed=given.retry_failed, unit_timeout=given.unit_timeout,
        wait_for_nodes=given.wait_for_nodes,
    )  # fmt: skip
    return run_sweep(given.sweep, given.overrides, options)


if __name__ == "__main__":
    run_guarded(main)
