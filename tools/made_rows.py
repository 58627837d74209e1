"""Rows of every table, made up: what tests and benchmarks store in place of measured ones. No model, no
torch.

A row has all columns that ``pipeline/store/schema.py`` gives its table: what is neither given nor told here
is null. So another column makes nobody fail who has no use for it. Whoever names a column that there is not
gets a ValueError.
"""

from __future__ import annotations

from typing import Any

from pipeline.store.schema import TASK_COLUMNS, schema


def cell(**settings: Any) -> dict[str, Any]:
    """The cell columns of a row; ``cell_id`` follows from the settings unless given."""
    columns: dict[str, Any] = {
        "run_id": "run-1",
        "protocol_version": 1,
        "model": "toy",
        "model_revision": "r1",
        "dataset": "text",
        "dataset_fingerprint": "f1",
        "device": "cpu",
        "device_name": "test cpu",
        "dtype": "float32",
        "policy": "knorm",
        "keep_ratio": 0.9,
        "prune_after": 32,
        "skip_layers": [],
        "skip_layers_rule": None,
        "protect_sink": 0,
        "protect_recent": 0,
        "schedule": "every_step",
        "position_mode": "absolute",
        "seed": 0,
        "bos": False,
        "special_tokens_in_text": "literal",
    }
    columns |= {key: value for key, value in settings.items() if key in columns}
    if columns["policy"] == "dense":
        columns |= {"keep_ratio": 1.0, "prune_after": None, "skip_layers": []}

    twin = "/".join(str(columns[name]) for name in ("model", "dataset", "device", "dtype", "seed"))
    chosen = ("policy", "keep_ratio", "prune_after", "skip_layers", "protect_recent", "position_mode", "seed")
    own_id = f"{twin}/" + "/".join(str(columns[name]) for name in chosen)
    ids = {"cell_id": own_id, "dense_cell_id": f"dense:{twin}"}
    if columns["policy"] == "dense":
        ids["cell_id"] = ids["dense_cell_id"]
    return {**columns, **{name: settings.get(name, own) for name, own in ids.items()}}


def as_given(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as a worker gives it: the task's own columns and ``cell_id``; the driver adds the others as it
    stores it."""
    return {name: row[name] for name in ("cell_id", *TASK_COLUMNS[task])}


def _row(task: str, values: dict[str, Any], defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own``: the cell's columns. Raises ValueError where a value is of no column."""
    columns = schema(task)
    unknown = (values.keys() | defaults.keys() | own.keys()) - columns.keys()
    if unknown:
        raise ValueError(f"no such columns in {task}: {sorted(unknown)}")
    told = {**defaults, **values, **own}
    return {name: told.get(name) for name in columns}


def perplexity_row(window_index: int = 0, **values: Any) -> dict[str, Any]:
    """A window of a cell: 100 scored tokens and 200 nats, half of the tokens scored with a pruned cache.

    Where a list ``nll`` is given, it is what was scored.
    """
    own = cell(**values)
    dense = own["policy"] == "dense"
    nll = values.get("nll")
    scored = values.get("tokens_scored", 100 if nll is None else len(nll))
    held = min(50.0, values.get("window", 101) / 2)
    defaults = {
        "window_index": window_index,
        "window_start": 101 * window_index,
        "window": 101,
        "stride": 101,
        "tokens_scored": scored,
        "nll_sum": 200.0 if nll is None else sum(nll),
        "tokens_correct": int(0.4 * scored),
        "prune_events": 0 if dense else 10,
        "tokens_scored_pruned": 0 if dense else scored // 2,
        "cache_tokens_mean": held if dense else held / 2,
        "cache_tokens_peak": 100,
        "cache_tokens_final": [100],
        "kv_bytes_mean": 1e3,
        "kv_bytes_peak": 2000,
        "recent_retained": None if dense else 0.5,
        "sink_retained": None if dense else 0.75,
        "score_ties": None if dense else 0.02,
        "forward_passes": 11,
        "seconds": 0.5,
        "kl_sum": 0.0 if dense else 5.0,
        "tokens_agreed": scored if dense else int(0.9 * scored),
        "rounding_nats": 1e-6,
        "rounding_ppl": 1e-7,
    }
    return _row("perplexity", values, defaults, own)


def generation_row(repeat: int = 0, **values: Any) -> dict[str, Any]:
    """A repeat of a cell: 10 ms to the first token, 2 ms for each other."""
    defaults = {
        "prompt_tokens": 128,
        "batch_size": 1,
        "new_tokens": 16,
        "timing_protocol": "interleaved",
        "repeat": repeat,
        "round_order": 0,
        "control": False,
        "ttft_seconds": 0.010,
        "prompt_prune_seconds": 0.0005,
        "tpot_seconds": 0.002,
        "prune_steps": [0, 8],
        "kv_bytes_step_mean": 5000.0,
        "weight_bytes": 1_000_000,
        "memory_bandwidth": 1e10,
        "total_seconds": 0.04,
        "tokens_per_second": 400.0,
        "token_seconds": [0.002] * 15,
        "prune_seconds": 0.001,
        "kv_bytes_prompt": 4096,
        "kv_bytes_peak": 8192,
        "kv_bytes_final": 4096,
        "kv_bytes_allocated_peak": 9000,
        "kv_bytes_allocated_final": 5000,
        "prune_events": 1,
        "output_tokens": [1, 2],
        "text_length": 16.0,
        "text_ended": 0.0,
        "text_repetition": 0.1,
        "text_agreement": 16.0,
        "threads": 1,
    }
    return _row("generation", values, defaults, cell(**values))


def retrieval_row(question_index: int = 0, **values: Any) -> dict[str, Any]:
    """A passkey question, answered right.

    A cell of questions asked after the prune has an id and a dense twin of its own.
    """
    own = cell(**values)
    dense = own["policy"] == "dense"
    if values.get("question_pruned") is False:
        own |= {name: values.get(name, f"after:{own[name]}") for name in ("cell_id", "dense_cell_id")}
    defaults = {
        "kind": "passkey",
        "context_tokens": 512,
        "digits": 5,
        "distractors": 0,
        "depth": 0.5,
        "question_index": question_index,
        "question_pruned": True,
        "expected": "12345",
        "answer": "12345",
        "correct": True,
        "correct_text": values.get("correct", True),
        "answer_nll": 1.0,
        "answer_tokens": 5,
        "prune_events": 0 if dense else 4,
        "answer_position_retained": 1.0 if dense else 0.5,
        "answer_retained_weighted": 1.0 if dense else 0.4,
        "answer_retained_least": 1.0 if dense else 0.3,
        "cache_tokens_mean": 500.0 if dense else 100.0,
    }
    return _row("retrieval", values, defaults, own)


def tasks_rows(values: list[float], **settings: Any) -> list[dict[str, Any]]:
    """A task of a cell: the harness's accuracy, the mean of these values, and a row for each document."""
    own = cell(**{"dataset": settings.get("task_name", "quiz"), **settings})
    dense = own["policy"] == "dense"
    mean = sum(values) / len(values)
    defaults = {
        "task_name": "quiz",
        "metric": "acc",
        "filter": "none",
        "value": mean,
        "documents": len(values),
        "higher_is_better": True,
        "num_fewshot": 0,
        "prune_events": 0 if dense else 40,
        "tokens_predicted": 100,
        "tokens_predicted_pruned": 0 if dense else 60,
        "cache_tokens_mean": 200.0 if dense else 50.0,
        "stderr": (mean * (1 - mean) / len(values)) ** 0.5,
    }
    whole = _row("tasks", settings, defaults, own)
    return [
        whole,
        *({**whole, "doc_index": i, "value": value, "stderr": None} for i, value in enumerate(values)),
    ]


def failure_row(**values: Any) -> dict[str, Any]:
    """A cell that ran out of memory."""
    defaults = {
        "task": "perplexity",
        "error_type": "OutOfMemoryError",
        "message": "tried to allocate 2 GiB",
        "traceback": "Traceback",
        "attempts": 3,
        "node": "node-a",
    }
    return _row("failures", values, defaults, cell(**values))


def run_info(**values: Any) -> dict[str, Any]:
    """A whole run.json."""
    info = {
        "run_id": "run-1",
        "name": "made up",
        "started_at": "2026-01-02T03:04:05+00:00",
        "kvsweep_version": "0.1.0",
        "protocol_version": 1,
        "schema_version": 1,
        "spec": {"name": "made up"},
        "argv": ["kvsweep", "run"],
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"python": "3.11", "torch": "2.13", "transformers": "5.23", "ray": "2.60"},
        "hardware": {
            "platform": "Linux",
            "cpu": "test cpu",
            "cpu_count": 2,
            "memory_bytes": 8 * 2**30,
            "gpus": [],
        },
        "seed": 0,
        "models": [{"name": "toy", "revision": "r1", "layers": 2, "context": 1024}],
        "datasets": [{"name": "text", "fingerprint": "f1", "tokens": 5000}],
        "planned": {"perplexity": 0, "generation": 0, "retrieval": 0},
        "dropped": [],
        "never_prunes": [],
    }
    return {**info, **values}
