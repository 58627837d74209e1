"""A unit of one of the harness's tasks -> rows of its cells, one cell after the other."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from workers.harness.task_rows import task_rows
from workers.machine.code_digest import code_digest
from workers.messages.kept_answers import AnswerBook
from workers.messages.telling import Telling
from workers.messages.work import Failure, HarnessWork, UnitResult, WorkUnit
from workers.policies.settings import in_words


def _versions() -> str:
    """Of the code whose answers may stand in one row: another version's may differ in the last bits."""
    return f"{torch.__version__} {transformers.__version__} {code_digest()}"


def harness_rows(
    unit: WorkUnit, model: nn.Module, device: torch.device, result: UnitResult, telling: Telling
) -> None:
    """Tell ``telling`` the rows of each cell at its end;
    cells that fail and what is suspicious go into ``result``."""
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
