"""Cells -> work units: what shares a loaded model and a prefix goes together, most expensive first.

A unit's composition follows from the whole plan, never from what is left to do: a cell computed in other company may differ in
the last bits, so an interrupted and resumed sweep runs the very units that an undisturbed one does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from pipeline.grid import Cell, Grid, make_grid, never_prunes, tokens_read
from pipeline.resolve import Resolved, resolve, with_own_policies
from pipeline.sweep_keys import SweepSpec
from workers.budget import Schedule, event_schedule
from workers.model_files import ModelFacts
from workers.retrieval import Question, build_question
from workers.windows import Window, plan_windows

CELLS_PER_UNIT, WINDOWS_PER_UNIT = 24, 16
FLOPS_PER_SECOND = {"cpu": 4e10, "cuda": 2e13, "mps": 2e12}
SECONDS_PER_PASS_LAYER = {"cpu": 5e-4, "cuda": 3e-4, "mps": 5e-4}
"""Rough rates for estimates and for the order of units; no figure of a report rests on them."""


@dataclass(frozen=True)
class PlannedUnit:
    """Cells of one task that one actor call will do."""

    task: str
    cells: tuple[Cell, ...]
    windows: tuple[Window, ...]
    cost_seconds: float

    @property
    def unit_id(self) -> str:
        """From the cells and windows alone."""
        content = [*(cell.cell_id for cell in self.cells), *(str(w.index) for w in self.windows)]
        return hashlib.sha256(" ".join(content).encode()).hexdigest()[:20]


@dataclass
class Plan:
    """A resolved sweep: its cells, its units, and what a user should know before starting."""

    spec: SweepSpec
    resolved: Resolved
    grid: Grid
    units: list[PlannedUnit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def never_prune(self) -> list[Cell]:
        """Cells that cannot drop anything on what they are given."""
        return [cell for cell in self.grid.cells if never_prunes(cell, json.loads(cell.settings))]

    def rows_expected(self, cell: Cell) -> int:
        """How many rows make a cell complete; a timed one may have more rounds."""
        settings = json.loads(cell.settings)
        if cell.task == "perplexity":
            return len(self.windows(cell))
        if cell.task == "generation":
            return settings["repeats"]
        return len(settings["kinds"]) * len(settings["context_tokens"]) * len(settings["depths"]) * settings["questions"]

    def windows(self, cell: Cell) -> list[Window]:
        """The windows of a perplexity cell."""
        settings = json.loads(cell.settings)
        tokens = len(self.resolved.tokens[cell.model, cell.dataset].ids)
        return plan_windows(tokens, settings["window"], settings["stride"], settings["windows"])


def make_plan(spec: SweepSpec, auto_device: str | None = None) -> Plan:
    """Resolve, expand, cut into units. Raises SweepError for what cannot work."""
    spec = with_own_policies(spec)
    resolved = resolve(spec, auto_device)
    plan = Plan(spec, resolved, make_grid(spec, resolved.targets))
    groups = itertools.groupby(plan.grid.cells, key=lambda cell: cell.dense)
    for dense, cells in groups:
        plan.units += _cut(plan, dense, list(cells))
    plan.units.sort(key=lambda unit: (unit.task != "perplexity", unit.cells[0].model, -unit.cost_seconds))
    plan.notes += _notes(plan)
    return plan


def _cut(plan: Plan, dense: Cell, cells: list[Cell]) -> list[PlannedUnit]:
    """One group of cells (same target, task and settings) as units."""
    facts = plan.resolved.models[dense.model]
    if dense.task == "generation":  # all cells of a comparison take turns in one unit
        return [PlannedUnit("generation", tuple(cells), (), sum(_cost(facts, cell) for cell in cells))]
    if dense.task == "retrieval":
        batches = [tuple(cells[i : i + 8]) for i in range(0, len(cells), 8)]
        return [PlannedUnit("retrieval", batch, (), sum(_cost(facts, cell) for cell in batch)) for batch in batches]
    windows = plan.windows(dense)
    units = []
    for batch in _batches(cells):
        for start in range(0, len(windows), WINDOWS_PER_UNIT):
            part = tuple(windows[start : start + WINDOWS_PER_UNIT])
            units.append(PlannedUnit("perplexity", batch, part, _perplexity_cost(facts, batch, len(part))))
    return units


def _batches(cells: list[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that prune at the same places together, at most CELLS_PER_UNIT to a unit."""

    def sharing(cell: Cell) -> tuple[int, tuple[int, ...]]:
        return (cell.prune_after or 0, cell.skip_layers)

    batches: list[list[Cell]] = [[]]
    for _, group in itertools.groupby(sorted(cells, key=sharing), key=sharing):
        members = list(group)
        if batches[-1] and len(batches[-1]) + len(members) > CELLS_PER_UNIT:
            batches.append([])
        for cell in members:
            if len(batches[-1]) == CELLS_PER_UNIT:
                batches.append([])
            batches[-1].append(cell)
    return [tuple(batch) for batch in batches if batch]


def schedule_of(cell: Cell, steps: int) -> Schedule:
    """The event schedule of a cell's pruning layers over one-token steps."""
    return event_schedule(cell.keep_ratio, cell.prune_after or 1, steps)


def _perplexity_cost(facts: ModelFacts, cells: Sequence[Cell], windows: int) -> float:
    """Estimated seconds of a unit: one dense pass, each cell's tokens behind its first event, passes shared by the cells."""
    steps = json.loads(cells[0].settings)["window"] - 1
    schedules = [schedule_of(cell, steps) for cell in cells]
    tokens = steps + sum(steps - (schedule.first_event or steps) for schedule in schedules)
    passes = 1 + max(len(schedule.events) for schedule in schedules)
    return windows * tokens * _seconds_per_token(facts, cells[0].device) + passes * _seconds_per_pass(facts, cells[0].device)


def _seconds_per_token(facts: ModelFacts, device: str) -> float:
    return 2 * max(facts.parameters, 1) / FLOPS_PER_SECOND[device]


def _seconds_per_pass(facts: ModelFacts, device: str) -> float:
    return SECONDS_PER_PASS_LAYER[device] * facts.layers


def _cost(facts: ModelFacts, cell: Cell) -> float:
    """Estimated seconds of a generation or retrieval cell on one core or one GPU."""
    settings, flops = json.loads(cell.settings), _seconds_per_token(facts, cell.device)
    per_pass = _seconds_per_pass(facts, cell.device)
    if cell.task == "generation":
        per_step = per_pass + settings["batch_size"] * flops
        one = settings["batch_size"] * settings["prompt_tokens"] * flops + settings["new_tokens"] * per_step
        return one * (settings["repeats"] + settings["warmup"])
    questions = len(settings["kinds"]) * len(settings["depths"]) * settings["questions"]
    return questions * sum(length * flops + 8 * per_pass for length in settings["context_tokens"])


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.never_prune:
        notes.append(
            f"{len(plan.never_prune)} cells can never prune: prune_after is not reached; their figures are the dense ones"
        )
    if plan.spec.generation and "report_2025" in plan.spec.generation.protocol:
        notes.append("generation.protocol report_2025 times wrongly on purpose: no speed is concluded from it")
    for name, facts in plan.resolved.models.items():
        beyond = [c for c in plan.grid.cells if c.model == name and facts.context and tokens_read(c) > facts.context]
        if beyond:
            notes.append(
                f"{len(beyond)} cells read more than the {facts.context} tokens that {name} was trained on; they are marked"
            )
    for dense in (cell for cell in plan.grid.cells if cell.policy == "dense" and cell.task == "perplexity"):
        count = len(plan.windows(dense))
        asked = json.loads(dense.settings)["windows"]
        if count < asked:
            notes.append(f"{dense.dataset} holds {count} windows under the tokenizer of {dense.model}, {asked} were asked for")
        if count < 2:
            notes.append(f"{dense.dataset}: no interval can be given from {count} window")
    return list(dict.fromkeys(notes))


def pending_units(plan: Plan, is_missing: Callable[[Cell, tuple[Window, ...]], bool]) -> list[PlannedUnit]:
    """The units, whole, in which any cell is missing rows."""
    return [unit for unit in plan.units if any(is_missing(cell, unit.windows) for cell in unit.cells)]


def questions_of(plan: Plan, cell: Cell) -> list[Question]:
    """The retrieval questions of a cell, in its model's tokens."""
    settings: dict[str, Any] = json.loads(cell.settings)
    tokenizer = Tokenizer.from_file(plan.resolved.models[cell.model].tokenizer_file)
    ids = plan.resolved.tokens[cell.model, cell.dataset].ids.tolist()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return [
        build_question(encode, kind, length, depth, index, cell.seed, ids)
        for kind, length, depth, index in itertools.product(
            settings["kinds"], settings["context_tokens"], settings["depths"], range(settings["questions"])
        )
    ]
