"""Cells -> work units: what shares a loaded model and a prefix goes together, most expensive first.

A unit's composition follows from the whole plan, never from what is left to do: a cell computed in other
company may differ in the last bits, so an interrupted and resumed sweep runs the very units that an
undisturbed one does.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.cells.cell import Cell, settings_of
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.resolved import Resolved
from pipeline.planning.cell_reach import never_prunes
from pipeline.planning.cutting import cut
from pipeline.planning.grid import Grid, make_grid
from pipeline.planning.planning_progress import SILENT, PlanningProgress
from pipeline.planning.resolve import resolve, with_own_policies
from pipeline.sweepfile.sweep_keys import SweepSpec, cell_value
from pipeline.tasks import phases, task_of, tasks_asked

SCOUTED_FROM = 5
"""Units of a kind, from which on one of them goes ahead."""
LISTED = 5
"""Values of an axis that a note says."""


@dataclass
class Plan:
    """A resolved sweep: its cells, its units, and what a user should know before starting."""

    spec: SweepSpec
    resolved: Resolved
    grid: Grid
    units: list[PlannedUnit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def never_prune(self) -> list[Cell]:
        """Cells that cannot drop anything on what they are given."""
        return [cell for cell in self.grid.cells if never_prunes(cell, settings_of(cell))]

    def rows_expected(self, cell: Cell) -> int:
        """How many rows make a cell complete; a timed one may have more rounds."""
        return task_of(cell).rows_expected(cell, self.resolved)


def make_plan(spec: SweepSpec, auto_device: str | None = None, said: PlanningProgress = SILENT) -> Plan:
    """Resolve, expand, cut into units; ``said`` is told what is being done.

    Raises SweepError for what cannot work.
    """
    said.now("policies")
    spec = with_own_policies(spec)
    resolved = resolve(spec, auto_device, said)
    plan = Plan(spec, resolved, make_grid(spec, resolved.targets, resolved.texts, said))
    _into_units(plan, said)
    said.now("notes")
    plan.notes += _notes(plan)
    return plan


def _into_units(plan: Plan, said: PlanningProgress = SILENT) -> None:
    """Cut the grid of a plan into units, in the order in which they run."""
    said.now("units", lambda: len(plan.units))
    for _, cells in itertools.groupby(plan.grid.cells, key=lambda cell: cell.group):
        plan.units += cut(plan, list(cells))
    order = {name: place for place, name in enumerate(phases())}
    plan.units.sort(
        key=lambda unit: (order[unit.task], unit.cells[0].model, unit.cells[0].dtype, -unit.cost_seconds)
    )
    plan.units = _scouts_first(plan.units)


def _scouts_first(units: list[PlannedUnit]) -> list[PlannedUnit]:
    """The cheapest unit of each kind of which there are many goes first, and before them the cheapest timed
    one of several.

    Timed units are few and long, and estimates say least of them. While nothing else runs yet, a machine can
    be left to one.
    """
    timed = [unit for unit in units if unit.need.timed]
    last = {(unit.task, unit.need): unit for unit in units if not unit.need.timed}
    counts = Counter((unit.task, unit.need) for unit in units)
    chosen = {id(unit) for kind, unit in last.items() if counts[kind] >= SCOUTED_FROM and len(last) > 1}
    scouts = [unit for unit in units if id(unit) in chosen]
    if 1 < len(timed) < len(units):
        scouts.insert(0, min(timed, key=lambda unit: unit.cost_seconds))
        chosen.add(id(scouts[0]))
    return [replace(unit, scout=True) for unit in scouts] + [unit for unit in units if id(unit) not in chosen]


def _notes(plan: Plan) -> list[str]:
    notes = list(plan.resolved.notes)
    if plan.never_prune:
        notes.append(
            f"{len(plan.never_prune)} cells can never prune: prune_after is not reached; "
            "their figures are the dense ones"
        )
    notes += _without_cells(plan.spec)

    asked = [
        (task, [cell for cell in plan.grid.cells if cell.task == task.name])
        for task in tasks_asked(plan.spec)
    ]
    for task, cells in asked:
        notes += task.notes(plan.spec, cells)

    rounded = [dtype for dtype in plan.spec.dtypes if dtype != "float32"]
    if rounded:
        notes.append(
            f"{', '.join(rounded)}: only float32 is exact; figures move by rounding with what shares a pass, "
            "and the run says by how much on its own text"
        )

    contexts = {name: facts.context or math.inf for name, facts in plan.resolved.models.items()}
    beyond = Counter(
        cell.model
        for cell in plan.grid.cells
        if task_of(cell).tokens_read(settings_of(cell)) > contexts[cell.model]
    )

    for name, facts in plan.resolved.models.items():
        if facts.trust_remote_code:
            notes.append(f"trust_remote_code: Python files that come with {name} run with your rights")
        if facts.allow_pickle:
            notes.append(f"allow_pickle: weights of {name} may be read from files that can run code")
        notes += _bos_notes(plan, name)
        if beyond[name]:
            notes.append(
                f"{beyond[name]} cells read more than the {facts.context} tokens that {name} was trained on; "
                "they are marked"
            )

    for task, cells in asked:
        notes += task.text_notes(plan.resolved, cells)
    for corpus in plan.resolved.corpora.values():
        notes += corpus.notes()
    for (model, dataset), tokens in plan.resolved.tokens.items():
        notes += tokens.notes(dataset, model)
        if tokens.special_spelled:
            ways = {"literal": "letters", "parse": "the tokens of that name"}
            read = ways[plan.spec.special_tokens_in_text]
            notes.append(
                f"{dataset} spells {_counted(tokens.special_spelled, 'special token')} of {model}; "
                f"read as {read} (special_tokens_in_text: {plan.spec.special_tokens_in_text})"
            )
    return list(dict.fromkeys(notes))


def _without_cells(spec: SweepSpec) -> list[str]:
    """Values of an axis that a task's block names and the sweep does not have: they make no cells."""
    notes = []
    for task in tasks_asked(spec):
        block = task.block_of(spec)
        for axis, chosen in (block.named() if block else {}).items():
            values = [cell_value(axis, value) for value in getattr(spec, axis)]
            lacking = [value for value in chosen if value not in values and value != "dense"]

            if not chosen:
                notes.append(
                    f"{task.block} has dense cells alone: its {axis} are an empty list; "
                    "leave it out for all of the sweep's"
                )
            elif lacking and len(lacking) < len(chosen):
                notes.append(
                    f"{task.block}.{axis} names {_listed(lacking)}, which the sweep's own {axis} lack: "
                    "no cell has them"
                )
            elif lacking:
                notes.append(
                    f"{task.block} has dense cells alone: its {axis} ({_listed(chosen)}) restrict "
                    f"the sweep's ({_listed(values)}), and none is in both; list it in both"
                )
    return notes


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(str(list(value) if isinstance(value, tuple) else value) for value in values[:LISTED])
    return f"{shown}, ..." if len(values) > LISTED else shown


def _bos_notes(plan: Plan, model: str) -> list[str]:
    bos, how = plan.resolved.bos[model], plan.spec.bos
    if bos is not None:
        return [f"texts of {model} begin with BOS, token {bos} (bos: {how})"]
    if how == "never" and plan.resolved.own_bos[model]:
        return [f"texts of {model} begin without the BOS that its own tokenizer puts first (bos: never)"]
    return []


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
