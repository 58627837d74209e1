"""A planned unit -> what its worker is sent: settings of its cells and the token ids of their texts."""

from __future__ import annotations

from typing import Any

from pipeline.cells.cell import PRUNED_BY, Cell
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.planning.plan import Plan
from pipeline.tasks import TASKS
from workers.messages.kept_answers import KeptAnswers
from workers.messages.work import UnitCell, WorkUnit
from workers.policies.settings import PruneSettings


def work_unit(
    plan: Plan,
    unit: PlannedUnit,
    complete: frozenset[str] = frozenset(),
    answers: tuple[KeptAnswers, ...] = (),
) -> WorkUnit:
    """A planned unit with the token ids that its worker needs.

    ``complete``: cells of which nothing is asked; ``answers``: what is known of the others.
    """
    first = unit.cells[0]
    cells = tuple(UnitCell(cell.cell_id, prune_settings(cell)) for cell in unit.cells)
    model = plan.resolved.models[first.model]
    work = TASKS[unit.task].work(unit, plan.resolved, plan.spec)
    return WorkUnit(
        unit.unit_id,
        unit.task,
        model,
        first.device,
        first.dtype,
        cells,
        work,
        complete=complete,
        answers=answers,
    )


def prune_settings(cell: Cell) -> PruneSettings:
    """What the cache needs to know of a cell."""
    asked: dict[str, Any] = dict(zip(PRUNED_BY, cell.pruning, strict=True))
    asked["prune_after"] = cell.prune_after or 1  # None in the dense cell, which never prunes
    return PruneSettings(**asked, seed=cell.seed)
