"""A unit of timed cells -> rows: one of each run, with what this machine's memory gives beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workers.generation.generated_text import end_tokens, text_figures
from workers.generation.rounds import Timed, rounds_as_reported, timed_rounds
from workers.machine.bandwidth import memory_bandwidth, weight_bytes
from workers.messages.telling import Telling
from workers.messages.work import Failure, GenerationWork, UnitResult, WorkUnit
from workers.policies.settings import in_words


def generation_rows(
    unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling
) -> None:
    """Tell ``telling`` the rows of all rounds at their end;
    cells that fail and what is suspicious go into ``result``."""
    work = unit.work
    assert isinstance(work, GenerationWork)
    prompts = torch.tensor(work.prompts, device=device)
    weights = weight_bytes(model, len(work.prompts))
    ceiling = memory_bandwidth(device, weights)
    settings = [cell.settings for cell in unit.cells]
    telling.expect(work.warmup + (work.repeats + work.max_repeats) / 2)

    def worked(share: float, cell: int) -> None:
        telling.worked(share, in_words(settings[cell]))

    if work.protocol == "report_2025":
        rounds = rounds_as_reported(model, prompts, settings, work)
    else:
        rounds = timed_rounds(model, prompts, settings, work, worked)
    result.failures += [Failure.of(unit.cells[cell].cell_id, error) for cell, error in rounds.failed.items()]
    dense = next(
        timed.run.output_tokens for timed in rounds.runs if unit.cells[timed.cell].settings.policy == "dense"
    )
    rows = []
    for timed in rounds.runs:
        row = _generation_row(work, timed) | {"weight_bytes": weights, "memory_bandwidth": ceiling}
        row |= text_figures(timed.run.output_tokens, dense, end_tokens(model))
        rows.append({"cell_id": unit.cells[timed.cell].cell_id, **row})
    result.warnings += above_ceiling(unit, rows)
    telling.give(rows)


def above_ceiling(unit: WorkUnit, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Cells whose median step reads its bytes faster than the memory was measured to give them."""
    warnings = []
    for cell in unit.cells:
        of_cell = [row for row in rows if row["cell_id"] == cell.cell_id]
        if not of_cell:
            continue

        achieved = statistics.median(
            (row["weight_bytes"] + row["kv_bytes_step_mean"]) / row["tpot_seconds"] for row in of_cell
        )
        ceiling = of_cell[0]["memory_bandwidth"]
        if achieved > ceiling:
            warnings.append(
                f"{unit.model.name} {cell.settings.policy} keep_ratio {cell.settings.keep_ratio:g}: a "
                f"decoding step would have to read {achieved / 1e9:.1f} GB/s, and this machine was measured "
                f"to read {ceiling / 1e9:.1f} GB/s at most: do not trust this timing"
            )
    return warnings


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
