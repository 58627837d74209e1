"""The one composition point: a work unit and a loaded model -> rows. A unit brings its token ids with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from workers.answers import AnswersWatch, answers
from workers.bandwidth import memory_bandwidth, weight_bytes
from workers.cell_scores import CellScores
from workers.clock import device_name
from workers.code_digest import code_digest
from workers.footprint import questions_at_once, windows_at_once
from workers.generated_text import described, end_tokens
from workers.kept_answers import AnswerBook
from workers.layer_choice import choose_layers
from workers.memory import is_out_of_memory
from workers.model_shape import shape_of
from workers.perplexity import Outcome, Watch, evaluate, schedule_of
from workers.rounds import Timed, timed_rounds
from workers.self_check import Passed
from workers.settings import PruneSettings
from workers.telling import Tell, Telling
from workers.windows import Window
from workers.work import (
    Failure,
    GenerationWork,
    HarnessWork,
    PerplexityWork,
    RetrievalWork,
    UnitCell,
    UnitResult,
    WorkUnit,
)

ANSWER_WORK = 64
"""What a cell's answer to a question takes, in tokens of its prompt: for the share of a unit that is done, no more."""

Runner = Callable[[WorkUnit, nn.Module, torch.device, UnitResult, Telling], None]


def run_unit(
    unit: WorkUnit, model: nn.Module, device: torch.device, passed: Passed | None = None, tell: Tell | None = None
) -> UnitResult:
    """All rows of a unit, without those that ``tell`` was told of before.

    A cell that fails is recorded; what fails for the whole unit is raised. ``passed``: what the self-check found, for the columns
    that say how much is rounding.
    """
    result = UnitResult(device_name=device_name(device))
    runners: dict[str, Runner] = {
        "perplexity": _perplexity, "generation": _generation, "retrieval": _retrieval, "tasks": _tasks,
    }  # fmt: skip
    chosen = choose_layers(unit, model)
    result.failures, result.warnings = chosen.failures, chosen.warnings
    telling = Telling(tell, result.device_name, {cell.cell_id: chosen.columns.get(cell.cell_id, {}) for cell in unit.cells})
    if unit.task == "perplexity":
        rounding = (passed.rounding_nats, passed.rounding_ppl) if passed else (None, None)
        for columns in telling.columns.values():
            columns |= dict(zip(("rounding_nats", "rounding_ppl"), rounding, strict=True))

    if chosen.unit.cells:
        runners[unit.task](chosen.unit, model, device, result, telling)
    result.rows = telling.rows
    return result


def _perplexity(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling) -> None:
    work = unit.work
    assert isinstance(work, PerplexityWork)
    steps = work.tokens.shape[1] - 1
    telling.expect(len(work.windows) * (steps + sum(_own_tokens(cell.settings, steps) for cell in unit.cells)))
    made = _PerplexityRows(unit, work, result, telling)
    start, size = 0, windows_at_once(shape_of(model), work.tokens.shape[1])
    while start < len(work.windows):
        part = slice(start, start + size)
        windows = work.windows[part]
        try:
            made.evaluate(model, device, part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(windows) == 1:
                raise
            size = (len(windows) + 1) // 2
            continue
        start += len(windows)


def _own_tokens(settings: PruneSettings, steps: int) -> int:
    """Of a window, the tokens that a cell puts through a model itself: those behind its first event."""
    first = schedule_of(settings, steps).first_event
    return 0 if first is None else steps - first


class _PerplexityRows:
    """What is made of a unit's cells as they end, batch of windows after batch."""

    def __init__(self, unit: WorkUnit, work: PerplexityWork, result: UnitResult, telling: Telling) -> None:
        self.unit, self.work, self.result, self.telling = unit, work, result, telling
        self.failed: set[str] = set()
        self.given: set[tuple[str, int]] = set()
        """(cell, window) of rows that were given: a batch that memory cannot hold is tried again in halves."""

    def evaluate(self, model: nn.Module, device: torch.device, part: slice) -> None:
        """The windows of ``part`` together. Raises as ``perplexity.evaluate`` does."""
        cells = [cell for cell in self.unit.cells if cell.cell_id not in self.failed]
        wanted = {i for i, cell in enumerate(cells) if cell.cell_id not in self.unit.complete}
        tokens = torch.from_numpy(self.work.tokens[part].astype(np.int64)).to(device)
        row_ids = [window.text_id for window in self.work.windows[part]]

        def worked(tokens: int, cell: int) -> None:
            self.telling.worked(tokens, "dense" if cell < 0 else in_words(cells[cell].settings))

        def ended(dense: CellScores, cell: int, outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                self._fail(cells[cell].cell_id, outcome)
            else:
                self._give(cells[cell], part, dense, outcome)

        evaluate(model, tokens, [cell.settings for cell in cells], row_ids, wanted, Watch(ended, worked))

    def _fail(self, cell_id: str, error: Exception) -> None:
        self.failed.add(cell_id)
        self.result.failures.append(Failure.of(cell_id, error))
        self.telling.forget(cell_id)

    def _give(self, cell: UnitCell, part: slice, dense: CellScores, own: CellScores | None) -> None:
        """A cell's rows; without scores of its own it *is* the dense one."""
        scores, reused = own or dense, own is None and cell.settings.policy != "dense"
        rows = []
        for i, (window, document) in enumerate(zip(self.work.windows[part], self.work.documents[part], strict=True)):
            if (cell.cell_id, window.index) not in self.given:
                self.given.add((cell.cell_id, window.index))
                row = _perplexity_row(window, i, scores, reused=reused)
                rows.append({"cell_id": cell.cell_id, **row, "document": document, "stride": self.work.stride})
        self.telling.give(rows)


def in_words(settings: PruneSettings) -> str:
    """A cell in a few words."""
    if settings.policy == "dense":
        return "dense"
    protected = f" +{settings.protect_sink}/{settings.protect_recent}" if settings.protect_sink or settings.protect_recent else ""
    return f"{settings.policy} {settings.keep_ratio:g}{protected}"


def _perplexity_row(window: Window, i: int, scores: CellScores, *, reused: bool) -> dict[str, Any]:
    """One (cell, window); ``reused`` marks a cell that never prunes and so *is* the dense cell (no passes of its own)."""

    def scored(values: Tensor | None) -> Tensor:
        assert values is not None  # None without a dense cell beside it, and here it always is
        return values[i, window.first_scored - 1 :]

    nll = scored(scores.nll).numpy()
    validity = scores.validity
    return {
        "window_index": window.index,
        "window_start": window.start,
        "window": window.length,
        "tokens_scored": window.tokens_scored,
        "nll_sum": float(nll.astype(np.float64).sum()),
        "nll": nll,
        "tokens_correct": int(scored(scores.correct).sum()),
        "prune_events": validity.prune_events,
        "tokens_scored_pruned": scores.schedule.scored_pruned(window.first_scored),
        "cache_tokens_mean": scores.entries_mean(window.first_scored),
        "cache_tokens_peak": scores.entries_peak(),
        "cache_tokens_final": scores.entries_final(),
        "kv_bytes_mean": scores.kv_bytes_mean(window.first_scored),
        "kv_bytes_peak": scores.kv_bytes_peak(),
        "recent_retained": validity.recent_retained[i] if validity.recent_retained else None,
        "sink_retained": validity.sink_retained[i] if validity.sink_retained else None,
        "score_ties": validity.score_ties[i] if validity.score_ties else None,
        "forward_passes": 0 if reused else scores.forward_passes,
        "seconds": 0.0 if reused else scores.seconds / scores.nll.shape[0],
        "event_steps": [seen for seen, _, _ in scores.schedule.events],
        "kl_sum": float(scored(scores.kl).double().sum()),
        "tokens_agreed": int(scored(scores.agreed).sum()),
        "event_kept": [after for _, _, after in scores.schedule.events],
    }


def _generation(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling) -> None:
    work = unit.work
    assert isinstance(work, GenerationWork)
    prompts = torch.tensor(work.prompts, device=device)
    weights = weight_bytes(model, len(work.prompts))
    ceiling = memory_bandwidth(device, weights)
    settings = [cell.settings for cell in unit.cells]
    telling.expect(work.warmup + (work.repeats + work.max_repeats) / 2)
    rounds = timed_rounds(model, prompts, settings, work, lambda rounds, cell: telling.worked(rounds, in_words(settings[cell])))
    result.failures += [Failure.of(unit.cells[cell].cell_id, error) for cell, error in rounds.failed.items()]
    dense = next(timed.run.output_tokens for timed in rounds.runs if unit.cells[timed.cell].settings.policy == "dense")
    rows = []
    for timed in rounds.runs:
        row = _generation_row(work, timed) | {"weight_bytes": weights, "memory_bandwidth": ceiling}
        row |= described(timed.run.output_tokens, dense, end_tokens(model))
        rows.append({"cell_id": unit.cells[timed.cell].cell_id, **row})
    result.warnings += above_ceiling(unit, rows)
    telling.give(rows)


def above_ceiling(unit: WorkUnit, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Cells whose median step reads its bytes faster than the memory was measured to give them."""
    found = []
    for cell in unit.cells:
        own = [row for row in rows if row["cell_id"] == cell.cell_id]
        if not own:
            continue
        achieved = statistics.median((row["weight_bytes"] + row["kv_bytes_step_mean"]) / row["tpot_seconds"] for row in own)
        ceiling = own[0]["memory_bandwidth"]
        if achieved > ceiling:
            found.append(
                f"{unit.model.name} {cell.settings.policy} keep_ratio {cell.settings.keep_ratio:g}: a decoding step would have "
                f"to read {achieved / 1e9:.1f} GB/s, and this machine was measured to read {ceiling / 1e9:.1f} GB/s at most: do "
                "not trust this timing"
            )
    return found


def _generation_row(work: GenerationWork, timed: Timed) -> dict[str, Any]:
    run = timed.run
    return {
        "prompt_tokens": len(work.prompts[0]),
        "batch_size": len(work.prompts),
        "new_tokens": work.new_tokens,
        "timing_protocol": work.protocol,
        "repeat": timed.repeat,
        "round_order": timed.place,
        "control": timed.control,
        "ttft_seconds": run.ttft_seconds,
        "prompt_prune_seconds": run.prompt_prune_seconds,
        "tpot_seconds": run.tpot_seconds,
        "total_seconds": run.total_seconds,
        "tokens_per_second": len(work.prompts) * work.new_tokens / run.total_seconds,
        "token_seconds": run.token_seconds,
        "prune_steps": run.prune_steps,
        "prune_seconds": run.prune_seconds,
        "kv_bytes_prompt": run.kv_bytes_prompt,
        "kv_bytes_peak": run.kv_bytes_peak,
        "kv_bytes_final": run.kv_bytes_final,
        "kv_bytes_allocated_peak": run.kv_bytes_allocated_peak,
        "kv_bytes_allocated_final": run.kv_bytes_allocated_final,
        "kv_bytes_step_mean": run.kv_bytes_step_mean,
        "peak_memory_bytes": run.peak_memory_bytes,
        "peak_memory_method": run.peak_memory_method,
        "prune_events": run.prune_events,
        "output_tokens": [token for row in run.output_tokens for token in row],
        "threads": torch.get_num_threads(),
    }


def _retrieval(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling) -> None:
    work = unit.work
    assert isinstance(work, RetrievalWork)
    cells = [cell for cell in unit.cells if cell.cell_id not in unit.complete]
    length = max(question.context_tokens for question in work.questions)
    size = questions_at_once(shape_of(model), length)
    telling.expect(len(work.questions) * (length + len(cells) * ANSWER_WORK))

    def worked(questions: int, cell: int) -> None:
        if cell < 0:
            telling.worked(questions * length, "prompts")
        else:
            telling.worked(questions * ANSWER_WORK, in_words(cells[cell].settings))

    def answered(cell: int, rows: list[dict[str, Any]]) -> None:
        telling.give([{"cell_id": cells[cell].cell_id, **row} for row in rows])

    watch = AnswersWatch(worked, answered)
    outcomes = answers(model, device, [cell.settings for cell in cells], work, size, watch)
    for cell, outcome in zip(cells, outcomes, strict=True):
        if isinstance(outcome, Exception):
            result.failures.append(Failure.of(cell.cell_id, outcome))
            telling.forget(cell.cell_id)


def _versions() -> str:
    """Of the code whose answers may stand in one row: another version's may differ in the last bits."""
    return f"{torch.__version__} {transformers.__version__} {code_digest()}"


def _tasks(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling) -> None:
    from workers.harness.task_rows import task_rows  # an optional dependency

    work = unit.work
    assert isinstance(work, HarnessWork)
    for cell in unit.cells:

        def worked(share: float, words: str = in_words(cell.settings)) -> None:
            telling.worked(share, words)

        telling.expect(1)
        made_with = f"{result.device_name} {torch.get_num_threads()} {_versions()} {cell.settings}"
        book = AnswerBook(cell.cell_id, made_with, unit.answers, telling.answered)
        try:
            found = task_rows(model, unit.model, device, cell.settings, work, worked=worked, book=book)
        except Exception as error:
            result.failures.append(Failure.of(cell.cell_id, error))
            continue
        telling.give([{"cell_id": cell.cell_id, **row} for row in found.rows])
        result.warnings += [f"{unit.model.name}, {work.task}: {warning}" for warning in found.warnings]
