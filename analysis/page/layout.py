"""Frames as the tables of the page: chosen columns, formatted cells, sort keys, and what is the same in every
row said once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from analysis import keys, labels
from pipeline.results import CELL_COLUMNS


@dataclass(frozen=True)
class Column:
    """A column of a table. ``form`` is a key of ``labels.FORMATS``, or ``interval`` with the upper end's
    column in ``upper``."""

    key: str
    label: str
    form: str = "figure"
    upper: str = ""
    setting: bool = False


@dataclass(frozen=True)
class Cell:
    """One formatted value with what it sorts by; the key is empty for null, which sorts last."""

    text: str
    sort: str


@dataclass(frozen=True)
class Table:
    """A table ready for the template.

    ``same`` lists the settings that are equal in every row and have no column of their own; ``fixed`` has
    their values as text. ``rows`` stand in the page, the page's script adds those of ``rest`` (JSON), and
    ``left_out`` are in neither.
    """

    name: str
    headings: list[Column]
    rows: list[list[Cell]]
    same: list[str]
    fixed: dict[str, str]
    rest: str
    left_out: int


ROWS_AT_ONCE = 200
"""Rows that stand in the page itself; a script shows the others as they are asked for."""
ROWS_MOST = 2_500
"""Rows of a table in a page; beyond, a page would grow past a few MB, and ``--csv`` has them all."""

NUMBERS = {
    "count",
    "setting",
    "figure",
    "percent",
    "points",
    "milliseconds",
    "mebibytes",
    "gigabytes",
    "interval",
}
"""The formats that are aligned right and sort as numbers."""


def _setting(key: str, label: str, form: str = "text") -> Column:
    return Column(key, label, form, setting=True)


LABELS = {
    "model_revision": "revision",
    "dataset_fingerprint": "data fingerprint",
    "protocol_version": "protocol",
    "skip_layers_rule": "skipped by",
    "bos": "BOS first",
    "special_tokens_in_text": "special tokens in text",
    "device_name": "device name",
}
"""Headings of the cell's columns that are called otherwise than in the rows."""


def _of_cell(*names: str) -> list[Column]:
    """Columns that every row has, in the form that their kind asks for."""
    return [_setting(name, LABELS.get(name, name), _form(name)) for name in names]


def _form(name: str) -> str:
    kind = CELL_COLUMNS[name]
    if kind.is_integer():
        return "count"
    return "setting" if kind.is_float() else "text"


READING = _of_cell("bos", "special_tokens_in_text")
"""How a text became ids."""

SETTINGS = [
    *_of_cell("model", "model_revision", "dataset", "dataset_fingerprint", "protocol_version"),
    *_of_cell(*keys.SETTINGS),
    *READING,
    *_of_cell("dtype", "device", "device_name"),
]
"""The cell's settings, in reading order; columns that a frame lacks are left out."""

PERPLEXITY = [
    *SETTINGS,
    _setting("window", "window", "count"),
    _setting("stride", "stride", "count"),
    Column("verdict", "verdict", "text"),
    Column("ppl", "PPL"),
    Column("ratio", "PPL ratio"),
    Column("ratio_low", "95 % interval", "interval", "ratio_high"),
    Column("pruned_ratio", "PPL ratio where pruned"),
    Column("pruned_low", "95 % interval of it", "interval", "pruned_high"),
    Column("p_holm", "p (Holm)"),
    Column("kl", "KL from dense (nats per token)"),
    Column("kl_low", "95 % interval of KL", "interval", "kl_high"),
    Column("agreement", "same first choice as dense", "percent"),
    Column("agreement_low", "at least", "percent"),
    Column("agreement_high", "at most", "percent"),
    Column("detectable", "smallest detectable ratio"),
    Column("budget", "realised budget", "percent"),
    Column("accuracy_difference", "accuracy difference (points)", "points"),
    Column("prune_events", "prune events per window", "count"),
    Column("share_pruned", "tokens scored pruned", "percent"),
    Column("recent_retained", "recent retained", "percent"),
    Column("sink_retained", "sink retained", "percent"),
    Column("score_ties", "score ties", "percent"),
    Column("kv_bytes_mean", "KV mean (MiB)", "mebibytes"),
    Column("kv_bytes_peak", "KV peak (MiB)", "mebibytes"),
    Column("rounding_nats", "rounding (nats per token)"),
    Column("rounding_ppl", "rounding of PPL", "percent"),
    Column("n_windows", "windows", "count"),
    _setting("unit_kind", "independent units"),
    Column("n_units", "units", "count"),
    Column("tokens", "tokens", "count"),
    Column("note", "note", "text"),
]

SHAPES = [
    _setting("model", "model"),
    _setting("model_revision", "revision"),
    _setting("dataset", "dataset"),
    _setting("dataset_fingerprint", "data fingerprint"),
    *READING,
    Column("prune_after", "prune_after", "count"),
    Column("policy", "policy", "text"),
    Column("variant", "settings", "text"),
    Column("cells", "cells", "count"),
    Column("phases", "from keep_ratio 1 (dense) downwards", "text"),
    Column("minimum_at", "lowest PPL at keep_ratio", "setting"),
    Column("minimum_low", "between", "interval", "minimum_high"),
    Column("ppl", "PPL there"),
    Column("ratio", "PPL ratio"),
    Column("ratio_low", "95 % interval", "interval", "ratio_high"),
    Column("budget", "realised budget", "percent"),
    Column("n_units", "units", "count"),
]

_PLACED = ("skip_layers", "skip_layers_rule", "protect_recent", "protect_sink")
_NOT_ADVISED = ("schedule", "position_mode")
"""Advice is for absolute positions, and says another schedule than the usual one in words."""

RECOMMENDED = [
    Column("model", "model", "text"),
    _setting("model_revision", "revision"),
    Column("dataset", "dataset", "text"),
    _setting("dataset_fingerprint", "data fingerprint"),
    *READING,
    _setting("device", "device"),
    _setting("dtype", "dtype"),
    Column("advice", "advice", "text"),
    Column("budget", "realised budget", "percent"),
    Column("confirmed_high", "PPL ratio where pruned, at most"),
    Column("pruned_ratio", "the ratio on all windows"),
    Column("pruned_low", "95 % interval of it", "interval", "pruned_high"),
    Column("policy", "policy", "text"),
    Column("keep_ratio", "keep_ratio", "setting"),
    Column("prune_after", "prune_after", "count"),
    Column("skip_layers", "skip_layers", "text"),
    *_of_cell("skip_layers_rule", "protect_recent", "protect_sink"),
    *_of_cell(*[name for name in keys.VARIANT if name not in (*_PLACED, *_NOT_ADVISED)]),
    Column("n_units", "units", "count"),
    Column("note", "note", "text"),
]

FRONT = [column for column in RECOMMENDED if column.key not in ("advice", "confirmed_high")]

BY_RATIO = [
    Column("keep_ratio", "keep_ratio", "setting"),
    Column("dataset", "dataset", "text"),
    _setting("dataset_fingerprint", "data fingerprint"),
    _setting("model", "model"),
    _setting("model_revision", "revision"),
    *READING,
    _setting("protocol_version", "protocol", "count"),
    Column("policy", "policy", "text"),
    Column("cells", "cells", "count"),
    Column("valid", "valid cells", "count"),
    Column("ratio_min", "lowest PPL ratio"),
    Column("ratio_median", "median PPL ratio"),
    Column("ratio_max", "highest PPL ratio"),
    Column("budget_min", "lowest budget", "percent"),
    Column("budget_max", "highest budget", "percent"),
]

GENERATION = [
    *SETTINGS,
    Column("prompt_tokens", "prompt tokens", "count"),
    _setting("batch_size", "batch", "count"),
    _setting("new_tokens", "new tokens", "count"),
    _setting("timing_protocol", "timing protocol"),
    Column("timing", "timing", "text"),
    _setting("threads", "threads", "count"),
    Column("repeats", "repeats", "count"),
    Column("ttft_seconds", "TTFT (ms)", "milliseconds"),
    Column("prefill_seconds", "of it prefill (ms)", "milliseconds"),
    Column("prompt_prune_seconds", "of it pruning (ms)", "milliseconds"),
    Column("ttft_words", "TTFT against dense", "text"),
    Column("tpot_seconds", "TPOT (ms)", "milliseconds"),
    Column("tpot_ratio", "TPOT ratio"),
    Column("plain_step_seconds", "step without prune (ms)", "milliseconds"),
    Column("prune_step_seconds", "step with prune (ms)", "milliseconds"),
    Column("tpot_low", "95 % interval", "interval", "tpot_high"),
    Column("tpot_words", "TPOT against dense", "text"),
    Column("tokens_per_second", "tokens per second"),
    Column("tokens_words", "throughput against dense", "text"),
    Column("bytes_per_step", "read per step (MiB)", "mebibytes"),
    Column("bytes_per_second", "achieved (GB/s)", "gigabytes"),
    Column("memory_bandwidth", "memory gives (GB/s)", "gigabytes"),
    Column("prune_seconds", "pruning (ms)", "milliseconds"),
    Column("kv_bytes_prompt", "KV after prompt (MiB)", "mebibytes"),
    Column("kv_bytes_peak", "KV peak (MiB)", "mebibytes"),
    Column("kv_bytes_final", "KV at end (MiB)", "mebibytes"),
    Column("kv_bytes_allocated_peak", "allocated peak (MiB)", "mebibytes"),
    Column("kv_bytes_allocated_final", "allocated at end (MiB)", "mebibytes"),
    Column("peak_memory_bytes", "peak memory (MiB)", "mebibytes"),
    _setting("peak_memory_method", "memory counter"),
    Column("note", "note", "text"),
]

RETRIEVAL = [
    *SETTINGS,
    Column("kind", "question", "text"),
    Column("context_tokens", "context tokens", "count"),
    _setting("digits", "digits", "count"),
    _setting("distractors", "distractors", "count"),
    _setting("question_pruned", "asked before the prune", "yes"),
    Column("verdict", "verdict", "text"),
    Column("questions", "questions", "count"),
    Column("right", "right", "count"),
    Column("text_right", "right as text", "count"),
    Column("accuracy", "accuracy", "percent"),
    Column("accuracy_low", "lower 95 % bound", "percent"),
    Column("accuracy_high", "upper 95 % bound", "percent"),
    Column("dense_accuracy", "dense accuracy", "percent"),
    Column("accuracy_difference", "accuracy minus dense (points)", "points"),
    Column("p_value", "p (McNemar)"),
    Column("lost_at_most", "lost at most (95 %)", "percent"),
    Column("answer_nll", "NLL of the right answer (nats per token)"),
    Column("nll_difference", "minus dense"),
    Column("budget", "realised budget", "percent"),
    Column("answer_retained_weighted", "answer still held, by attention", "percent"),
    Column("answer_retained_least", "in the reading head that holds least", "percent"),
    Column("answer_retained", "in all heads alike", "percent"),
    Column("lost_dropped", "lost, answer dropped", "count"),
    Column("lost_partly", "lost, partly held", "count"),
    Column("lost_held", "lost though held", "count"),
    Column("untold", "wrong, cause not to be told", "count"),
    Column("prune_events", "prune events per question", "count"),
    Column("note", "note", "text"),
]

TASKS = [
    *[column for column in SETTINGS if column.key != "dataset"],  # no choice of a text hides a task
    _setting("suite", "asked for"),
    Column("task_name", "task", "text"),
    Column("metric", "metric", "text"),
    _setting("filter", "filter"),
    _setting("num_fewshot", "few-shot", "count"),
    _setting("higher_is_better", "higher is better", "yes"),
    Column("verdict", "verdict", "text"),
    Column("value", "value"),
    Column("stderr", "standard error"),
    Column("dense_value", "dense"),
    Column("difference", "minus dense"),
    Column("difference_low", "95 % interval", "interval", "difference_high"),
    Column("documents", "documents", "count"),
    Column("paired_documents", "paired documents", "count"),
    Column("budget", "realised budget", "percent"),
    Column("share_pruned", "tokens from a pruned cache", "percent"),
    Column("prune_events", "prune events", "count"),
    Column("note", "note", "text"),
]

TEXTS = [
    *SETTINGS,
    Column("prompt_tokens", "prompt tokens", "count"),
    _setting("batch_size", "batch", "count"),
    _setting("new_tokens", "new tokens", "count"),
    _setting("timing_protocol", "timing protocol"),
    Column("text_length", "tokens before the end", "count"),
    Column("dense_text_length", "dense: tokens", "count"),
    Column("text_ended", "ended by itself", "percent"),
    Column("dense_text_ended", "dense: ended", "percent"),
    Column("text_repetition", "repeated 4-grams", "percent"),
    Column("dense_text_repetition", "dense: repeated", "percent"),
    Column("text_agreement", "tokens before the first that differs", "count"),
    Column("dense_text_agreement", "dense: all of", "count"),
]

CHECKS = [
    Column("model", "model", "text"),
    Column("device_name", "device name", "text"),
    Column("prompt_tokens", "prompt tokens", "count"),
    Column("batch_size", "batch", "count"),
    Column("rounds", "rounds", "count"),
    Column("drift", "dense, last / first round"),
    Column("null_ratio", "A against A"),
    Column("null_low", "95 % interval", "interval", "null_high"),
    Column("timing", "timing", "text"),
    Column("fault", "why", "text"),
]

COVERAGE = [
    Column("run", "run", "text"),
    Column("task", "task", "text"),
    Column("planned", "planned", "count"),
    Column("done", "done", "count"),
    Column("failed", "failed", "count"),
    Column("missing", "missing", "count"),
]

EXCLUDED = [
    Column("task", "task", "text"),
    Column("verdict", "verdict", "text"),
    Column("cells", "cells", "count"),
    Column("why", "why it enters no aggregate", "text"),
]

CLAIMS = [
    Column("number", "#", "count"),
    Column("claim", "claim", "text"),
    Column("claimed", "as claimed", "text"),
    Column("reproduced", "the same protocol here", "text"),
    Column("honest", "measured, with 95 % interval", "text"),
    Column("model", "model", "text"),
    Column("verdict", "verdict", "text"),
    Column("why", "why", "text"),
]

CONTROL = [
    Column("policy", "policy", "text"),
    Column("keep_ratio", "keep_ratio", "setting"),
    Column("prune_after", "prune_after", "count"),
    Column("ppl", "PPL"),
    Column("ratio", "PPL ratio"),
    Column("ratio_low", "95 % interval", "interval", "ratio_high"),
    Column("recent_retained", "recent retained", "percent"),
    Column("budget", "realised budget", "percent"),
    Column("verdict", "verdict", "text"),
]

FAILURES = [
    Column("task", "task", "text"),
    Column("error_type", "error", "text"),
    Column("message", "message", "text"),
    Column("attempts", "attempts", "count"),
    Column("node", "node", "text"),
    *SETTINGS,
]


def table(name: str, frame: pl.DataFrame, columns: Sequence[Column]) -> Table:
    """A frame as a page's table. Settings that do not vary over two rows or more become one line above it."""
    present = [column for column in columns if column.key in frame.columns]
    constant = [
        column for column in present if column.setting and frame.height > 1 and _values(frame, column) <= 1
    ]
    shown = [column for column in present if column not in constant]
    rows = [[_cell(column, row) for column in shown] for row in frame.head(ROWS_MOST).iter_rows(named=True)]
    known = [(column, frame[column.key].drop_nulls()) for column in constant]
    fixed = {
        column.key: labels.FORMATS[column.form](_first(values)) for column, values in known if len(values)
    }
    same = [f"{column.label} {fixed[column.key]}" for column, values in known if len(values)]
    rest = [
        [cell.text if cell.text == cell.sort else [cell.text, cell.sort] for cell in row]
        for row in rows[ROWS_AT_ONCE:]
    ]
    packed = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return Table(name, shown, rows[:ROWS_AT_ONCE], same, fixed, packed, frame.height - len(rows))


def _first(values: pl.Series) -> Any:
    return values.to_list()[0]


def _values(frame: pl.DataFrame, column: Column) -> int:
    return frame[column.key].drop_nulls().n_unique()


def _cell(column: Column, row: labels.Row) -> Cell:
    value = row[column.key]
    if column.form == "interval":
        return Cell(labels.interval(value, row[column.upper]), "" if value is None else _sort_key(value))
    text = labels.FORMATS[column.form](value)
    if column.key in ("model_revision", "dataset_fingerprint") and len(text) > 12:
        text = text[:12]
    return Cell(text, "" if value is None else _sort_key(value) if column.form in NUMBERS else text)


def _sort_key(value: float) -> str:
    """Enough digits to sort by and to save."""
    return f"{value:.9g}"
