"""Cells of one group -> work units of about half a minute each, whatever the model's size.

How a group is cut follows from the plan and from nominal rates of a kind of device, never from how fast a machine is or what is
left to do: a cell computed in other company may differ in the last bits, and the same sweep must give the same bits everywhere.
A model's pass over a text is shared by the cells of a unit, so where that pass alone takes long a unit is longer: what cells do
themselves takes at least twice as long as what they share.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from pipeline.cell import Cell, settings_of
from pipeline.estimates import (
    Passes,
    cell_seconds,
    dense_seconds,
    least_bytes,
    prompt_seconds,
    retrieval_seconds,
    worker_bytes,
)
from pipeline.placement import Need
from pipeline.resolve import Resolved
from pipeline.spec import SweepError
from workers.model_files import ModelFacts
from workers.windows import Window

UNIT_SECONDS = 30.0
"""What a unit takes on a nominal device."""
SHARED_PARTS = 3
"""A unit may take so many times what its cells share."""
MOST_CELLS, MOST_WINDOWS, MOST_ASKED_CELLS = 24, 16, 32
"""Of a perplexity unit, and of a retrieval one."""
MAX_UNITS = 2_000_000


@dataclass(frozen=True)
class Documents:
    """The documents [first, end) of a kind and length that a retrieval unit asks about, each at every depth."""

    kind: str
    context_tokens: int
    first: int
    end: int

    def __str__(self) -> str:
        return f"{self.kind} {self.context_tokens} {self.first} {self.end}"


@dataclass(frozen=True)
class PlannedUnit:
    """Cells of one task that one actor call will do."""

    task: str
    cells: tuple[Cell, ...]
    windows: tuple[Window, ...]
    cost_seconds: float
    need: Need
    asked: Documents | None = None
    """Of a retrieval unit."""
    scout: bool = False
    """Runs before the others: shows how long its kind takes, and at once whether its model works at all."""

    @property
    def unit_id(self) -> str:
        """From the cells and windows, or questions, alone."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        asked = [] if self.asked is None else [str(self.asked)]
        content = [*(cell.cell_id for cell in self.cells), *(str(w.index) for w in self.windows), *asked]
        return hashlib.sha256(" ".join(content).encode()).hexdigest()[:20]


class _Plan(Protocol):
    """What is asked of a plan that is being made."""

    resolved: Resolved
    units: list[PlannedUnit]

    def windows(self, cell: Cell) -> tuple[Window, ...]: ...

    def documents_expected(self, cell: Cell) -> int: ...


def cut(plan: _Plan, cells: list[Cell]) -> list[PlannedUnit]:
    """One group of cells (same target, task and settings), the dense one first, as units. Raises SweepError for too many."""
    dense = cells[0]
    facts = plan.resolved.models[dense.model]
    timed = dense.task == "generation"
    model, least = f"{facts.revision} {dense.dtype}", least_bytes(facts, dense)
    need = Need(dense.device, timed, worker_bytes(facts, dense), model, least)
    if dense.task == "retrieval":
        return list(_retrieval(facts, cells, need, plan.documents_expected(dense)))
    if dense.task == "perplexity":
        return list(_perplexity(facts, cells, need, plan.windows(dense), len(plan.units)))
    batches = [tuple(cells)] if timed else [(cell,) for cell in cells]  # all cells of a timed comparison take turns in one unit
    return [PlannedUnit(dense.task, batch, (), sum(cell_seconds(facts, cell) for cell in batch), need) for batch in batches]


def _perplexity(
    facts: ModelFacts, cells: list[Cell], need: Need, windows: tuple[Window, ...], before: int
) -> Iterator[PlannedUnit]:
    shared = dense_seconds(facts, cells[0])

    def seconds(batch: Sequence[Cell], count: int) -> float:
        return Passes.of(batch).seconds(facts, cells[0].device, count)

    batches = [
        part
        for batch in sharing_passes(cells)
        for part in _halved(batch, lambda part: seconds(part, 1) <= max(UNIT_SECONDS, SHARED_PARTS * shared))
    ]
    parts = [_evenly(len(windows), _most(MOST_WINDOWS, lambda count, b=batch: seconds(b, count))) for batch in batches]
    _check_units(before + sum(map(len, parts)), len(windows))

    for batch, ranges in zip(batches, parts, strict=True):
        passes = Passes.of(batch)
        for part in ranges:
            cost = passes.seconds(facts, cells[0].device, len(part))
            yield PlannedUnit("perplexity", batch, windows[part.start : part.stop], cost, need)


def _retrieval(facts: ModelFacts, cells: list[Cell], need: Need, documents: int) -> Iterator[PlannedUnit]:
    settings = settings_of(cells[0])
    depths = len(settings["depths"])
    for kind, length in itertools.product(settings["kinds"], settings["context_tokens"]):
        shared = prompt_seconds(facts, cells[0], length, depths)

        def seconds(batch: Sequence[Cell], count: int, length: int = length) -> float:
            return retrieval_seconds(facts, batch, length, depths * count)

        longest = max(UNIT_SECONDS, SHARED_PARTS * shared)
        for whole in _parts(cells, MOST_ASKED_CELLS):
            for batch in _halved(whole, lambda part, longest=longest, seconds=seconds: seconds(part, 1) <= longest):
                most = _most(documents, lambda count, b=batch, seconds=seconds: seconds(b, count))
                for part in _evenly(documents, most):
                    asked = Documents(kind, length, part.start, part.stop)
                    yield PlannedUnit("retrieval", batch, (), seconds(batch, len(part)), need, asked)


def _most(limit: int, seconds: Callable[[int], float]) -> int:
    """The largest count, up to a limit, that takes no longer than a unit may; 1 at least."""
    count = 1
    while count < limit and seconds(count + 1) <= UNIT_SECONDS:
        count += 1
    return count


def _evenly(count: int, most: int) -> list[range]:
    """0 ... count in parts of ``most`` at most, which differ by one at most."""
    parts = math.ceil(count / most)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def _halved(cells: tuple[Cell, ...], fits: Callable[[tuple[Cell, ...]], bool]) -> list[tuple[Cell, ...]]:
    """Cells, neighbours together, in parts that fit, or are single."""
    if len(cells) == 1 or fits(cells):
        return [cells]
    middle = len(cells) // 2
    return [*_halved(cells[:middle], fits), *_halved(cells[middle:], fits)]


def _check_units(count: int, windows: int) -> None:
    if count > MAX_UNITS:
        raise SweepError([
            f"the sweep makes {count:,} units of work ({windows:,} windows of a text among them), and {MAX_UNITS:,} is the most; "
            "lower perplexity.windows, leave values of axes out, or make several sweeps of it"
        ])  # fmt: skip


def _parts(cells: Sequence[Cell], size: int) -> list[tuple[Cell, ...]]:
    return [tuple(cells[start : start + size]) for start in range(0, len(cells), size)]


def sharing_passes(cells: list[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that prune at the same places together, at most MOST_CELLS to a batch."""

    def sharing(cell: Cell) -> tuple[int, str, tuple[int, ...]]:
        skip = cell.skip_layers
        return (cell.prune_after or 0, skip, ()) if isinstance(skip, str) else (cell.prune_after or 0, "", skip)

    batches: list[list[Cell]] = [[]]
    for _, group in itertools.groupby(sorted(cells, key=sharing), key=sharing):
        members = list(group)
        if batches[-1] and len(batches[-1]) + len(members) > MOST_CELLS:
            batches.append([])
        for cell in members:
            if len(batches[-1]) == MOST_CELLS:
                batches.append([])
            batches[-1].append(cell)
    return [tuple(batch) for batch in batches if batch]
