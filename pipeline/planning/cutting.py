"""Cells of one group -> work units of about half a minute each, whatever the model's size.

How a group is cut follows from the plan and from nominal rates of a kind of device, never from how fast a
machine is or what is left to do: a cell computed in other company may differ in the last bits, and the same
sweep must give the same bits everywhere. A model's pass over a text is shared by the cells of a unit, so
where that pass alone takes long a unit is longer: up to three times as long as what its cells share. Timed
comparisons and tasks of the harness are units of any length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from pipeline.cells.cell import Cell
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import Resolved
from pipeline.cluster.placement import Need
from pipeline.planning.estimates import least_bytes, worker_bytes
from pipeline.tasks import TASKS, task_of
from pipeline.tasks.task import Task
from workers.models.model_files import ModelFacts


class _Plan(Protocol):
    """What is asked of a plan that is being made."""

    resolved: Resolved
    units: list[PlannedUnit]


def cut(plan: _Plan, cells: list[Cell]) -> list[PlannedUnit]:
    """One group of cells (same target, task and settings), the dense one first, as units. Raises SweepError
    for too many."""
    dense, task = cells[0], task_of(cells[0])
    facts = plan.resolved.models[dense.model]
    rates = Rates.nominal(facts, dense)
    units = list(task.units(cells, plan.resolved, rates, before=len(plan.units)))

    model, least = f"{facts.revision} {dense.dtype}", least_bytes(facts, dense)
    need = Need(dense.device, task.timed, _largest_bytes(facts, task, units), model, least)
    return [replace(unit, need=need, cost_seconds=task.seconds(unit, rates)) for unit in units]


def _largest_bytes(facts: ModelFacts, task: Task, units: list[PlannedUnit]) -> int:
    """Of the unit of a group that takes most: one worker then takes them all."""
    largest: dict[int, tuple[tuple[Cell, ...], int]] = {}
    for unit in units:
        # By identity: comparing cells would take longer than all else.
        _, texts = largest.get(id(unit.cells), (unit.cells, 1))
        largest[id(unit.cells)] = unit.cells, max(texts, task.texts_at_once(unit))
    return max(worker_bytes(facts, cells, texts) for cells, texts in largest.values())


def unit_seconds(unit: PlannedUnit, rates: Rates) -> float:
    """What a unit takes at these rates."""
    return TASKS[unit.task].seconds(unit, rates)
