"""What is known of a cell before it runs, from integers alone: whether its cache is ever pruned, and how much
it will hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.cells.cell import Cell
from pipeline.cells.planned_budget import PlannedBudget
from pipeline.tasks import task_of


def never_prunes(cell: Cell, settings: Mapping[str, Any]) -> bool:
    """Whether a compressed cell is certain never to score or decode a token with anything dropped."""
    if cell.prune_after is None:
        return False
    last = task_of(cell).last_check(cell, settings)
    if last is None:
        return False
    first = cell.budget.next_event(0)
    return first is None or first > last


def planned_budget(cell: Cell) -> PlannedBudget | None:
    """None where only running a cell's texts can tell."""
    return task_of(cell).planned_budget(cell)
