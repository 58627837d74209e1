"""One task of lm-evaluation-harness on a loaded model and one way of pruning: a sweep's worker does it."""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from workers.footprint.shape import MAX_AT_ONCE
from workers.harness.counts import total
from workers.harness.tasks import find_task
from workers.messages.kept_answers import AnswerBook
from workers.messages.work import HarnessWork
from workers.models.model_files import ModelFacts
from workers.policies.settings import PruneSettings

if TYPE_CHECKING:
    from workers.harness.model import PrunedModel

SEED = 1234
"""Of Python, numpy, torch and the choice of examples, the same for every cell:
documents must be the same to be compared."""
BOOTSTRAP = 100
"""Resamples of the harness's standard error where a metric has no formula for it."""


@dataclass(frozen=True)
class TaskResult:
    """Rows with the columns of the table ``tasks``, and what makes them meaningless."""

    rows: list[dict[str, Any]]
    warnings: list[str]


def task_rows(
    model: nn.Module,
    facts: ModelFacts,
    device: torch.device,
    settings: PruneSettings,
    work: HarnessWork,
    batch_size: int = MAX_AT_ONCE,
    worked: Callable[[float], None] = lambda share: None,
    book: AnswerBook | None = None,
) -> TaskResult:
    """Run one task through ``model`` (loaded, under our attention); ``batch_size``: contexts at a time at
    most. ``worked`` is told of the shares of the task's requests that are done; what ``book`` knows is not
    computed.

    The harness loads the task's dataset from where its definition says. Raises HarnessError where the harness
    or the task is missing, and what the harness raises.
    """
    file = _definition(work.task, work.include_path)
    from workers.harness.model import PrunedModel

    pruned = PrunedModel(model, facts, settings, device, batch_size=batch_size, bos=work.bos, progress=False)
    pruned.worked = worked
    pruned.book = book or AnswerBook()
    with _quiet():
        results = _evaluated(pruned, file, work)
    counted = total(pruned.counts.values())
    shared = {
        "task_name": work.task,
        "documents": int(results["n-samples"][work.task]["effective"]),
        "num_fewshot": int(results["n-shot"][work.task] or 0),
        "prune_events": counted.prune_events,
        "tokens_predicted": counted.tokens_predicted,
        "tokens_predicted_pruned": counted.tokens_predicted_pruned,
        "cache_tokens_mean": counted.cache_tokens_mean,
    }
    warning = counted.warning(settings)
    warnings = [each for each in (warning, pruned.rounding) if each]
    return TaskResult([shared | row for row in _rows(work.task, results)], warnings)


def _evaluated(pruned: PrunedModel, file: str, work: HarnessWork) -> dict[str, Any]:
    """What the harness's ``simple_evaluate`` gives of one task, by the same steps.

    That function then describes the machine: it lists all packages in a process of its own and asks git,
    seconds for each cell, which nobody reads (``pipeline/driving/provenance.py`` says what a run ran on,
    once).
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    loaded = TaskManager(include_defaults=False).load([file])
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if work.num_fewshot is not None and own != 0:  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=work.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)

    given = evaluate(
        lm=pruned, task_dict=loaded, limit=work.limit, bootstrap_iters=BOOTSTRAP, fewshot_as_multiturn=True
    )
    return {**(given or {})}


@lru_cache(maxsize=256)
def _definition(task: str, include_path: str | None) -> str:
    """The task's file; looking for it takes a second, and a unit has many cells."""
    return str(find_task(task, include_path).file)


def _rows(task: str, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The harness's figures, each followed by those of the documents that have a value of their own."""
    better = results["higher_is_better"].get(task) or {}
    figures = results["results"][task]
    for key, value in figures.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or (figure := _number(value)) is None:
            continue

        row = {"metric": metric, "filter": chosen, "higher_is_better": better.get(metric)}
        yield row | {
            "doc_index": None,
            "value": figure,
            "stderr": _number(figures.get(f"{metric}_stderr,{chosen}")),
        }
        for sample in results["samples"][task]:
            if sample["filter"] == chosen and (own := _number(sample.get(metric))) is not None:
                yield row | {"doc_index": int(sample["doc_id"]), "value": own, "stderr": None}


def _number(value: Any) -> float | None:
    """A finite number; None for what metrics of a whole corpus keep of a document, and for "N/A"."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no output of the harness,
    which belong to whoever started the sweep, and no processes for its resampling."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
