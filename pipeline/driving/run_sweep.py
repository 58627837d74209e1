"""The whole of ``kvsweep run``: plan, write run.json, drive
the executor, store every unit at once, write the report."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.cluster.cluster_head import ClusterLostError
from pipeline.cluster.executors import RayExecutor, start_ray
from pipeline.cluster.foreign_code import check_nothing_in_the_way
from pipeline.cluster.inline import InlineExecutor
from pipeline.cluster.ray_folder import ray_folder
from pipeline.cluster.waiting import Patience
from pipeline.driving.drive import AnyExecutor, execute
from pipeline.driving.interrupts import as_ctrl_c, interruptible
from pipeline.driving.session import Session, begin, open_store, refusing, set_aside
from pipeline.driving.streams import plain, say_last
from pipeline.planning.plan import make_plan
from pipeline.planning.planning_progress import PlanningProgress
from pipeline.planning.resolve import check_cuda_here
from pipeline.planning.spec import load_spec
from pipeline.store.lease import Lease, LeaseLostError
from pipeline.store.run_store import STORE_ERRORS, RunStore
from pipeline.store.store_errors import RunUnreadableError, StoreError, first_line_of
from pipeline.sweepfile.sweep_error import SweepError
from workers.messages.work import Failure

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
    """Returns the exit status. The last line on stdout is the path of the report."""
    try:
        with interruptible(), _started(path, overrides, options) as session:
            _announce(session)

            try:
                failures = execute(session, _executor(options)) if session.pending else []
            except (LeaseLostError, ClusterLostError, *STORE_ERRORS) as error:
                print(f"error: {_why_it_stopped(error, session.store)}", file=sys.stderr)
                return INTERRUPTED

            return _write_report(session, failures, audit=options.audit)
    except SweepError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def _started(path: str | None, overrides: Sequence[str], options: RunOptions) -> Iterator[Session]:
    """The sweep, planned, with its run directory, whose lease is held meanwhile. Raises SweepError before
    anything is written."""
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
        yield session


def _prepare_ray(address: str) -> None:
    """Whatever may keep Ray from running is found before anything is written. Raises SweepError."""
    if address != "local":
        join_cluster(address)
        return
    _, note = ray_folder()
    if note:
        print(f"note: {note}", file=sys.stderr)


def _executor(options: RunOptions) -> AnyExecutor:
    if options.inline:
        return InlineExecutor(options.threads)
    patience = None
    if options.wait_for_nodes is not None:
        patience = Patience(
            options.wait_for_nodes, options.wait_for_nodes, unknown_types=options.address != "local"
        )
    executor = RayExecutor(options.address, options.threads or 1, options.unit_timeout, patience)
    as_ctrl_c()  # ray.init has put its own handlers in place
    return executor


def _why_it_stopped(error: Exception, store: RunStore) -> str:
    """Why a run could not go on, and what to do."""
    if isinstance(error, LeaseLostError):
        return str(error)
    names_itself = isinstance(error, ClusterLostError | StoreError)
    what = str(error) if names_itself else f"{store.directory}: {first_line_of(error)}"
    return f"{what}; what is done is kept, the same command goes on from there"


def _write_report(session: Session, failures: Sequence[Failure], *, audit: bool) -> int:
    """The report, and what failed now and before; returns the exit status."""
    from analysis.report import make_report

    store, before = session.store, session.failed_before
    try:
        report = make_report([store.directory], audit=audit)
    except (RunUnreadableError, *STORE_ERRORS) as error:
        print(f"error: no report: {_no_report(store, error)}", file=sys.stderr)
        return SOME_FAILED

    for (kind, message), cells in cells_by_reason(
        (f.cell_id, f.error_type, f.message) for f in failures
    ).items():
        print(f"failed: {len(cells)} cells: {kind}: {_line(message)}", file=sys.stderr)
    for (kind, message), cells in cells_by_reason((cell, *error) for cell, error in before.items()).items():
        again = "--retry-failed runs them again"
        print(f"failed before: {len(cells)} cells: {kind}: {_line(message)}; {again}", file=sys.stderr)

    say_last(str(report))
    return SOME_FAILED if failures or before else DONE


def _no_report(store: RunStore, error: Exception) -> str:
    """Why there is none and what to do.

    Parts with a sound end and broken values are found here, and set aside.
    """
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
        f"{len(session.plan.grid.cells)} cells, {todo} to do in {len(session.pending)} units{left} -> "
        f"{session.store.directory}",
        file=sys.stderr,
    )


def join_cluster(address: str) -> None:
    """Connect before anything is written. Raises SweepError where there is no cluster to join, or other code
    is in the way."""
    check_nothing_in_the_way()
    try:
        start_ray(address)
        as_ctrl_c()
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "is it there, and is its token yours (docs/cluster.md)? Or use --address local"
        raise SweepError([f"--address {address}: no Ray cluster can be joined ({reason}); {hint}"]) from error


def _line(message: str) -> str:
    """A failure's message, which models, policies and stores of others have made, as one line for a
    terminal."""
    return plain(" ".join(message.split()))[:400]


def cells_by_reason(failures: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], set[str]]:
    """Cells by (error type, message), from (cell, error type, message)."""
    grouped: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell, kind, message in failures:
        grouped[kind, message].add(cell)
    return grouped
