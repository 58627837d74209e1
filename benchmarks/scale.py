"""A million cells planned, a hundred thousand results looked over, memory over a run: seconds and peak memory of each.

    python -m benchmarks.scale

Aims: plan in 60 s and 1.5 GB; look over 100,000 stored results in 10 s, also where each is a file of its own; flat memory.
"""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from benchmarks.driver import IdleExecutor, planned, row
from pipeline.compaction import compact
from pipeline.drive import execute
from pipeline.executors import start_ray
from pipeline.grid import Cell
from pipeline.lease import Lease
from pipeline.plan import make_plan
from pipeline.results import RunStore, to_arrow
from pipeline.session import begin
from pipeline.spec import load_spec
from pipeline.unit_parts import cell_columns

RATIOS, THRESHOLDS, RECENT = [f"{i / 100:g}" for i in range(1, 101)], [16 * i for i in range(1, 51)], [0, 4, 8, 16, 32]
MILLION = f"""\
name: million
models: [reference-neox]
datasets: [pydocs]
devices: [cpu]
policies: [knorm, random, streaming, recent, knorm_high, h2o, snapkv, tova]
keep_ratios: [{", ".join(RATIOS)}]
prune_after: {THRESHOLDS}
skip_layers: [[], [0], [1], [0, 1], [2]]
protect_recent: {RECENT}
perplexity: {{window: 1024, stride: 1024, windows: 8}}
"""
HUNDRED_THOUSAND = MILLION.replace(f"protect_recent: {RECENT}", "protect_recent: [0]").replace(
    f"{THRESHOLDS}", f"{THRESHOLDS[:26]}"
)
ONE_WINDOW = HUNDRED_THOUSAND.replace("windows: 8", "windows: 1")
PLACEHOLDER = "c" * 16


def plan_a_million(folder: Path) -> None:
    """``kvsweep plan`` in a process of its own, as a user starts it."""
    file = folder / "million.yaml"
    file.write_text(MILLION)
    begin_at = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", "plan", str(file)], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin_at
    count = next(line for line in done.stdout.splitlines() if " cells in " in line)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"kvsweep plan: {count}: {seconds:.1f} s, {peak:.2f} GiB at most", flush=True)


def store_each_alone(store: RunStore, cells: list[Cell]) -> None:
    """A part of one row for each cell. One real part, its cell's name exchanged: writing them one by one would take an hour."""
    own = row(PLACEHOLDER) | cell_columns(cells[1], cells[0].cell_id, "run", "cpu") | {"cell_id": PLACEHOLDER}
    buffer = io.BytesIO()
    pq.write_table(to_arrow("perplexity", [own]), buffer, compression="none")  # so that the name stands in the file as it is
    content = buffer.getvalue()
    folder = Path(store.directory) / "perplexity"
    folder.mkdir(parents=True)
    for number, cell in enumerate(cells):
        (folder / f"unit{number:06d}.parquet").write_bytes(content.replace(PLACEHOLDER.encode(), cell.cell_id.encode()))


def look_over(folder: Path) -> None:
    """What ``kvsweep run`` does before it goes on with a run, and ``kvsweep status``."""
    file = folder / "sweep.yaml"
    file.write_text(ONE_WINDOW)
    plan = make_plan(load_spec(str(file), []))
    store = RunStore(str(folder / "run"), create=True)
    store_each_alone(store, plan.grid.cells)
    for what in (f"{len(plan.grid.cells):,} results, a file each", "the same, compacted"):
        begin_at = time.perf_counter()
        with Lease(store) as lease:
            session = begin(plan, store, lease, retry_failed=False)
        seconds = time.perf_counter() - begin_at
        assert session.pending == [], len(session.pending)
        begin_at = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "status", store.directory], capture_output=True, text=True, check=True
        )
        status = time.perf_counter() - begin_at
        print(f"{what}: looked over for resume in {seconds:.1f} s; kvsweep status {status:.1f} s", flush=True)
        assert f"{len(plan.grid.cells)} done, 0 failed, 0 missing" in done.stdout, done.stdout
        begin_at = time.perf_counter()
        if compact(store):
            print(f"compacted in {time.perf_counter() - begin_at:.1f} s to {len(store.parts('perplexity'))} files", flush=True)


@contextlib.contextmanager
def sampled(every: float = 0.5) -> Iterator[list[float]]:
    """MiB of this process, while the block runs."""
    stop, found = threading.Event(), []

    def sample() -> None:
        while not stop.wait(every):
            found.append(psutil.Process().memory_info().rss / 2**20)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield found
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
        assert execute(session, IdleExecutor("local")) == []
        seconds = time.perf_counter() - begin_at
    tenths = [used[int(len(used) * share)] for share in (0.1, 0.25, 0.5, 0.75, 0.99)]
    files = len(store.parts("perplexity"))
    print(
        f"{units:,} units, {units * 24:,} rows in {seconds:.0f} s, {files} files left: driver's memory at 10, 25, 50, 75, 99 % "
        f"of the run: {', '.join(f'{mib:.0f}' for mib in tenths)} MiB"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan_a_million(folder)
        look_over(folder)
        memory_over_a_run(folder, 6000)


if __name__ == "__main__":
    main()
