"""Time and memory of a report of many rows: ``python -m benchmarks.report [--rows 1000000]``.

Writes a run directory of made-up perplexity rows (cells of a grid with the NLL of every token, in parts of 16 cells), then makes
its report in a process of its own and prints seconds and peak resident memory. A report of a tenth of the rows stands beside it.
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

import numpy as np
import polars as pl

from pipeline.results import RunStore, schema
from pipeline.schema import PROTOCOL_VERSION, SCHEMA_VERSION

WINDOWS = 200
MEASURE = (
    "import resource, sys, time; from analysis.report import write_report; begin = time.perf_counter();"
    "write_report([sys.argv[1]]); print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
)
RATIOS = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3]
POLICIES = ["knorm", "knorm_high", "random", "recent", "streaming", "h2o", "snapkv", "tova"]


def write_rows(folder: str, rows: int) -> int:
    """A run directory of about so many rows; returns how many."""
    store, rng, written = RunStore(folder, create=True), np.random.default_rng(0), 0
    grid = itertools.product(range(10_000), [32, 64, 128, 256, 512], [[], [0]], POLICIES, RATIOS)
    model, unit = -1, []
    for number, after, skip, policy, ratio in grid:
        if number != model:
            model = number
            unit.append(_cell(rng, number, "dense", 1.0, None, []))
        unit.append(_cell(rng, number, policy, ratio, after, skip))
        if len(unit) >= 16:
            written += _write(store, unit, written)
            unit = []
        if written >= rows:
            break
    versions = {"schema_version": SCHEMA_VERSION, "protocol_version": PROTOCOL_VERSION}
    run = {"run_id": "bench", "name": "bench", "started_at": "now", "models": [], "planned": {}} | versions
    store.put("run.json", json.dumps(run).encode())
    return written


def _write(store: RunStore, unit: list[pl.DataFrame], number: int) -> int:
    frame = pl.concat(unit)
    store.add_part("perplexity", f"unit-{number:08}", frame.to_arrow())
    return frame.height


def _cell(rng: np.random.Generator, model: int, policy: str, ratio: float, after: int | None, skip: list[int]) -> pl.DataFrame:
    """All windows of one cell."""
    dense = policy == "dense"
    own = f"{model}/{policy}/{ratio}/{after}/{skip}"
    harm = 0.0 if dense else 0.1 * ratio
    values = {
        "run_id": "bench", "protocol_version": 1, "cell_id": own, "dense_cell_id": f"{model}/dense/1.0/None/[]",
        "model": f"model {model % 3}", "model_revision": "r", "dataset": f"text {model // 3}",
        "dataset_fingerprint": f"f{model // 3}", "device": "cpu", "device_name": "none", "dtype": "float32", "policy": policy,
        "keep_ratio": ratio, "prune_after": after, "skip_layers": skip, "protect_sink": 0, "protect_recent": 0,
        "schedule": "every_step", "position_mode": "absolute", "seed": 0, "bos": False, "special_tokens_in_text": "literal",
        "window": 1024, "stride": 1024, "document": None,
        "tokens_scored": 1023, "tokens_correct": 400, "prune_events": 0 if dense else 40,
        "tokens_scored_pruned": 0 if dense else 900, "cache_tokens_mean": 512.0 * ratio, "cache_tokens_peak": 1023,
        "cache_tokens_final": [500] * 6, "kv_bytes_mean": 1e6, "kv_bytes_peak": 10**6, "recent_retained": None if dense else 0.5,
        "sink_retained": None if dense else 0.5, "score_ties": None if dense else 0.01, "forward_passes": 40, "seconds": 0.1,
        "event_steps": list(range(32, 1024, 25)) * (not dense), "event_kept": [16] * 40 * (not dense),
        "kl_sum": 0.0 if dense else 50.0 * ratio, "tokens_agreed": 1023 if dense else 900, "rounding_nats": 1e-6,
        "rounding_ppl": 1e-7,
    }  # fmt: skip
    tokens = np.abs(rng.standard_normal((WINDOWS, 1023), dtype=np.float32) + np.float32(4.0 + harm))
    columns = {
        name: pl.repeat(None, WINDOWS, eager=True) if value is None else [value] * WINDOWS for name, value in values.items()
    }
    numbered = {
        "window_index": range(WINDOWS), "window_start": [1024 * i for i in range(WINDOWS)], "nll": tokens,
        "nll_sum": tokens.sum(1, dtype=np.float64),
    }  # fmt: skip
    frame = pl.DataFrame({**columns, **numbered})
    lists = pl.col("nll").arr.to_list()
    wanted = schema("perplexity")
    absent = [pl.lit(None).alias(name) for name in wanted if name not in frame.columns]
    return frame.with_columns(lists, *absent).select(pl.col(name).cast(kind) for name, kind in wanted.items())


def measure(folder: str) -> tuple[float, float]:
    """Seconds and GiB of a report."""
    done = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    print("     rows   cells  report s   peak GiB   page MiB")
    for rows in (args.rows // 10, args.rows):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            written = write_rows(folder, rows)
            made = time.perf_counter() - begin
            seconds, memory = measure(folder)
            page = (Path(folder) / "report.html").stat().st_size / 2**20
            print(
                f"{written:9} {written // WINDOWS:7} {seconds:9.1f} {memory:10.2f} {page:10.1f}   (rows made in {made:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
