"""The columns of every table, and what may be read where some are missing or new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

SCHEMA_VERSION = 3

ANSWER_TOKENS = 8
"""Room for the answer to a retrieval question: five digits and a space are six tokens even where each byte is one."""

CELL_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "run_id": pl.String,
    "protocol_version": pl.Int32,
    "cell_id": pl.String,
    "dense_cell_id": pl.String,
    "model": pl.String,
    "model_revision": pl.String,
    "dataset": pl.String,
    "dataset_fingerprint": pl.String,
    "device": pl.String,
    "device_name": pl.String,
    "dtype": pl.String,
    "policy": pl.String,
    "keep_ratio": pl.Float64,
    "prune_after": pl.Int32,
    "skip_layers": pl.List(pl.Int32),
    "protect_sink": pl.Int32,
    "protect_recent": pl.Int32,
    "schedule": pl.String,
    "position_mode": pl.String,
    "seed": pl.Int64,
}
"""The columns every table starts with: who made the row and which cell it belongs to."""

TASK_COLUMNS: dict[str, dict[str, pl.DataType | type[pl.DataType]]] = {
    "perplexity": {
        "window_index": pl.Int32,
        "window_start": pl.Int64,
        "window": pl.Int32,
        "stride": pl.Int32,
        "document": pl.Int32,
        "tokens_scored": pl.Int32,
        "nll_sum": pl.Float64,
        "nll": pl.List(pl.Float32),
        "tokens_correct": pl.Int32,
        "prune_events": pl.Int32,
        "tokens_scored_pruned": pl.Int32,
        "cache_tokens_mean": pl.Float64,
        "cache_tokens_peak": pl.Int32,
        "cache_tokens_final": pl.List(pl.Int32),
        "kv_bytes_mean": pl.Float64,
        "kv_bytes_peak": pl.Int64,
        "recent_retained": pl.Float64,
        "sink_retained": pl.Float64,
        "score_ties": pl.Float64,
        "forward_passes": pl.Int32,
        "seconds": pl.Float64,
        "event_steps": pl.List(pl.Int32),
        "event_kept": pl.List(pl.Int32),
    },
    "generation": {
        "prompt_tokens": pl.Int32,
        "batch_size": pl.Int32,
        "new_tokens": pl.Int32,
        "timing_protocol": pl.String,
        "repeat": pl.Int32,
        "round_order": pl.Int32,
        "control": pl.Boolean,
        "ttft_seconds": pl.Float64,
        "prompt_prune_seconds": pl.Float64,
        "tpot_seconds": pl.Float64,
        "total_seconds": pl.Float64,
        "tokens_per_second": pl.Float64,
        "token_seconds": pl.List(pl.Float64),
        "prune_steps": pl.List(pl.Int32),
        "prune_seconds": pl.Float64,
        "kv_bytes_prompt": pl.Int64,
        "kv_bytes_peak": pl.Int64,
        "kv_bytes_final": pl.Int64,
        "kv_bytes_step_mean": pl.Float64,
        "weight_bytes": pl.Int64,
        "memory_bandwidth": pl.Float64,
        "peak_memory_bytes": pl.Int64,
        "peak_memory_method": pl.String,
        "prune_events": pl.Int32,
        "output_tokens": pl.List(pl.Int32),
        "threads": pl.Int32,
    },
    "retrieval": {
        "kind": pl.String,
        "context_tokens": pl.Int32,
        "depth": pl.Float64,
        "question_index": pl.Int32,
        "expected": pl.String,
        "answer": pl.String,
        "correct": pl.Boolean,
        "prune_events": pl.Int32,
        "answer_position_retained": pl.Float64,
    },
    "failures": {
        "task": pl.String,
        "error_type": pl.String,
        "message": pl.String,
        "traceback": pl.String,
        "attempts": pl.Int32,
        "node": pl.String,
    },
}
"""The columns each task adds. ``control``: the second run of the dense cell in a round. ``prune_steps``: indices into
``token_seconds``. ``output_tokens``: row after row of the batch. ``memory_bandwidth``: measured beside the run, bytes per second.
``seconds`` of perplexity is the window's share of its unit's wall time, for cost only. ``event_steps``: tokens seen at each prune
of a pruning layer, ``event_kept``: entries that it left; for drawing the cache's length over time, the same for every window of a
cell, empty where nothing is ever pruned, null in files of older schemas."""

TASKS = ("perplexity", "generation", "retrieval")


def schema(task: str) -> pl.Schema:
    """The whole schema of a table, cell columns first."""
    return pl.Schema({**CELL_COLUMNS, **TASK_COLUMNS[task]})


def to_arrow(task: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table in the table's schema. Raises ValueError where a row lacks a column or has one too many."""
    wanted = schema(task)
    for row in rows:
        if row.keys() != wanted.keys():
            raise ValueError(
                f"{task} row: missing {sorted(wanted.keys() - row.keys())}, unknown {sorted(row.keys() - wanted.keys())}"
            )
    return pl.DataFrame(rows, schema=wanted, orient="row").to_arrow()
