"""The one composition point: a work unit and a loaded model -> rows. A unit brings its token ids with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from workers.generation.rows import generation_rows
from workers.harness.unit_rows import harness_rows
from workers.loaded.layer_choice import choose_layers
from workers.loaded.self_check import Passed
from workers.machine.clock import device_name
from workers.messages.telling import Tell, Telling
from workers.messages.work import (
    GenerationWork,
    HarnessWork,
    PerplexityWork,
    RetrievalWork,
    UnitResult,
    Work,
    WorkUnit,
)
from workers.perplexity.rows import perplexity_rows
from workers.retrieval.rows import retrieval_rows

Runner = Callable[[WorkUnit, nn.Module, torch.device, UnitResult, Telling], None]
"""Tells of the rows of a unit's cells as they come; puts cells that fail, and warnings, into the result."""

RUNNERS: Mapping[type[Work], Runner] = {
    PerplexityWork: perplexity_rows,
    GenerationWork: generation_rows,
    RetrievalWork: retrieval_rows,
    HarnessWork: harness_rows,
}
"""Who does which kind of work."""


def run_unit(
    unit: WorkUnit,
    model: nn.Module,
    device: torch.device,
    passed: Passed | None = None,
    tell: Tell | None = None,
) -> UnitResult:
    """All rows of a unit, without those that ``tell`` was told of before.

    A cell that fails is recorded; what fails for the whole unit is raised. ``passed``: what the self-check
    found, for the columns that say how much is rounding.
    """
    result = UnitResult(device_name=device_name(device))
    chosen = choose_layers(unit, model)
    result.failures, result.warnings = chosen.failures, chosen.warnings
    telling = Telling(
        tell, result.device_name, {cell.cell_id: chosen.columns.get(cell.cell_id, {}) for cell in unit.cells}
    )
    if unit.work.tells_rounding:
        rounding = (passed.rounding_nats, passed.rounding_ppl) if passed else (None, None)
        for columns in telling.columns.values():
            columns |= dict(zip(("rounding_nats", "rounding_ppl"), rounding, strict=True))

    if chosen.unit.cells:
        RUNNERS[type(unit.work)](chosen.unit, model, device, result, telling)
    result.rows = telling.rows
    return result
