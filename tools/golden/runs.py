"""A sweep's plan and run as a user has them, and how they are kept: small, in order, without this machine's
paths."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tools.golden.command import demanded, masked, unframed
from tools.golden.sweeps import Sweep

PLAN, SAID, RUN = "plan.txt", "said.txt", "run"
"""Of each sweep: what ``kvsweep plan`` printed, what run and status said, and the run directory."""

KEYS = {
    "perplexity": ["window_index"],
    "generation": ["repeat", "control"],
    "retrieval": ["kind", "context_tokens", "digits", "distractors", "depth", "question_index"],
    "tasks": ["metric", "filter", "doc_index"],
    "failures": ["task"],
}
"""Table -> what tells the rows of one cell apart."""

MASKED = {"traceback": "(masked)", "node": "(masked)"}
"""Text of a failure that names places of the machine."""

TOLD = ("note:", "failed:", "failed before:", "error:")
"""How the lines begin that a run says of its plan and its cells; the others tell of progress, pace and
memory."""

ESTIMATE = re.compile(r"estimate: .*?, (?=[\d,]+ MiB)", re.DOTALL)
RUN_ID = re.compile(r"\([0-9a-f]{12}\), started \S+")


def measure(sweep: Sweep, inputs: Path, cache: Path, place: Path) -> None:
    """Plan and run it, and keep both below ``place``. Raises CommandError where a command does not end as it
    should."""
    place.mkdir(parents=True)
    planned = demanded("plan", *sweep.arguments, "--no-measure", folder=inputs, cache=cache)
    (place / PLAN).write_text(_without_machine(planned.out), encoding="utf-8")

    out = f"out-{sweep.name}"
    statuses = (1,) if sweep.fails else (0,)
    run = demanded(
        "run",
        *sweep.arguments,
        "--inline",
        "--threads",
        "1",
        "--out",
        out,
        folder=inputs,
        cache=cache,
        statuses=statuses,
    )
    status = demanded("status", out, folder=inputs, cache=cache)
    told = [line for line in run.err.splitlines() if line.startswith(TOLD)]
    lines = [f"exit status {run.status}", *told, RUN_ID.sub("(RUN), started TIME", status.out)]
    (place / SAID).write_text("\n".join(lines), encoding="utf-8")
    _keep(inputs / out, place / RUN, inputs)


def rows_of(run: Path, table: str) -> pl.DataFrame | None:
    """All rows of a table of a run directory; None where it has none."""
    parts = sorted((run / table).glob("*.parquet"))
    return pl.concat([pl.read_parquet(part) for part in parts]) if parts else None


def _without_machine(plan: str) -> str:
    """What ``kvsweep plan`` printed, without what this machine's speed and memory are in."""
    lines = unframed(ESTIMATE.sub("estimate: TIME, ", plan))
    return "\n".join(line for line in lines if "that may be used on this machine" not in line) + "\n"


def _keep(found: Path, place: Path, inputs: Path) -> None:
    place.mkdir()
    (place / "cells.parquet").write_bytes((found / "cells.parquet").read_bytes())
    run = json.loads((found / "run.json").read_text(encoding="utf-8"))
    run["hardware"]["platform"] = platform.system()
    (place / "run.json").write_text(masked(json.dumps(run, indent=1), inputs) + "\n", encoding="utf-8")
    for table, keys in KEYS.items():
        rows = rows_of(found, table)
        if rows is not None:
            mark = pq.read_schema(min((found / table).glob("*.parquet"))).metadata
            _write_part(rows.sort("cell_id", *keys, nulls_last=False), mark, place / table)


def _write_part(rows: pl.DataFrame, mark: dict[bytes, bytes], folder: Path) -> None:
    """The rows as one part with the mark of their schema."""
    folder.mkdir()
    texts = {name: pl.lit(text) for name, text in MASKED.items() if name in rows.columns}
    table: pa.Table = rows.with_columns(**texts).to_arrow().replace_schema_metadata(mark)
    pq.write_table(
        table,
        folder / "golden.parquet",
        compression="zstd",
        compression_level=19,
        write_statistics=False,
        store_schema=False,
    )
