"""Which columns each table of the page has, in which order, with their headings and formats."""

from __future__ import annotations

from analysis import keys
from analysis.page.column import READING, SETTINGS, Column, of_cell, setting

PERPLEXITY = [
    *SETTINGS,
    setting("window", "window", "count"),
    setting("stride", "stride", "count"),
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
    setting("unit_kind", "independent units"),
    Column("n_units", "units", "count"),
    Column("tokens", "tokens", "count"),
    Column("note", "note", "text"),
]

SHAPES = [
    setting("model", "model"),
    setting("model_revision", "revision"),
    setting("dataset", "dataset"),
    setting("dataset_fingerprint", "data fingerprint"),
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
    setting("model_revision", "revision"),
    Column("dataset", "dataset", "text"),
    setting("dataset_fingerprint", "data fingerprint"),
    *READING,
    setting("device", "device"),
    setting("dtype", "dtype"),
    Column("advice", "advice", "text"),
    Column("budget", "realised budget", "percent"),
    Column("confirmed_high", "PPL ratio where pruned, at most"),
    Column("pruned_ratio", "the ratio on all windows"),
    Column("pruned_low", "95 % interval of it", "interval", "pruned_high"),
    Column("policy", "policy", "text"),
    Column("keep_ratio", "keep_ratio", "setting"),
    Column("prune_after", "prune_after", "count"),
    Column("skip_layers", "skip_layers", "text"),
    *of_cell("skip_layers_rule", "protect_recent", "protect_sink"),
    *of_cell(*[name for name in keys.VARIANT if name not in (*_PLACED, *_NOT_ADVISED)]),
    Column("n_units", "units", "count"),
    Column("note", "note", "text"),
]

FRONT = [column for column in RECOMMENDED if column.key not in ("advice", "confirmed_high")]

BY_RATIO = [
    Column("keep_ratio", "keep_ratio", "setting"),
    Column("dataset", "dataset", "text"),
    setting("dataset_fingerprint", "data fingerprint"),
    setting("model", "model"),
    setting("model_revision", "revision"),
    *READING,
    setting("protocol_version", "protocol", "count"),
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
    setting("batch_size", "batch", "count"),
    setting("new_tokens", "new tokens", "count"),
    setting("timing_protocol", "timing protocol"),
    Column("timing", "timing", "text"),
    setting("threads", "threads", "count"),
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
    setting("peak_memory_method", "memory counter"),
    Column("note", "note", "text"),
]

RETRIEVAL = [
    *SETTINGS,
    Column("kind", "question", "text"),
    Column("context_tokens", "context tokens", "count"),
    setting("digits", "digits", "count"),
    setting("distractors", "distractors", "count"),
    setting("question_pruned", "asked before the prune", "yes"),
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
    setting("suite", "asked for"),
    Column("task_name", "task", "text"),
    Column("metric", "metric", "text"),
    setting("filter", "filter"),
    setting("num_fewshot", "few-shot", "count"),
    setting("higher_is_better", "higher is better", "yes"),
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
    setting("batch_size", "batch", "count"),
    setting("new_tokens", "new tokens", "count"),
    setting("timing_protocol", "timing protocol"),
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
