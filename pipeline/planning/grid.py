"""Spec -> cells: the product of the axes; duplicates and impossible combinations leave with a reason; one
dense twin per group.

A cell belongs to one task: its id covers that task's settings
only, so a changed generation block never invalidates perplexity.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.cells.cell import DENSE, PRUNED_BY, Cell, settings_of
from pipeline.cells.resolved import OwnText, Target
from pipeline.planning.planning_progress import SILENT, PlanningProgress
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.sweepfile.sweep_keys import AXES, FIELDS, CellFilter, SweepSpec, cell_value
from pipeline.tasks import TASKS, tasks_asked
from pipeline.tasks.task import Task
from workers.policies.eviction import turns_keys
from workers.policies.skip_rule import skipped_count

MAX_COMBINATIONS = 5_000_000
"""Of all axes, those that are dropped with a reason included: a minute and 3 GB of planning."""


@dataclass
class Grid:
    """Cells in a fixed order, dense twins first in their group, and what left with which reason."""

    cells: list[Cell] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def make_grid(
    spec: SweepSpec, targets: list[Target], texts: Sequence[OwnText] = (), said: PlanningProgress = SILENT
) -> Grid:
    """All cells of a sweep over resolved targets, and over the ``texts`` of tasks that bring their own.

    ``targets`` without a dataset are for those texts. Raises SweepError where the axes make too many cells.
    """
    grid = Grid()
    _check_size(spec, targets, texts)
    cells: list[Cell] = []
    said.now("cells", lambda: len(grid.cells) + len(cells))
    excluded = Exclusions(spec.exclude)
    for target, task, settings in _asked(spec, targets, texts):
        special = "parse" if task.brings_texts else spec.special_tokens_in_text
        template = Cell(
            task=task.name,
            model=target.model,
            model_revision=target.model_revision,
            dataset=target.dataset,
            dataset_fingerprint=target.dataset_fingerprint,
            device=target.device,
            dtype=target.dtype,
            **DENSE,
            seed=spec.seed,
            bos=target.bos,
            special_tokens_in_text=special,
            settings=json.dumps(settings, sort_keys=True),
        )
        cells, seen = [template], set[str]()
        for cell in _product(_axes(spec, task), template):
            reason = _reason_to_drop(cell, task, target.layers, excluded)
            if reason is None and cell.cell_id in seen:
                reason = "listed twice"
            if reason is None:
                seen.add(cell.cell_id)
                cells.append(cell)
            else:
                grid.dropped[reason] += 1
        grid.cells += _with_partners(cells) if task.timed else cells
    return grid


def _axes(spec: SweepSpec, task: Task) -> dict[str, list[Any]]:
    """The values of each axis that make cells of a task: the
    sweep's, less those that the task's own filter leaves out."""
    block = task.block_of(spec)
    chosen = block.named() if block else {}
    axes = {axis: [cell_value(axis, value) for value in getattr(spec, axis)] for axis in FIELDS}
    return {axis: _among(values, chosen[axis]) if axis in chosen else values for axis, values in axes.items()}


def _among(values: list[Any], chosen: Collection[Any]) -> list[Any]:
    wanted = frozenset(chosen)
    return [value for value in values if value in wanted]


def _check_size(spec: SweepSpec, targets: list[Target], texts: Sequence[OwnText]) -> None:
    """Raises SweepError for a grid that would fill memory before anybody sees that it is one."""
    sizes = {task.name: math.prod(map(len, _axes(spec, task).values())) for task in tasks_asked(spec)}
    combinations = 0
    for _, task, _ in _asked(spec, targets, texts):
        combinations += 1 + sizes[task.name]
        if combinations > MAX_COMBINATIONS:
            longest = sorted(FIELDS, key=lambda axis: -len(getattr(spec, axis)))[:3]
            named = ", ".join(f"{len(getattr(spec, axis)):,} {axis}" for axis in longest)
            alone = f"{sizes[task.name]:,} in {task.name} alone: {named}, ..."
            told = f"the sweep has more than {MAX_COMBINATIONS:,} combinations ({alone})"
            raise SweepError([f"{told}; leave values out, or make several sweeps of it"])


def _asked(
    spec: SweepSpec, targets: list[Target], texts: Sequence[OwnText]
) -> Iterator[tuple[Target, Task, dict[str, Any]]]:
    """What is measured on what: every task on every target, those that bring texts on these."""
    of_datasets = [
        (task, own) for task in tasks_asked(spec) if not task.brings_texts for own in task.settings(spec)
    ]
    of_texts = [(text, own) for text in texts for own in TASKS[text.task].settings(spec)]

    for target in targets:
        if target.dataset:
            yield from ((target, task, own) for task, own in of_datasets)
        else:
            for text, own in of_texts:
                yield (
                    replace(target, dataset=text.name, dataset_fingerprint=text.fingerprint),
                    TASKS[text.task],
                    own,
                )


def _with_partners(cells: list[Cell]) -> list[Cell]:
    """A group of timed cells with the digest of what they take turns with: partners change a timing, so they
    are in its id."""
    digest = hashlib.sha256(" ".join(cell.cell_id for cell in cells).encode()).hexdigest()[:16]
    settings = json.dumps({**settings_of(cells[0]), "compared": digest}, sort_keys=True)
    timed = replace(cells[0], settings=settings).pruned()
    for at, cell in enumerate(cells):  # one after the other, or a large grid would be held twice
        cells[at] = timed(cell.pruning)
    return cells


def _product(axes: Mapping[str, list[Any]], template: Cell) -> Iterator[Cell]:
    """A cell for each combination.

    The ratios turn fastest, so that the cells of a curve follow each other.
    """
    assert PRUNED_BY[:2] == ("policy", "keep_ratio")
    pruned = template.pruned()
    others = [axes[AXES[name]] for name in PRUNED_BY[2:]]
    for policy in axes[AXES["policy"]]:
        for rest in itertools.product(*others):
            for ratio in axes[AXES["keep_ratio"]]:
                yield pruned((policy, ratio, *rest))


class Exclusions:
    """Which cells the blocks of ``exclude`` leave out: a look at each axis, however many blocks there are."""

    def __init__(self, blocks: Sequence[CellFilter]) -> None:
        self._axes: list[tuple[str, dict[Any, int], int]] = []
        """Field of a cell; for each value that is named, the blocks that it suits, a bit for each; those that
        suit all others."""
        named = [block.named() for block in blocks]
        for axis, name in FIELDS.items():
            others = sum(1 << i for i, each in enumerate(named) if axis not in each)
            by_value: dict[Any, int] = {}
            for i, each in enumerate(named):
                for value in each.get(axis, ()):
                    by_value[value] = by_value.get(value, others) | 1 << i
            if by_value:
                self._axes.append((name, by_value, others))
        self._all = (1 << len(named)) - 1

    def __contains__(self, cell: Cell) -> bool:
        """Whether any block matches the cell on every axis that it names."""
        left = self._all
        for name, by_value, others in self._axes:
            left &= by_value.get(getattr(cell, name), others)
            if not left:
                return False
        return left != 0


def _reason_to_drop(cell: Cell, task: Task, layers: int, excluded: Exclusions) -> str | None:
    """Why a combination is no cell of its own; None where it is one."""
    if cell in excluded:
        return "excluded by the sweep file"
    if cell.policy == "dense" or cell.keep_ratio == 1.0:
        return "keep_ratio 1.0 or policy dense: is the dense cell"
    if skipped_count(cell.skip_layers) == layers:
        return "all layers skipped: is the dense cell"
    if (why := task.why_no_cell(cell)) is not None:
        return why

    if turns_keys(cell.policy) and cell.position_mode == "cache_length":
        return (
            f"{cell.policy} gives its keys positions of their own, which position_mode cache_length "
            "contradicts"
        )
    if (protected := cell.protect_sink + cell.protect_recent) and protected > _first_kept(cell, task):
        return "protect_sink + protect_recent exceed the entries kept at the first prune"
    return None


def _first_kept(cell: Cell, task: Task) -> float:
    """Entries that the first prune keeps; infinity where there is none."""
    kept = cell.budget.first_kept(task.prompt_tokens(settings_of(cell)))
    return math.inf if kept is None else kept
