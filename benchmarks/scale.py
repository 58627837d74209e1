"""A million cells planned, a hundred thousand results looked over, memory over a run: seconds and peak memory of each.

    python -m benchmarks.scale [--plans [--against FOLDER]]

``--plans`` measures planning alone, along each axis; FOLDER is a checkout of other code, which plans a smaller grid side by side.

Aims: plan in 30 s and 1 GB whatever the axes.
Look over 100,000 stored results in 10 s, also where each is a file of its own; flat memory.
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

from benchmarks.driver import IdleExecutor, planned, row
from pipeline.cell import Cell
from pipeline.compaction import compact
from pipeline.drive import execute
from pipeline.executors import start_ray
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


TEXT = "The river ran under the bridge. " * 4000
COARSE = [f"{i / 101:.4f}" for i in range(1, 101)]
STEPS = list(range(1, 1001))
PERPLEXITY = "perplexity: {window: 128, windows: 2}"


def grid_of(task: str = PERPLEXITY, **keys: object) -> str:
    """A sweep file; what is not given is one value."""
    values = {"models": "[reference-neox]", "datasets": "[pydocs]", "devices": "[cpu]", "keep_ratios": "[0.5]", **keys}
    return "\n".join(["name: grid", *(f"{key}: {_flow(value)}" for key, value in values.items()), task]) + "\n"


def _flow(value: object) -> str:
    return value if isinstance(value, str) else "[" + ", ".join(map(str, list(value))) + "]"  # pyright: ignore


def grids(folder: Path, cells: int) -> dict[str, str]:
    """Grids of about so many cells, each large along other axes: a square of two, or one axis beside a hundred ratios."""
    side = round(cells**0.5)
    ratios, many = [f"{i / (side + 1):.5f}" for i in range(1, side + 1)], max(1, cells // 100)
    own = [f"'many:f{i}'" for i in range(many)]
    (folder / "many.py").write_text("".join(f"def f{i}(view):\n    return view.positions.float()\n" for i in range(many)))
    texts = []
    for i in range(max(1, cells // 5000)):
        (folder / f"text{i}.txt").write_text(f"{i} {TEXT}")
        texts.append(f"'text:{folder}/text{i}.txt'")
    layers = [[layer for layer in range(6) if number >> layer & 1] for number in range(63)]
    excluded = ", ".join(f"{{keep_ratios: [{r}], prune_after: [{n}]}}" for r in ratios[::10] for n in STEPS[:side:10])
    return {
        "keep_ratios x prune_after": grid_of(keep_ratios=ratios, prune_after=STEPS[:side]),
        "one axis, keep_ratios": grid_of(keep_ratios=[f"{i / (cells + 1):.8f}" for i in range(1, min(cells, 100_000) + 1)]),
        "policies of one module": grid_of(policies=own, keep_ratios=COARSE),
        "skip_layers": grid_of(skip_layers=layers, keep_ratios=COARSE, prune_after=STEPS[: max(1, cells // 6300)]),
        "protect_sink, protect_recent": grid_of(
            keep_ratios=COARSE, protect_sink=STEPS[: max(1, side // 10)], protect_recent=STEPS[: max(1, side // 10)],
            prune_after="[512]", task="perplexity: {window: 1024, windows: 2}",
        ),
        "exclude, a block for each hundredth cell": grid_of(
            keep_ratios=ratios, prune_after=STEPS[:side], exclude=f"[{excluded}]"
        ),
        "datasets": grid_of(datasets=texts, keep_ratios=ratios, prune_after=STEPS[: max(1, round(5000 / side))]),
        "prompts x batches of generation": grid_of(
            f"generation: {{prompt_tokens: {list(range(10, 10 + max(1, cells // 2000)))}, batch_sizes: {list(range(1, 21))}, "
            "new_tokens: 16}", keep_ratios=COARSE,
        ),
        "depths x distractors of retrieval": grid_of(
            f"retrieval: {{context_tokens: [512], depths: {[i / 100 for i in range(100)]}, distractors: {list(range(10))}}}",
            keep_ratios=ratios, prune_after=STEPS[:side],
        ),
    }  # fmt: skip


def planned_in(code: Path, file: Path, folder: Path) -> tuple[str, float, float]:
    """``kvsweep plan`` in a process of its own, as a user starts it: what it counts, seconds, GiB at most."""
    code_of = os.environ | {"PYTHONPATH": f"{code}:{folder}"}
    measure = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
        "print(done.stdout + done.stderr[-300:]); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    begin_at = time.perf_counter()
    command = [sys.executable, "-c", measure, sys.executable, "-m", "pipeline.cli", "plan", str(file)]
    lines = subprocess.run(command, cwd=folder, env=code_of, capture_output=True, text=True, check=True).stdout.splitlines()
    seconds = time.perf_counter() - begin_at
    count = next((line for line in lines if " cells in " in line), " ".join(lines[:-1])[-200:])
    return count, seconds, int(lines[-1]) / 2**20


def plans_along_each_axis(folder: Path, against: Path | None) -> None:
    """A million cells, and beside other code a grid that it can plan."""
    here = Path(__file__).parent.parent
    for name, text in grids(folder, 1_000_000).items():
        (folder / "grid.yaml").write_text(text)
        count, seconds, peak = planned_in(here, folder / "grid.yaml", folder)
        print(f"kvsweep plan, {name}: {count}: {seconds:.1f} s, {peak:.2f} GiB at most", flush=True)
    for name, text in grids(folder, 100_000).items() if against else ():
        assert against is not None
        (folder / "grid.yaml").write_text(text)
        (count, seconds, _), (other, before, _) = (planned_in(code, folder / "grid.yaml", folder) for code in (here, against))
        same = "the same" if count == other else f"other code: {other}"
        print(
            f"side by side, {name}: {count}: {seconds:.1f} s, {before:.1f} s before, {before / seconds:.1f} times; {same}",
            flush=True,
        )


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", action="store_true", help="planning alone")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of other code to plan side by side with")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plans_along_each_axis(folder, given.against)
        if given.plans:
            return
        look_over(folder)
        memory_over_a_run(folder, 6000)


if __name__ == "__main__":
    main()
