"""A unit of questions -> rows: each cell's answers, batch after batch of questions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workers.footprint.model_shape import shape_of
from workers.footprint.prompts import questions_at_once
from workers.messages.telling import Telling
from workers.messages.work import Failure, RetrievalWork, UnitResult, WorkUnit
from workers.policies.settings import in_words
from workers.retrieval.answers import AnswersWatch, answers

ANSWER_WORK = 64
"""What a cell's answer to a question takes, in tokens of its prompt:
for the share of a unit that is done, no more."""


def retrieval_rows(
    unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling
) -> None:
    """Tell ``telling`` the rows of every question and cell; cells that fail go into ``result``."""
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
