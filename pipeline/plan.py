"""Cells -> work units: what shares a loaded model and a prefix goes together, most expensive first.

A unit's composition follows from the whole plan, never from what is left to do: a cell computed in other company may differ in
the last bits, so an interrupted and resumed sweep runs the very units that an undisturbed one does.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.cell import Cell, settings_of
from pipeline.cell_reach import never_prunes, prunes_while_decoding, tokens_read
from pipeline.cutting import PlannedUnit, cut
from pipeline.grid import Grid, make_grid
from pipeline.planning_progress import SILENT, PlanningProgress
from pipeline.resolve import Resolved, resolve, with_own_policies
from pipeline.sweep_keys import BLOCK_OF, SweepSpec, cell_value
from workers.windows import Window

SCOUTED_FROM = 5
"""Units of a kind, from which on one of them goes ahead."""
LISTED = 5
"""Values of an axis that a note says."""
PHASES = ("perplexity", "retrieval", "tasks", "generation")
"""The order of tasks: timings last, when a machine can be left to them alone."""


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
        settings = settings_of(cell)
        if cell.task == "perplexity":
            return len(self.windows(cell))
        if cell.task == "generation":
            return settings["repeats"]
        if cell.task == "retrieval":
            return len(settings["kinds"]) * len(settings["context_tokens"]) * self.questions_expected(cell)
        return 1  # a task's rows are stored together; how many metrics and documents it has, only running it tells

    def questions_expected(self, cell: Cell) -> int:
        """How many questions of each kind and length a retrieval cell has."""
        return self.documents_expected(cell) * len(settings_of(cell)["depths"])

    def documents_expected(self, cell: Cell) -> int:
        """How many documents of each kind and length a retrieval cell is asked about, each at every depth."""
        settings = settings_of(cell)
        return settings["questions"] * len(settings["digits"]) * len(settings["distractors"])

    def windows(self, cell: Cell) -> tuple[Window, ...]:
        """The windows of a perplexity cell."""
        settings = settings_of(cell)
        tokens = self.resolved.tokens[cell.model, cell.dataset]
        return tokens.windows(settings["window"], settings["stride"], settings["windows"], bos=cell.bos is not None)


def make_plan(spec: SweepSpec, auto_device: str | None = None, said: PlanningProgress = SILENT) -> Plan:
    """Resolve, expand, cut into units; ``said`` is told what is being done. Raises SweepError for what cannot work."""
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
    plan.units.sort(key=lambda unit: (PHASES.index(unit.task), unit.cells[0].model, unit.cells[0].dtype, -unit.cost_seconds))
    plan.units = _scouts_first(plan.units)


def _scouts_first(units: list[PlannedUnit]) -> list[PlannedUnit]:
    """The cheapest unit of each kind of which there are many goes first, and before them the cheapest timed one of several.

    Timed units are few and long, and estimates say least of them. While nothing else runs yet, a machine can be left to one.
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
            f"{len(plan.never_prune)} cells can never prune: prune_after is not reached; their figures are the dense ones"
        )
    notes += _without_cells(plan.spec)
    silent = [cell for cell in plan.grid.cells if not prunes_while_decoding(cell)]
    if silent:
        notes.append(_silent_note(silent))
    if plan.spec.generation and "report_2025" in plan.spec.generation.protocol:
        notes.append("generation.protocol report_2025 times wrongly on purpose: no speed is concluded from it")
    rounded = [dtype for dtype in plan.spec.dtypes if dtype != "float32"]
    if rounded:
        notes.append(
            f"{', '.join(rounded)}: only float32 is exact; figures move by rounding with what shares a pass, and the run says by "
            "how much on its own text"
        )
    contexts = {name: facts.context or math.inf for name, facts in plan.resolved.models.items()}
    beyond = Counter(cell.model for cell in plan.grid.cells if tokens_read(cell) > contexts[cell.model])
    for name, facts in plan.resolved.models.items():
        if facts.trust_remote_code:
            notes.append(f"trust_remote_code: Python files that come with {name} run with your rights")
        if facts.allow_pickle:
            notes.append(f"allow_pickle: weights of {name} may be read from files that can run code")
        notes += _bos_notes(plan, name)
        if beyond[name]:
            notes.append(
                f"{beyond[name]} cells read more than the {facts.context} tokens that {name} was trained on; they are marked"
            )
    for dense in (cell for cell in plan.grid.cells if cell.policy == "dense" and cell.task == "perplexity"):
        count = len(plan.windows(dense))
        asked = settings_of(dense)["windows"]
        if count < asked:
            notes.append(f"{dense.dataset} holds {count} windows under the tokenizer of {dense.model}, {asked} were asked for")
        if count < 2:
            notes.append(f"{dense.dataset}: no interval can be given from {count} window")
    for corpus in plan.resolved.corpora.values():
        notes += corpus.notes()
    for (model, dataset), tokens in plan.resolved.tokens.items():
        notes += tokens.notes(dataset, model)
        if tokens.special_spelled:
            read = {"literal": "letters", "parse": "the tokens of that name"}[plan.spec.special_tokens_in_text]
            notes.append(
                f"{dataset} spells {_counted(tokens.special_spelled, 'special token')} of {model}; read as {read} "
                f"(special_tokens_in_text: {plan.spec.special_tokens_in_text})"
            )
    return list(dict.fromkeys(notes))


def _without_cells(spec: SweepSpec) -> list[str]:
    """Values of an axis that a task's block names and the sweep does not have: they make no cells."""
    notes = []
    for block in (block for block in BLOCK_OF.values() if getattr(spec, block)):
        for axis, chosen in getattr(spec, block).named().items():
            values = [cell_value(axis, value) for value in getattr(spec, axis)]
            lacking = [value for value in chosen if value not in values and value != "dense"]
            if not chosen:
                notes.append(f"{block} has dense cells alone: its {axis} are an empty list; leave it out for all of the sweep's")
            elif lacking and len(lacking) < len(chosen):
                notes.append(f"{block}.{axis} names {_listed(lacking)}, which the sweep's own {axis} lack: no cell has them")
            elif lacking:
                notes.append(
                    f"{block} has dense cells alone: its {axis} ({_listed(chosen)}) restrict the sweep's "
                    f"({_listed(values)}), and none is in both; list it in both"
                )
    return notes


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(str(list(value) if isinstance(value, tuple) else value) for value in values[:LISTED])
    return f"{shown}, ..." if len(values) > LISTED else shown


def _silent_note(cells: Sequence[Cell]) -> str:
    """Of timed cells that prune their prompt and nothing after it."""
    first, settings = cells[0], settings_of(cells[0])
    return (
        f"{len(cells)} generation cells never prune while decoding: their time per token says what a smaller cache saves, and "
        f"nothing of what pruning costs (keep_ratio {first.keep_ratio:g}, prune_after {first.prune_after}, prompt of "
        f"{settings['prompt_tokens']}, {settings['new_tokens']} new tokens); ask for more new tokens, a higher keep_ratio or a "
        "lower prune_after"
    )


def _bos_notes(plan: Plan, model: str) -> list[str]:
    bos, how = plan.resolved.bos[model], plan.spec.bos
    if bos is not None:
        return [f"texts of {model} begin with BOS, token {bos} (bos: {how})"]
    if how == "never" and plan.resolved.own_bos[model]:
        return [f"texts of {model} begin without the BOS that its own tokenizer puts first (bos: never)"]
    return []


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
