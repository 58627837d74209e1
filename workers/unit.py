"""The one composition point: a work unit and a loaded model -> rows. A unit brings its token ids with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.answers import answers
from workers.bandwidth import memory_bandwidth, weight_bytes
from workers.cell_scores import CellScores
from workers.clock import device_name
from workers.generated_text import described, end_tokens
from workers.layer_choice import choose_layers
from workers.memory import is_out_of_memory
from workers.perplexity import evaluate, window_bytes
from workers.rounds import Timed, timed_rounds
from workers.self_check import Passed
from workers.settings import BATCH_WINDOWS_BYTES, MAX_BATCH_WINDOWS
from workers.windows import Window
from workers.work import Failure, GenerationWork, HarnessWork, PerplexityWork, RetrievalWork, UnitResult, WorkUnit


def run_unit(unit: WorkUnit, model: nn.Module, device: torch.device, passed: Passed | None = None) -> UnitResult:
    """All rows of a unit. A cell that fails is recorded; what fails for the whole unit is raised.

    ``passed``: what the self-check found, for the columns that say how much is rounding.
    """
    result = UnitResult(device_name=device_name(device))
    runners: dict[str, Callable[[WorkUnit, nn.Module, torch.device, UnitResult], None]] = {
        "perplexity": _perplexity, "generation": _generation, "retrieval": _retrieval, "tasks": _tasks,
    }  # fmt: skip
    chosen = choose_layers(unit, model)
    result.failures, result.warnings = chosen.failures, chosen.warnings
    if chosen.unit.cells:
        runners[unit.task](chosen.unit, model, device, result)
    for row in result.rows:
        row |= chosen.columns.get(row["cell_id"], {})

    if unit.task == "perplexity":
        rounding = (passed.rounding_nats, passed.rounding_ppl) if passed else (None, None)
        for row in result.rows:
            row["rounding_nats"], row["rounding_ppl"] = rounding
    return result


def _perplexity(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult) -> None:
    work = unit.work
    assert isinstance(work, PerplexityWork)
    failed: set[str] = set()
    start, size = 0, _batch_windows(model, work.tokens.shape[1])
    while start < len(work.windows):
        part = slice(start, start + size)
        windows = work.windows[part]
        tokens = torch.from_numpy(work.tokens[part].astype(np.int64)).to(device)
        cells = [cell for cell in unit.cells if cell.cell_id not in failed]
        try:
            dense, outcomes = evaluate(model, tokens, [cell.settings for cell in cells], [w.text_id for w in windows])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(windows) == 1:
                raise
            size = (len(windows) + 1) // 2
            continue
        for cell, outcome in zip(cells, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failed.add(cell.cell_id)
                result.failures.append(Failure.of(cell.cell_id, outcome))
                continue
            own = cell.settings.policy == "dense"
            for i, window in enumerate(windows):
                row = _perplexity_row(window, i, dense if outcome is None else outcome, reused=outcome is None and not own)
                result.rows.append({"cell_id": cell.cell_id, **row, "document": work.documents[start + i], "stride": work.stride})
        start += len(windows)
    result.rows = [row for row in result.rows if row["cell_id"] not in failed]


def _batch_windows(model: nn.Module, length: int) -> int:
    """Windows that go through together. Never by what memory is free now: a batch of another size gives other last bits."""
    return max(1, min(MAX_BATCH_WINDOWS, BATCH_WINDOWS_BYTES // window_bytes(model, length)))


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


def _generation(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult) -> None:
    work = unit.work
    assert isinstance(work, GenerationWork)
    prompts = torch.tensor(work.prompts, device=device)
    weights = weight_bytes(model, len(work.prompts))
    ceiling = memory_bandwidth(device, weights)
    rounds = timed_rounds(model, prompts, [c.settings for c in unit.cells], work)
    result.failures += [Failure.of(unit.cells[cell].cell_id, error) for cell, error in rounds.failed.items()]
    dense = next(timed.run.output_tokens for timed in rounds.runs if unit.cells[timed.cell].settings.policy == "dense")
    for timed in rounds.runs:
        row = _generation_row(work, timed) | {"weight_bytes": weights, "memory_bandwidth": ceiling}
        row |= described(timed.run.output_tokens, dense, end_tokens(model))
        result.rows.append({"cell_id": unit.cells[timed.cell].cell_id, **row})
    result.warnings += above_ceiling(unit, result.rows)


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


def _retrieval(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult) -> None:
    work = unit.work
    assert isinstance(work, RetrievalWork)
    size = _batch_windows(model, max(question.context_tokens for question in work.questions))
    for cell, rows in zip(unit.cells, answers(model, device, [c.settings for c in unit.cells], work, size), strict=True):
        if isinstance(rows, Exception):
            result.failures.append(Failure.of(cell.cell_id, rows))
        else:
            result.rows += [{"cell_id": cell.cell_id, **row} for row in rows]


def _tasks(unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult) -> None:
    from workers.harness.task_rows import task_rows  # an optional dependency

    work = unit.work
    assert isinstance(work, HarnessWork)
    for cell in unit.cells:
        try:
            found = task_rows(model, unit.model, device, cell.settings, work)
        except Exception as error:
            result.failures.append(Failure.of(cell.cell_id, error))
            continue
        result.rows += [{"cell_id": cell.cell_id, **row} for row in found.rows]
        result.warnings += [f"{unit.model.name}, {work.task}: {warning}" for warning in found.warnings]
