"""Rows and whole run directories made up for tests: deterministic, no model, no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import polars as pl
from scipy import stats

from pipeline.results import RunStore, schema, to_arrow

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\\\n\u2028{{7*7}}"
"""A name that breaks a page which forgets one kind of escaping."""


def cell(**settings: Any) -> dict[str, Any]:
    """The cell columns of a row; ``cell_id`` follows from the settings unless given."""
    columns: dict[str, Any] = {
        "run_id": "run-1", "protocol_version": 1, "model": "toy", "model_revision": "r1", "dataset": "text",
        "dataset_fingerprint": "f1", "device": "cpu", "device_name": "test cpu", "dtype": "float32", "policy": "knorm",
        "keep_ratio": 0.9, "prune_after": 32, "skip_layers": [], "skip_layers_rule": None, "protect_sink": 0, "protect_recent": 0,
        "schedule": "every_step", "position_mode": "absolute", "seed": 0, "bos": False, "special_tokens_in_text": "literal",
    }  # fmt: skip
    columns |= {key: value for key, value in settings.items() if key in columns}
    if columns["policy"] == "dense":
        columns |= {"keep_ratio": 1.0, "prune_after": None, "skip_layers": []}
    names = ("model", "dataset", "device", "dtype", "seed")
    dense_id = "dense:" + "/".join(str(columns[name]) for name in names)
    chosen = ("policy", "keep_ratio", "prune_after", "skip_layers", "protect_recent", "position_mode", "seed")
    own_id = dense_id if columns["policy"] == "dense" else dense_id[6:] + "/" + "/".join(str(columns[name]) for name in chosen)
    return {**columns, "cell_id": settings.get("cell_id", own_id), "dense_cell_id": settings.get("dense_cell_id", dense_id)}


def _row(task: str, values: dict[str, Any]) -> dict[str, Any]:
    unknown = values.keys() - schema(task).keys()
    if unknown:
        raise ValueError(f"no such columns in {task}: {sorted(unknown)}")
    return {name: values.get(name) for name in schema(task)}


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
        "window_index": window_index, "window_start": 101 * window_index, "window": 101, "stride": 101, "tokens_scored": scored,
        "nll_sum": 200.0 if nll is None else sum(nll), "tokens_correct": int(0.4 * scored),
        "prune_events": 0 if dense else 10, "tokens_scored_pruned": 0 if dense else scored // 2,
        "cache_tokens_mean": held if dense else held / 2, "cache_tokens_peak": 100, "cache_tokens_final": [100],
        "kv_bytes_mean": 1e3, "kv_bytes_peak": 2000,
        "recent_retained": None if dense else 0.5, "sink_retained": None if dense else 0.75,
        "score_ties": None if dense else 0.02, "forward_passes": 11, "seconds": 0.5, "kl_sum": 0.0 if dense else 5.0,
        "tokens_agreed": scored if dense else int(0.9 * scored), "rounding_nats": 1e-6, "rounding_ppl": 1e-7,
    }  # fmt: skip
    return _row("perplexity", {**defaults, **_own_columns("perplexity", values), **own})


def generation_row(repeat: int = 0, **values: Any) -> dict[str, Any]:
    """A repeat of a cell: 10 ms to the first token, 2 ms for each other."""
    defaults = {
        "prompt_tokens": 128, "batch_size": 1, "new_tokens": 16, "timing_protocol": "interleaved", "repeat": repeat,
        "round_order": 0, "control": False, "ttft_seconds": 0.010, "prompt_prune_seconds": 0.0005, "tpot_seconds": 0.002,
        "prune_steps": [0, 8], "kv_bytes_step_mean": 5000.0, "weight_bytes": 1_000_000, "memory_bandwidth": 1e10,
        "total_seconds": 0.04, "tokens_per_second": 400.0, "token_seconds": [0.002] * 15, "prune_seconds": 0.001,
        "kv_bytes_prompt": 4096, "kv_bytes_peak": 8192, "kv_bytes_final": 4096, "kv_bytes_allocated_peak": 9000,
        "kv_bytes_allocated_final": 5000, "peak_memory_bytes": None,
        "peak_memory_method": None, "prune_events": 1, "output_tokens": [1, 2], "text_length": 16.0, "text_ended": 0.0,
        "text_repetition": 0.1, "text_agreement": 16.0, "threads": 1,
    }  # fmt: skip
    return _row("generation", {**defaults, **_own_columns("generation", values), **cell(**values)})


def retrieval_row(question_index: int = 0, **values: Any) -> dict[str, Any]:
    """A passkey question, answered right. A cell of questions asked after the prune has an id and a dense twin of its own."""
    own = cell(**values)
    dense = own["policy"] == "dense"
    if values.get("question_pruned") is False:
        own |= {name: values.get(name, f"after:{own[name]}") for name in ("cell_id", "dense_cell_id")}
    defaults = {
        "kind": "passkey", "context_tokens": 512, "digits": 5, "distractors": 0, "depth": 0.5, "question_index": question_index,
        "question_pruned": True, "expected": "12345", "answer": "12345", "correct": True, "answer_nll": 1.0, "answer_tokens": 5,
        "correct_text": values.get("correct", True), "prune_events": 0 if dense else 4,
        "answer_position_retained": 1.0 if dense else 0.5, "answer_retained_weighted": 1.0 if dense else 0.4,
        "answer_retained_least": 1.0 if dense else 0.3, "cache_tokens_mean": 500.0 if dense else 100.0,
    }  # fmt: skip
    return _row("retrieval", {**defaults, **_own_columns("retrieval", values), **own})


def asked(right: int = 10, dense: int = 10, n: int = 10, **settings: Any) -> list[dict[str, Any]]:
    """Questions to a cell and to its dense twin, the first ones answered right."""
    own = {key: value for key, value in settings.items() if key in _OF_THE_QUESTION}
    twin = [retrieval_row(i, policy="dense", correct=i < dense, **own) for i in range(n)]
    return twin + [retrieval_row(i, correct=i < right, **settings) for i in range(n)]


_OF_THE_QUESTION = ("kind", "context_tokens", "digits", "distractors", "question_pruned", "model")


def tasks_rows(values: list[float], **settings: Any) -> list[dict[str, Any]]:
    """A task of a cell: the harness's accuracy, which is the mean of these values, and a row for each document."""
    own = cell(**{"dataset": settings.get("task_name", "quiz"), **settings})
    dense = own["policy"] == "dense"
    mean = sum(values) / len(values)
    defaults = {
        "task_name": "quiz", "metric": "acc", "filter": "none", "documents": len(values), "higher_is_better": True,
        "num_fewshot": 0, "prune_events": 0 if dense else 40, "tokens_predicted": 100,
        "tokens_predicted_pruned": 0 if dense else 60,
        "cache_tokens_mean": 200.0 if dense else 50.0,
        "stderr": (mean * (1 - mean) / len(values)) ** 0.5,
    }  # fmt: skip
    common = {**defaults, **_own_columns("tasks", settings), **own}
    whole = _row("tasks", {"value": mean, **common})
    return [whole, *[_row("tasks", {**common, "doc_index": i, "value": v, "stderr": None}) for i, v in enumerate(values)]]


def failure_row(**values: Any) -> dict[str, Any]:
    """A cell that ran out of memory."""
    defaults = {
        "task": "perplexity", "error_type": "OutOfMemoryError", "message": "tried to allocate 2 GiB", "traceback": "Traceback",
        "attempts": 3, "node": "node-a",
    }  # fmt: skip
    return _row("failures", {**defaults, **_own_columns("failures", values), **cell(**values)})


def _own_columns(task: str, values: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in values.items() if key not in cell()}
    unknown = own.keys() - schema(task).keys()
    if unknown:
        raise ValueError(f"no such columns in {task}: {sorted(unknown)}")
    return own


def run_info(**values: Any) -> dict[str, Any]:
    """A whole run.json."""
    info = {
        "run_id": "run-1", "name": "made up", "started_at": "2026-01-02T03:04:05+00:00", "kvsweep_version": "0.1.0",
        "protocol_version": 1, "schema_version": 1, "spec": {"name": "made up"}, "argv": ["kvsweep", "run"],
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"python": "3.11", "torch": "2.13", "transformers": "5.23", "ray": "2.60"},
        "hardware": {"platform": "Linux", "cpu": "test cpu", "cpu_count": 2, "memory_bytes": 8 * 2**30, "gpus": []}, "seed": 0,
        "models": [{"name": "toy", "revision": "r1", "layers": 2, "context": 1024}],
        "datasets": [{"name": "text", "fingerprint": "f1", "tokens": 5000}],
        "planned": {"perplexity": 0, "generation": 0, "retrieval": 0}, "dropped": [], "never_prunes": [],
    }  # fmt: skip
    return {**info, **values}


def one(frame: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    found = frame.filter(*[pl.col(name) == value for name, value in wanted.items()])
    assert found.height == 1, found
    return found.row(0, named=True)


def ratio_interval(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a ratio of sums, in plain Python after Cochran (1977), section 6.3; Student's t from scipy."""
    n, total = len(values), float(sum(weights))
    ratio = sum(values) / total
    spread = math.sqrt(sum((v - ratio * w) ** 2 for v, w in zip(values, weights, strict=True)) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(n) * spread / total
    return ratio - half, ratio + half


def charts_of(shown: Any) -> dict[str, Any]:
    """The charts of a page's contents by name."""
    return {chart.name: chart for panels in shown.charts.values() for chart in panels}


def write_run(directory: str, tables: dict[str, list[dict[str, Any]]] | None = None, **info: Any) -> str:
    """Write a run directory; ``tables`` maps a table's name to its rows. Returns the directory."""
    store = RunStore(directory, create=True)
    store.put("run.json", json.dumps(run_info(**info)).encode(), overwrite=True)
    for task, rows in (tables or {}).items():
        if rows:
            store.add_part(task, "unit-0", to_arrow(task, rows))
    return directory


RATIOS = [0.95, 0.9, 0.8, 0.7, 0.5, 0.3]
HARM = {"knorm": 1.0, "knorm_high": 0.1, "random": 0.25, "streaming": 0.05}
"""What a policy does to perplexity."""


def synthetic_run(directory: str, models: tuple[str, ...] = ("toy",), windows: int = 8, **info: Any) -> str:
    """A run with every kind of row: U-curves for two thresholds, a cell that never prunes, speeds, passkeys and needles, tasks, a
    failure.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        "perplexity": [], "generation": [], "retrieval": [], "tasks": [], "failures": []
    }  # fmt: skip
    cells = 0
    for model in models:
        settings = [{"policy": "dense"}]
        for policy in ("knorm", "knorm_high", "random", "streaming"):
            settings += [
                {"policy": policy, "keep_ratio": r, "prune_after": after, "skip_layers": skip}
                for r in RATIOS for after in (32, 512) for skip in ([], [0])
            ]  # fmt: skip
        settings += [{"policy": "knorm", "keep_ratio": r, "prune_after": 2048} for r in RATIOS]
        settings += [{"policy": "knorm", "keep_ratio": r, "prune_after": 512, "position_mode": "cache_length"} for r in RATIOS]
        cells += len(settings)
        for setting in settings:
            tables["perplexity"] += [_measured(i, model=model, **setting) for i in range(windows)]
        for setting in settings[:9]:
            turns = [False, True] if setting["policy"] == "dense" else [False]
            tables["generation"] += [_timed(i, model=model, control=again, **setting) for i in range(7) for again in turns]
        asked = [{"policy": "dense"}, {"policy": "knorm", "keep_ratio": 0.5, "prune_after": 2048}]
        asked += [{"policy": p, "keep_ratio": r, "prune_after": 32} for p in HARM for r in (0.9, 0.5, 0.3)]
        for setting in asked:
            tables["retrieval"] += _answered(model, setting)
            right = 0.8 - (0.0 if setting["policy"] == "dense" else 0.5 * _harm(setting))
            values = [float(_wobble(i, 7) < 2 * right - 1) for i in range(40)]
            prunes = {"prune_events": 0} if setting.get("prune_after") == 2048 else {}
            tables["tasks"] += tasks_rows(values, model=model, **prunes, **setting)
            tables["tasks"] += tasks_rows(values[:20], model=model, metric="acc_norm", **prunes, **setting)
    tables["failures"].append(failure_row(model=models[0], policy="h2o", keep_ratio=0.5))
    planned = {"perplexity": cells + 1, "generation": 9 * len(models), "retrieval": 28 * len(models), "tasks": 14 * len(models)}
    return write_run(directory, tables, **{"planned": planned, **info})


def _wobble(*parts: float) -> float:
    """A number in [-1, 1] that looks random and is the same in every run."""
    return math.sin(12.9898 * parts[0] + 78.233 * sum(parts[1:])) * 43758.5453 % 2 - 1


def _measured(window_index: int, **setting: Any) -> dict[str, Any]:
    base = 1023 * (4.1 + 0.3 * _wobble(window_index))
    if setting["policy"] == "dense":
        return perplexity_row(
            window_index, window=1024, stride=1024, tokens_scored=1023, nll_sum=base, cache_tokens_mean=512.5,
            kv_bytes_mean=4096 * 512.5, nll=[base / 1023] * 1023, event_steps=[], event_kept=[], tokens_agreed=1023, **setting,
        )  # fmt: skip
    ratio, after = setting["keep_ratio"], setting["prune_after"]
    harm = HARM[setting["policy"]]
    harm *= (1.2 if after == 32 else 0.2) * (0.45 + 0.55 * ratio**3) * (1.0 if setting.get("skip_layers") else 1.25)
    harm *= 1.8 if setting.get("position_mode") == "cache_length" else 1.0
    vacuous = after >= 1024
    kept = math.ceil(ratio * after)
    steps = [] if vacuous else list(range(after, 1024, max(1, after - kept)))
    harm = 0.0 if vacuous else harm * (1 + 0.2 * _wobble(window_index, ratio, harm))
    curve = [1023 * harm / (1024 - after) * (i >= after) for i in range(1, 1024)]
    held = 512.5 if vacuous else after * after / 2048 + (1024 - after) / 1024 * after * (1 + ratio) / 2
    pruned = 0 if vacuous else 1023 - after + 1
    return perplexity_row(
        window_index, window=1024, stride=1024, tokens_scored=1023, nll_sum=base + 1023 * harm, cache_tokens_mean=held,
        kv_bytes_mean=4096 * held, kv_bytes_peak=int(4096 * (1023 if vacuous else after)), tokens_scored_pruned=pruned,
        prune_events=0 if vacuous else int(1023 / (after * (1 - ratio) + 1)),
        tokens_correct=40 - int(10 * harm), kl_sum=1023 * harm * (1.2 + 0.2 * ratio),
        tokens_agreed=int(1023 * math.exp(-harm)), recent_retained=None if vacuous else 1 - 0.5 * ratio,
        sink_retained=None if vacuous else 0.8, score_ties=None if vacuous else 0.02,
        nll=[base / 1023 + extra for extra in curve], event_steps=steps, event_kept=[kept] * len(steps), **setting,
    )  # fmt: skip


def _harm(setting: dict[str, Any]) -> float:
    """How much of the questions a policy cannot answer: nearly the reverse of what it does to perplexity."""
    weight = {"knorm": 0.35, "knorm_high": 0.9, "random": 0.7, "streaming": 1.0}[setting["policy"]]
    return 0.0 if setting["prune_after"] == 2048 else min(1.0, weight * 1.3 * (1 - setting["keep_ratio"]))


def _answered(model: str, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Passkeys, and needles among distractors, at three depths of two lengths, asked before and after the prune."""
    rows = []
    dense, never = setting["policy"] == "dense", setting.get("prune_after") == 2048
    for kind, extra in (("passkey", {}), ("needle", {"digits": 7, "distractors": 3})):
        for before, length, depth, i in itertools.product((True, False), (256, 512), (0.1, 0.5, 0.9), range(4)):
            lost = 0.0 if dense else min(1.0, _harm(setting) * (1 + 0.3 * (kind == "needle") + 0.4 * (not before) - 0.5 * depth))
            correct = dense or (_wobble(i, depth, length) + 1) / 2 >= lost
            held = [0.02, 0.3, 0.98][i % 3] if not correct else 1 - lost
            budget = 1.0 if dense or never else setting["keep_ratio"] * 64 / length
            rows.append(retrieval_row(
                i, model=model, kind=kind, context_tokens=length, depth=depth, question_pruned=before, correct=correct,
                answer_nll=0.5 + 6 * lost, answer_position_retained=1.0 if dense or never else held,
                answer_retained_weighted=1.0 if dense or never else held, answer_retained_least=1.0 if dense or never else held,
                cache_tokens_mean=budget * length, prune_events=0 if dense or never else 9, **extra, **setting,
            ))  # fmt: skip
    return rows


def _timed(repeat: int, **setting: Any) -> dict[str, Any]:
    ratio = 1.0 if setting["policy"] == "dense" else setting["keep_ratio"]
    noise = 1 + 0.02 * _wobble(repeat, ratio, setting["control"], len(str(setting)))
    tpot = 0.002 * (0.6 + 0.4 * ratio) * noise
    return generation_row(
        repeat, ttft_seconds=0.01 * (1 + 0.05 * _wobble(repeat, ratio)), tpot_seconds=tpot, tokens_per_second=1 / tpot,
        kv_bytes_final=int(4096 * ratio), kv_bytes_allocated_final=int(4400 * ratio),
        token_seconds=[tpot * (1 + 0.1 * _wobble(i, repeat)) for i in range(15)], **setting,
    )  # fmt: skip
