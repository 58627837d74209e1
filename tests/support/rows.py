"""Whole run directories of made-up rows, and what tests ask of frames: deterministic, no model, no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import polars as pl
from scipy import stats

from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from tools.made_rows import (
    cell,
    failure_row,
    generation_row,
    perplexity_row,
    retrieval_row,
    run_info,
    tasks_rows,
)

__all__ = [
    "NASTY", "asked", "cell", "charts_of", "failure_row", "generation_row", "one", "perplexity_row",
    "ratio_interval", "retrieval_row", "run_info", "synthetic_run", "tasks_rows", "write_run",
]  # fmt: skip

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\\\n\u2028{{7*7}}"
"""A name that breaks a page which forgets one kind of escaping."""


def asked(right: int = 10, dense: int = 10, n: int = 10, **settings: Any) -> list[dict[str, Any]]:
    """Questions to a cell and to its dense twin, the first ones answered right."""
    own = {key: value for key, value in settings.items() if key in _OF_THE_QUESTION}
    twin = [retrieval_row(i, policy="dense", correct=i < dense, **own) for i in range(n)]
    return twin + [retrieval_row(i, correct=i < right, **settings) for i in range(n)]


_OF_THE_QUESTION = ("kind", "context_tokens", "digits", "distractors", "question_pruned", "model")


def one(frame: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    found = frame.filter(*[pl.col(name) == value for name, value in wanted.items()])
    assert found.height == 1, found
    return found.row(0, named=True)


def ratio_interval(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a ratio of sums, in plain Python after Cochran (1977), section 6.3; Student's t
    from scipy."""
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
    """A run with every kind of row: U-curves for two thresholds, a cell that never prunes, speeds, passkeys
    and needles, tasks, a failure.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        "perplexity": [],
        "generation": [],
        "retrieval": [],
        "tasks": [],
        "failures": [],
    }
    cells = 0
    for model in models:
        settings = [{"policy": "dense"}]
        for policy in ("knorm", "knorm_high", "random", "streaming"):
            settings += [
                {"policy": policy, "keep_ratio": r, "prune_after": after, "skip_layers": skip}
                for r in RATIOS
                for after in (32, 512)
                for skip in ([], [0])
            ]
        settings += [{"policy": "knorm", "keep_ratio": r, "prune_after": 2048} for r in RATIOS]
        moved = {"policy": "knorm", "prune_after": 512, "position_mode": "cache_length"}
        settings += [{**moved, "keep_ratio": r} for r in RATIOS]
        cells += len(settings)
        for setting in settings:
            tables["perplexity"] += [_measured(i, model=model, **setting) for i in range(windows)]
        for setting in settings[:9]:
            turns = [False, True] if setting["policy"] == "dense" else [False]
            timed = [_timed(i, model=model, control=again, **setting) for i in range(7) for again in turns]
            tables["generation"] += timed
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
    planned = {
        "perplexity": cells + 1,
        "generation": 9 * len(models),
        "retrieval": 28 * len(models),
        "tasks": 14 * len(models),
    }
    return write_run(directory, tables, **{"planned": planned, **info})


def _wobble(*parts: float) -> float:
    """A number in [-1, 1] that looks random and is the same in every run."""
    return math.sin(12.9898 * parts[0] + 78.233 * sum(parts[1:])) * 43758.5453 % 2 - 1


def _measured(window_index: int, **setting: Any) -> dict[str, Any]:
    base = 1023 * (4.1 + 0.3 * _wobble(window_index))
    if setting["policy"] == "dense":
        return perplexity_row(
            window_index,
            window=1024,
            stride=1024,
            tokens_scored=1023,
            nll_sum=base,
            cache_tokens_mean=512.5,
            kv_bytes_mean=4096 * 512.5,
            nll=[base / 1023] * 1023,
            event_steps=[],
            event_kept=[],
            tokens_agreed=1023,
            **setting,
        )
    ratio, after = setting["keep_ratio"], setting["prune_after"]
    harm = HARM[setting["policy"]]
    all_layers = 1.0 if setting.get("skip_layers") else 1.25
    harm *= (1.2 if after == 32 else 0.2) * (0.45 + 0.55 * ratio**3) * all_layers
    harm *= 1.8 if setting.get("position_mode") == "cache_length" else 1.0
    vacuous = after >= 1024
    kept = math.ceil(ratio * after)
    steps = [] if vacuous else list(range(after, 1024, max(1, after - kept)))
    harm = 0.0 if vacuous else harm * (1 + 0.2 * _wobble(window_index, ratio, harm))
    curve = [1023 * harm / (1024 - after) * (i >= after) for i in range(1, 1024)]
    held = 512.5 if vacuous else after * after / 2048 + (1024 - after) / 1024 * after * (1 + ratio) / 2
    pruned = 0 if vacuous else 1023 - after + 1
    return perplexity_row(
        window_index,
        window=1024,
        stride=1024,
        tokens_scored=1023,
        nll_sum=base + 1023 * harm,
        cache_tokens_mean=held,
        kv_bytes_mean=4096 * held,
        kv_bytes_peak=int(4096 * (1023 if vacuous else after)),
        tokens_scored_pruned=pruned,
        prune_events=0 if vacuous else int(1023 / (after * (1 - ratio) + 1)),
        tokens_correct=40 - int(10 * harm),
        kl_sum=1023 * harm * (1.2 + 0.2 * ratio),
        tokens_agreed=int(1023 * math.exp(-harm)),
        recent_retained=None if vacuous else 1 - 0.5 * ratio,
        sink_retained=None if vacuous else 0.8,
        score_ties=None if vacuous else 0.02,
        nll=[base / 1023 + extra for extra in curve],
        event_steps=steps,
        event_kept=[kept] * len(steps),
        **setting,
    )


def _harm(setting: dict[str, Any]) -> float:
    """How much of the questions a policy cannot answer: nearly the reverse of what it does to perplexity."""
    weight = {"knorm": 0.35, "knorm_high": 0.9, "random": 0.7, "streaming": 1.0}[setting["policy"]]
    return 0.0 if setting["prune_after"] == 2048 else min(1.0, weight * 1.3 * (1 - setting["keep_ratio"]))


def _answered(model: str, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Passkeys, and needles among distractors, at three depths of two lengths, asked before and after the
    prune."""
    rows = []
    dense, never = setting["policy"] == "dense", setting.get("prune_after") == 2048
    for kind, extra in (("passkey", {}), ("needle", {"digits": 7, "distractors": 3})):
        grid = itertools.product((True, False), (256, 512), (0.1, 0.5, 0.9), range(4))
        for before, length, depth, i in grid:
            harder = 1 + 0.3 * (kind == "needle") + 0.4 * (not before) - 0.5 * depth
            lost = 0.0 if dense else min(1.0, _harm(setting) * harder)
            correct = dense or (_wobble(i, depth, length) + 1) / 2 >= lost
            held = [0.02, 0.3, 0.98][i % 3] if not correct else 1 - lost
            budget = 1.0 if dense or never else setting["keep_ratio"] * 64 / length
            rows.append(
                retrieval_row(
                    i,
                    model=model,
                    kind=kind,
                    context_tokens=length,
                    depth=depth,
                    question_pruned=before,
                    correct=correct,
                    answer_nll=0.5 + 6 * lost,
                    answer_position_retained=1.0 if dense or never else held,
                    answer_retained_weighted=1.0 if dense or never else held,
                    answer_retained_least=1.0 if dense or never else held,
                    cache_tokens_mean=budget * length,
                    prune_events=0 if dense or never else 9,
                    **extra,
                    **setting,
                )
            )
    return rows


def _timed(repeat: int, **setting: Any) -> dict[str, Any]:
    ratio = 1.0 if setting["policy"] == "dense" else setting["keep_ratio"]
    noise = 1 + 0.02 * _wobble(repeat, ratio, setting["control"], len(str(setting)))
    tpot = 0.002 * (0.6 + 0.4 * ratio) * noise
    return generation_row(
        repeat,
        ttft_seconds=0.01 * (1 + 0.05 * _wobble(repeat, ratio)),
        tpot_seconds=tpot,
        tokens_per_second=1 / tpot,
        kv_bytes_final=int(4096 * ratio),
        kv_bytes_allocated_final=int(4400 * ratio),
        token_seconds=[tpot * (1 + 0.1 * _wobble(i, repeat)) for i in range(15)],
        **setting,
    )
