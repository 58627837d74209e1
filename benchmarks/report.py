"""Time and memory of a report of many rows: ``python -m benchmarks.report [--rows 1000000]``.

Writes a run directory of made-up perplexity rows (cells of a grid with the NLL of every token, in parts of 16
cells), then makes its report in a process of its own and prints seconds and peak resident memory. A report of
a tenth of the rows stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.store.run_store import RunStore
from pipeline.store.schema import PROTOCOL_VERSION, SCHEMA_VERSION, schema
from tools.made_rows import perplexity_row, run_info

WINDOW = 1024
SCORED = WINDOW - 1
WINDOWS = 200
"""Of a cell."""
CELLS = 16
"""Of a part."""
MEASURE = (
    "import resource, sys, time; from analysis.report import write_report; begin = time.perf_counter(); "
    "write_report([sys.argv[1]]); seconds = time.perf_counter() - begin; "
    "print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
)
RATIOS = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3]
POLICIES = ["knorm", "knorm_high", "random", "recent", "streaming", "h2o", "snapkv", "tova"]


def write_rows(folder: str, rows: int, windows: int = WINDOWS) -> int:
    """A run directory of about so many rows, ``windows`` of each cell; returns how many."""
    store, rng, written = RunStore(folder, create=True), np.random.default_rng(0), 0
    grid = itertools.product(range(10_000), [32, 64, 128, 256, 512], [[], [0]], POLICIES, RATIOS)
    model, unit = -1, []
    for number, after, skip, policy, ratio in grid:
        if number != model:
            model = number
            unit.append(_cell(rng, number, {"policy": "dense"}, windows))
        setting = {"policy": policy, "keep_ratio": ratio, "prune_after": after, "skip_layers": skip}
        unit.append(_cell(rng, number, setting, windows))
        if len(unit) >= CELLS or written + len(unit) * windows >= rows:
            written += _write(store, unit, written)
            unit = []
        if written >= rows:
            break
    versions = {"schema_version": SCHEMA_VERSION, "protocol_version": PROTOCOL_VERSION}
    told = {"run_id": "bench", "name": "bench", "models": [], "datasets": [], "planned": {}, **versions}
    store.put("run.json", json.dumps(run_info(**told)).encode())
    return written


def _write(store: RunStore, unit: list[pl.DataFrame], number: int) -> int:
    frame = pl.concat(unit)
    store.add_part("perplexity", f"unit-{number:08}", frame.to_arrow())
    return frame.height


def _cell(rng: np.random.Generator, model: int, setting: dict[str, Any], windows: int) -> pl.DataFrame:
    """All windows of one cell. ``setting``: its columns that are not as in every made-up row."""
    dense, ratio = setting["policy"] == "dense", setting.get("keep_ratio", 1.0)
    harm = 0.0 if dense else 0.1 * ratio
    tokens = np.abs(rng.standard_normal((windows, SCORED), dtype=np.float32) + np.float32(4.0 + harm))
    events = [] if dense else list(range(32, WINDOW, 25))
    row = perplexity_row(
        **setting,
        run_id="bench",
        model=f"model {model % 3}",
        dataset=f"text {model // 3}",
        dataset_fingerprint=f"f{model // 3}",
        window=WINDOW,
        stride=WINDOW,
        tokens_scored=SCORED,
        cache_tokens_mean=512.0 * ratio,
        cache_tokens_peak=SCORED,
        event_steps=events,
        event_kept=[16] * len(events),
        kl_sum=0.0 if dense else 50.0 * ratio,
    )
    of_a_window = {
        "window_index": range(windows),
        "window_start": [WINDOW * i for i in range(windows)],
        "nll": pl.Series(tokens).arr.to_list(),
        "nll_sum": tokens.sum(1, dtype=np.float64),
    }
    same = pl.DataFrame([row], schema=schema("perplexity"), orient="row").drop(of_a_window)
    frame = pl.DataFrame(of_a_window).join(same, how="cross")
    return frame.select(pl.col(name).cast(kind) for name, kind in schema("perplexity").items())


def measure(folder: str) -> tuple[float, float]:
    """Seconds and GiB of a report."""
    done = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of a cell, a row each (default: 200)")
    args = parser.parse_args()
    print("     rows   cells  report s   peak GiB   page MiB")
    for rows in (args.rows // 10, args.rows):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            written = write_rows(folder, rows, args.windows)
            made = time.perf_counter() - begin
            seconds, memory = measure(folder)
            page = (Path(folder) / "report.html").stat().st_size / 2**20
            counts = f"{written:9} {written // args.windows:7}"
            figures = f"{seconds:9.1f} {memory:10.2f} {page:10.1f}"
            print(f"{counts} {figures}   (rows made in {made:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
