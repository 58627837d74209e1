"""Tasks of EleutherAI's lm-evaluation-harness, which bring
their own texts; what they ask, only running them tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.cells.cell import Cell, settings_of
from pipeline.cells.model_size import shape_of
from pipeline.cells.planned_budget import PlannedBudget
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import OwnText, Resolved
from pipeline.sweepfile.sweep_keys import SweepSpec
from pipeline.tasks.task import Task
from workers.footprint.harness import HARNESS_LONGEST, harness_bytes
from workers.messages.work import HarnessWork
from workers.models.model_files import ModelFacts

DOCUMENTS, DOCUMENT_TOKENS, DOCUMENT_PASSES = 1000, 400, 8
"""What a task is taken to have and a document of it to take, where only running it can tell."""


class Harness(Task):
    """Figures of the harness's own metrics, and of each of its documents."""

    name = "tasks"
    block = "lm_eval"
    brings_texts = True
    at_least = True
    keeps_answers = True

    def settings(self, spec: SweepSpec) -> Iterator[dict[str, Any]]:
        if spec.lm_eval:
            yield {"limit": spec.lm_eval.limit, "num_fewshot": spec.lm_eval.num_fewshot}

    def texts(self, spec: SweepSpec, faults: list[str]) -> list[OwnText]:
        if spec.lm_eval is None:
            return []
        # The harness is an optional dependency, and takes seconds.
        from workers.harness.tasks import HarnessError, task_digest

        found = []
        for name in spec.lm_eval.tasks:
            try:
                found.append(OwnText(self.name, name, task_digest(name, spec.lm_eval.include_path)))
            except HarnessError as error:
                faults.append(f"lm_eval.tasks: {error}")
        return found

    def prompt_tokens(self, settings: Mapping[str, Any]) -> int:
        return 1

    def tokens_read(self, settings: Mapping[str, Any]) -> int:
        return 0

    def last_check(self, cell: Cell, settings: Mapping[str, Any]) -> int | None:
        return None

    def planned_budget(self, cell: Cell) -> PlannedBudget | None:
        return None

    def rows_expected(self, cell: Cell, resolved: Resolved) -> int:
        # a cell's rows are stored together; how many metrics and documents it has, only running it tells
        return 1

    def seconds(self, unit: PlannedUnit, rates: Rates) -> float:
        return sum(_cell_seconds(cell, rates) for cell in unit.cells)

    def bytes_at_once(self, facts: ModelFacts, cells: Sequence[Cell], texts: int) -> tuple[int, int]:
        length = min(facts.longest(DOCUMENT_TOKENS), HARNESS_LONGEST)
        return length, max(harness_bytes(shape_of(facts, cells[0]), length, cell) for cell in cells)

    def work(self, unit: PlannedUnit, resolved: Resolved, spec: SweepSpec) -> HarnessWork:
        first, settings = unit.cells[0], settings_of(unit.cells[0])
        assert spec.lm_eval is not None
        own = spec.lm_eval.include_path
        own = own and os.path.abspath(os.path.expanduser(own))  # a worker may stand elsewhere
        return HarnessWork(first.dataset, settings["limit"], settings["num_fewshot"], own, spec.bos)


def _cell_seconds(cell: Cell, rates: Rates) -> float:
    documents = settings_of(cell)["limit"] or DOCUMENTS
    return documents * (DOCUMENT_TOKENS * rates.token + DOCUMENT_PASSES * rates.single_pass)
