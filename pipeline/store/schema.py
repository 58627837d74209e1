"""The columns of every table, and what may be read where some are missing or new."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
import pyarrow as pa

SCHEMA_VERSION = 8
"""Raised whenever a table gets another column."""

PROTOCOL_VERSION = 5
"""Raised whenever the method changes so that numbers of before and after must not be mixed."""

ANSWER_TOKENS = 8
"""Room for the answer to a retrieval question of five digits: with a space they are six tokens even where
each byte is one."""


def answer_room(digits: Collection[int]) -> int:
    """Room for answers of so many digits."""
    return ANSWER_TOKENS + max(0, *digits, 5) - 5


ColumnType = pl.DataType | type[pl.DataType]


@dataclass(frozen=True)
class CellColumn:
    """A column that every table starts with, and what it is to those who compare rows.

    A ``version`` makes numbers incomparable: another method, weights, text, or way to read it. A ``target``
    is what was measured, and on what. A setting of the ``pruning`` is what a cell is set to, and ``plain``
    its value in the dense cell. All others tell who made a row.
    """

    name: str
    kind: ColumnType
    role: Literal["version", "target", "pruning"] | None = None
    plain: Any = None


_CELL = (
    CellColumn("run_id", pl.String),
    CellColumn("protocol_version", pl.Int32, "version"),
    CellColumn("cell_id", pl.String),
    CellColumn("dense_cell_id", pl.String),
    CellColumn("model", pl.String, "target"),
    CellColumn("model_revision", pl.String, "version"),
    CellColumn("dataset", pl.String, "target"),
    CellColumn("dataset_fingerprint", pl.String, "version"),
    CellColumn("device", pl.String, "target"),
    CellColumn("device_name", pl.String),
    CellColumn("dtype", pl.String, "target"),
    CellColumn("policy", pl.String, "pruning", "dense"),
    CellColumn("keep_ratio", pl.Float64, "pruning", 1.0),
    CellColumn("prune_after", pl.Int32, "pruning"),
    CellColumn("skip_layers", pl.List(pl.Int32), "pruning", ()),
    CellColumn("protect_sink", pl.Int32, "pruning", 0),
    CellColumn("protect_recent", pl.Int32, "pruning", 0),
    CellColumn("schedule", pl.String, "pruning", "every_step"),
    CellColumn("position_mode", pl.String, "pruning", "absolute"),
    CellColumn("seed", pl.Int64),
    CellColumn("bos", pl.Boolean, "version"),
    CellColumn("special_tokens_in_text", pl.String, "version"),
    CellColumn("skip_layers_rule", pl.String, "pruning"),
    CellColumn("norm_attention", pl.List(pl.Float64)),
    CellColumn("quantization", pl.String),
)
"""In the order in which they are stored: a new one comes last.

One more setting of the pruning is one more line here. Whoever groups, joins, sorts or shows cells takes the
names from below.
"""

VERSIONS = tuple(column.name for column in _CELL if column.role == "version")
TARGET = tuple(column.name for column in _CELL if column.role == "target")
PRUNING = {column.name: column.plain for column in _CELL if column.role == "pruning"}
"""Setting -> its value in the dense cell."""

CELL_COLUMNS: dict[str, ColumnType] = {column.name: column.kind for column in _CELL}
"""The columns every table starts with: who made the row and which cell it belongs to. ``skip_layers``: the
layers that were really skipped, ``skip_layers_rule``: what chose them (``auto:2``), null where they were
listed; a cell's id covers the rule, and of a cell with a rule that failed the layers are null.
``norm_attention``: per layer, how key norm and attention go together in the model (Spearman,
``workers/loaded/diagnosis.py``); of policies that go by norms, null elsewhere and where it could not be had.
Both columns are null in files of older schemas. ``bos``: whether each text began with BOS;
``special_tokens_in_text``: whether special tokens that a text spells were letters (``literal``) or tokens
(``parse``). Both are null in files of older schemas. ``quantization``: how the GGUF file that the model was
made of stored its weights (``Q4_K_M``), null for models of no such file, and in files of older schemas."""

TASK_COLUMNS: dict[str, dict[str, ColumnType]] = {
    "perplexity": {
        "window_index": pl.Int32,
        "window_start": pl.Int64,
        "window": pl.Int32,
        "stride": pl.Int32,
        "document": pl.Int64,
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
        "kl_sum": pl.Float64,
        "tokens_agreed": pl.Int32,
        "rounding_nats": pl.Float64,
        "rounding_ppl": pl.Float64,
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
        "kv_bytes_allocated_peak": pl.Int64,
        "kv_bytes_allocated_final": pl.Int64,
        "kv_bytes_step_mean": pl.Float64,
        "weight_bytes": pl.Int64,
        "memory_bandwidth": pl.Float64,
        "peak_memory_bytes": pl.Int64,
        "peak_memory_method": pl.String,
        "prune_events": pl.Int32,
        "output_tokens": pl.List(pl.Int32),
        "text_length": pl.Float64,
        "text_ended": pl.Float64,
        "text_repetition": pl.Float64,
        "text_agreement": pl.Float64,
        "threads": pl.Int32,
    },
    "retrieval": {
        "kind": pl.String,
        "context_tokens": pl.Int32,
        "digits": pl.Int32,
        "distractors": pl.Int32,
        "depth": pl.Float64,
        "question_index": pl.Int32,
        "question_pruned": pl.Boolean,
        "expected": pl.String,
        "answer": pl.String,
        "correct": pl.Boolean,
        "correct_text": pl.Boolean,
        "answer_nll": pl.Float64,
        "answer_tokens": pl.Int32,
        "prune_events": pl.Int32,
        "answer_position_retained": pl.Float64,
        "answer_retained_weighted": pl.Float64,
        "answer_retained_least": pl.Float64,
        "cache_tokens_mean": pl.Float64,
    },
    "tasks": {
        "task_name": pl.String,
        "metric": pl.String,
        "filter": pl.String,
        "doc_index": pl.Int32,
        "value": pl.Float64,
        "stderr": pl.Float64,
        "documents": pl.Int32,
        "higher_is_better": pl.Boolean,
        "num_fewshot": pl.Int32,
        "prune_events": pl.Int64,
        "tokens_predicted": pl.Int64,
        "tokens_predicted_pruned": pl.Int64,
        "cache_tokens_mean": pl.Float64,
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
"""The columns each task adds. ``control``: the second run of the dense cell in a round. ``prune_steps``:
indices into ``token_seconds``. ``output_tokens``: row after row of the batch. ``memory_bandwidth``: measured
beside the run, bytes per second. ``seconds`` of perplexity is the window's share of its unit's wall time, for
cost only. ``event_steps``: tokens seen at each prune of a pruning layer, ``event_kept``: entries that it
left; for drawing the cache's length over time, the same for every window of a cell, empty where nothing is
ever pruned, null in files of older schemas. ``kl_sum``: KL divergence from the dense twin's distribution of
the next token, in nats, ``tokens_agreed``: tokens for which both hold the same one most likely, over the
scored tokens. ``rounding_nats``, ``rounding_ppl``: how far pruned cells of this model, dtype and device are
from one token per pass, or from themselves without the cells that share their passes, whichever is more, as
the self-check found it on the first windows for ``knorm``, over the tokens that saw a pruned cache: mean
absolute difference of a token in nats, and relative difference of the perplexities. Smaller differences
between cells are rounding. Null on windows too short to prune, and in files of older schemas. ``text_...``:
of the generated text, averaged over the batch: tokens before its end, share of the batch that ended by
itself, share of its 4-grams that were there before, tokens before the first that differs from the dense
twin's. ``kv_bytes_peak``, in perplexity and generation alike: the most bytes of entries stored at once, just
before a prune. ``kv_bytes_prompt``, ``kv_bytes_final``: of the entries held after the prompt and at the end.
``kv_bytes_allocated_peak`` and ``kv_bytes_allocated_final``: of the memory that the cache keeps between two
passes, the most and at the end: its buffers with the room behind their entries, positions and what its policy
observes; null in files of older schemas, whose ``kv_bytes_peak`` of generation was counted after each prune.

Retrieval: ``question_pruned``: whether the question went through with the context, before the first
check. ``correct``: the model's own tokens are the answer's. ``correct_text``: their text has the
digits in order, whatever pieces they come in and whatever stands between them; null in files of older
schemas. ``answer_nll``: of the right answer's ``answer_tokens`` tokens, in nats.
``answer_position_retained``: share of the positions of the answer's own tokens (of the copy held best)
that are held, over layers and heads, when the first wrong token is predicted, or the last where none
is wrong; in older schemas of the whole fact's, when the answer begins. ``answer_retained_weighted``:
the same, each layer's and KV head's share weighed by the attention that the dense cell gives there to
the answer's positions, from the tokens that predict the answer; ``answer_retained_least``: the least
share among the heads that have at least an equal part of that attention. Both are null in files of
older schemas. ``cache_tokens_mean``: entries held while answering, over steps and layers.

Tasks of lm-evaluation-harness: a row with the harness's own figure of a metric (``doc_index`` null) and one
for each document that has a value of its own; ``prune_events``, ``tokens_predicted``,
``tokens_predicted_pruned`` (with at least one entry already dropped: only those can tell anything of pruning)
and ``cache_tokens_mean`` are of all requests of the task.
"""

ROW_KEYS = {
    "perplexity": ["window_index"],
    "generation": ["repeat"],
    "retrieval": ["kind", "context_tokens", "digits", "distractors", "depth", "question_index"],
    "tasks": ["metric", "filter", "doc_index"],
    "failures": ["task"],
}
"""What tells the rows of one cell apart."""

TASKS = ("perplexity", "generation", "retrieval", "tasks")


def schema(task: str) -> pl.Schema:
    """The whole schema of a table, cell columns first."""
    return pl.Schema({**CELL_COLUMNS, **TASK_COLUMNS[task]})


def to_arrow(task: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table in the table's schema.

    Raises ValueError where a row lacks a column or has one too many.
    """
    wanted = schema(task)
    for row in rows:
        if row.keys() != wanted.keys():
            raise ValueError(
                f"{task} row: missing {sorted(wanted.keys() - row.keys())}, "
                f"unknown {sorted(row.keys() - wanted.keys())}"
            )
    return pl.DataFrame(rows, schema=wanted, orient="row").to_arrow()
