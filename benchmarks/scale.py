"""A million cells planned, a hundred thousand results looked over, memory over a run: seconds and peak memory
of each.

    python -m benchmarks.scale [--plans [--against FOLDER]]

``--plans`` measures planning alone, along each axis. FOLDER is a checkout of other code, which plans a
smaller grid side by side.

Aims: plan in 30 s and 1 GB whatever the axes. Look over 100,000 stored results in 10 s, also where each is a
file of its own. Flat memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from benchmarks.grids import grids, one_window_each
from benchmarks.idle_workers import CELLS, IdleExecutor, given_row, planned
from pipeline.cells.cell import Cell
from pipeline.cluster.executors import start_ray
from pipeline.driving.compaction import compact
from pipeline.driving.drive import execute
from pipeline.driving.session import begin
from pipeline.driving.unit_parts import cell_columns
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from pipeline.tasks.perplexity import windows_of
from workers.texts.windows import Window

PLACEHOLDER = "c" * 16
MEASURE = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
    "print(done.stdout + done.stderr[-300:]); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def planned_in(code: Path, file: Path, folder: Path) -> tuple[str, float, float]:
    """``kvsweep plan`` in a process of its own, as a user starts it: what it counts, seconds, GiB at most."""
    code_of = os.environ | {"PYTHONPATH": f"{code}:{folder}"}
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "pipeline.cli", "plan", str(file)]
    begin_at = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=code_of, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin_at
    *said, peak = done.stdout.splitlines()
    count = next((line for line in said if " cells in " in line), None)
    if count is None:
        raise SystemExit(f"no plan by the code in {code}: {' '.join(said)[-300:]}")
    return count, seconds, int(peak) / 2**20


def plans_along_each_axis(folder: Path, cells: int, axes: list[str] | None, against: Path | None) -> None:
    """So many cells, and beside other code a grid that it can plan."""
    here = Path(__file__).resolve().parent.parent
    for name, file in _files(folder, cells, axes):
        count, seconds, peak = planned_in(here, file, folder)
        print(f"kvsweep plan, {name}: {count}: {seconds:.1f} s, {peak:.2f} GiB at most", flush=True)
    if against is None:
        return

    for name, file in _files(folder, max(1, cells // 10), axes):
        count, seconds, _ = planned_in(here, file, folder)
        other, before, _ = planned_in(against.resolve(), file, folder)
        same = "the same" if count == other else f"other code: {other}"
        times = f"{seconds:.1f} s, {before:.1f} s before, {before / seconds:.1f} times"
        print(f"side by side, {name}: {count}: {times}; {same}", flush=True)


def _files(folder: Path, cells: int, axes: list[str] | None) -> Iterator[tuple[str, Path]]:
    """The grids whose names were asked for, one after the other in one file. Ends the program where there is
    none."""
    every = grids(folder, cells)
    if unknown := set(axes or []) - every.keys():
        raise SystemExit(f"no such axes: {', '.join(sorted(unknown))}. There are: {'; '.join(every)}")
    for name in axes or every:
        (folder / "grid.yaml").write_text(every[name])
        yield name, folder / "grid.yaml"


def store_each_alone(store: RunStore, cells: list[Cell], window: Window) -> None:
    """A part of one row for each cell, of its only window.

    One real part, its cell's name exchanged: writing them one by one would take an hour.
    """
    columns = cell_columns(cells[1], cells[0].cell_id, "run", "cpu")
    own = given_row(PLACEHOLDER, window) | columns | {"cell_id": PLACEHOLDER}
    buffer = io.BytesIO()
    pq.write_table(
        to_arrow("perplexity", [own]), buffer, compression="none"
    )  # so that the name stands in it as it is
    content = buffer.getvalue()
    folder = Path(store.directory) / "perplexity"
    folder.mkdir(parents=True)
    for number, cell in enumerate(cells):
        named = content.replace(PLACEHOLDER.encode(), cell.cell_id.encode())
        (folder / f"unit{number:06d}.parquet").write_bytes(named)


def look_over(folder: Path, results: int) -> None:
    """What ``kvsweep run`` does before it goes on with a run, and ``kvsweep status``."""
    file = folder / "sweep.yaml"
    file.write_text(one_window_each(results))
    plan = make_plan(load_spec(str(file), []))
    store = RunStore(str(folder / "run"), create=True)
    (window,) = windows_of(plan.grid.cells[0], plan.resolved)
    store_each_alone(store, plan.grid.cells, window)
    count = len(plan.grid.cells)
    for what in (f"{count:,} results, a file each", "the same, compacted"):
        begin_at = time.perf_counter()
        with Lease(store) as lease:
            session = begin(plan, store, lease, retry_failed=False)
        seconds = time.perf_counter() - begin_at
        assert session.pending == [], len(session.pending)

        begin_at = time.perf_counter()
        command = [sys.executable, "-m", "pipeline.cli", "status", store.directory]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        status = time.perf_counter() - begin_at
        print(f"{what}: looked over for resume in {seconds:.1f} s; kvsweep status {status:.1f} s", flush=True)
        assert f"{count} done, 0 failed, 0 missing" in done.stdout, done.stdout

        begin_at = time.perf_counter()
        if compact(store):
            files = len(store.parts("perplexity"))
            print(f"compacted in {time.perf_counter() - begin_at:.1f} s to {files} files", flush=True)


@contextlib.contextmanager
def sampled(every: float = 0.5) -> Iterator[list[float]]:
    """MiB of this process, while the block runs: at its start, and then every so many seconds."""
    process = psutil.Process()
    stop, found = threading.Event(), [process.memory_info().rss / 2**20]

    def sample() -> None:
        while not stop.wait(every):
            found.append(process.memory_info().rss / 2**20)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def memory_over_a_run(folder: Path, units: int) -> None:
    """A whole turn with workers that do nothing: each unit stores 24 rows, parts are compacted on the way."""
    start_ray("local")
    plan = planned(units)
    store = RunStore(str(folder / "flat"), create=True)
    with Lease(store) as lease, sampled() as used, contextlib.redirect_stderr(io.StringIO()):
        session = begin(plan, store, lease, retry_failed=False)
        begin_at = time.perf_counter()
        failures = execute(session, IdleExecutor("local"))
        seconds = time.perf_counter() - begin_at
    if failures:
        raise SystemExit(
            f"{len(failures)} cells failed, the first of {failures[0].error_type}: {failures[0].message}"
        )

    tenths = ", ".join(f"{used[int(len(used) * share)]:.0f}" for share in (0.1, 0.25, 0.5, 0.75, 0.99))
    files = len(store.parts("perplexity"))
    print(
        f"{units:,} units, {units * CELLS:,} rows in {seconds:.0f} s, {files} files left: "
        f"driver's memory at 10, 25, 50, 75, 99 % of the run: {tenths} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", action="store_true", help="planning alone")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="other code to plan side by side with")
    parser.add_argument(
        "--cells", type=int, default=1_000_000, help="about so many in each grid that is planned"
    )
    parser.add_argument(
        "--axes", nargs="+", metavar="GRID", help="plan only these grids, by their names in the table"
    )
    parser.add_argument("--results", type=int, default=104_000, help="about so many are looked over")
    parser.add_argument("--units", type=int, default=6000, help="of the run whose memory is measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plans_along_each_axis(folder, given.cells, given.axes, given.against)
        if given.plans:
            return
        look_over(folder, given.results)
        memory_over_a_run(folder, given.units)


if __name__ == "__main__":
    main()
