"""Cells of one group -> work units of about half a minute each, whatever the model's size.

How a group is cut follows from the plan and from nominal rates of a kind of device, never from how fast a machine is or what is
left to do: a cell computed in other company may differ in the last bits, and the same sweep must give the same bits everywhere.
A model's pass over a text is shared by the cells of a unit, so where that pass alone takes long a unit is longer: up to three
times as long as what its cells share. Timed comparisons and tasks of the harness are units of any length.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

from pipeline.cell import Cell, settings_of
from pipeline.estimates import least_bytes, worker_bytes
from pipeline.placement import Need
from pipeline.resolve import Resolved
from pipeline.seconds import (
    Passes,
    Rates,
    dense_seconds,
    generation_seconds,
    harness_seconds,
    prompt_seconds,
    retrieval_seconds,
)
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
NO_NEED = Need("cpu", False, 0, "")
"""Of a unit that is not whole yet."""


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
    passes: Passes | None = None
    """Of a perplexity unit: what it puts through a model. Units of the same cells on other windows share it."""
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
    rates = Rates.nominal(facts, dense)
    if dense.task == "retrieval":
        units = list(_retrieval(rates, cells, plan.documents_expected(dense), before=len(plan.units)))
    elif dense.task == "perplexity":
        units = list(_perplexity(rates, cells, plan.windows(dense), before=len(plan.units)))
    else:  # all cells of a timed comparison take turns in one unit
        batches = [tuple(cells)] if timed else [(cell,) for cell in cells]
        units = [PlannedUnit(dense.task, batch, (), 0.0, NO_NEED) for batch in batches]

    need = Need(dense.device, timed, _largest_bytes(facts, units), model, least)
    return [replace(unit, need=need, cost_seconds=unit_seconds(unit, rates)) for unit in units]


def _largest_bytes(facts: ModelFacts, units: list[PlannedUnit]) -> int:
    """Of the unit of a group that takes most: one worker then takes them all."""
    largest: dict[int, tuple[tuple[Cell, ...], int]] = {}
    for unit in units:
        _, texts = largest.get(id(unit.cells), (unit.cells, 1))  # by identity: comparing cells would take longer than all else
        largest[id(unit.cells)] = unit.cells, max(texts, len(unit.windows), _questions(unit))
    return max(worker_bytes(facts, cells, texts) for cells, texts in largest.values())


def _questions(unit: PlannedUnit) -> int:
    """Of a retrieval unit."""
    return 0 if unit.asked is None else (unit.asked.end - unit.asked.first) * len(settings_of(unit.cells[0])["depths"])


def unit_seconds(unit: PlannedUnit, rates: Rates) -> float:
    """What a unit takes at these rates."""
    if unit.passes is not None:
        return unit.passes.seconds(rates, len(unit.windows))
    if unit.asked is not None:
        return retrieval_seconds(unit.cells, rates, unit.asked.context_tokens, _questions(unit))
    if unit.task == "generation":
        return generation_seconds(unit.cells, rates)
    return sum(harness_seconds(cell, rates) for cell in unit.cells)


def _perplexity(rates: Rates, cells: list[Cell], windows: tuple[Window, ...], before: int) -> Iterator[PlannedUnit]:
    longest = max(UNIT_SECONDS, SHARED_PARTS * dense_seconds(cells[0], rates))

    parts = [part for batch in sharing_passes(cells) for part in _with_passes(batch, rates, longest)]
    ranges = [_evenly(len(windows), _most(MOST_WINDOWS, partial(passes.seconds, rates))) for _, passes in parts]
    _check_units(before + sum(map(len, ranges)), len(windows))

    for (batch, passes), stretches in zip(parts, ranges, strict=True):
        for stretch in stretches:
            part = windows[stretch.start : stretch.stop]
            yield PlannedUnit("perplexity", batch, part, 0.0, NO_NEED, passes=passes)


def _with_passes(cells: tuple[Cell, ...], rates: Rates, longest: float) -> list[tuple[tuple[Cell, ...], Passes]]:
    """Cells, neighbours together, in parts of which one window takes no longer than that, or single ones."""
    passes = Passes.of(cells)
    if len(cells) == 1 or passes.seconds(rates, 1) <= longest:
        return [(cells, passes)]
    middle = len(cells) // 2
    return [*_with_passes(cells[:middle], rates, longest), *_with_passes(cells[middle:], rates, longest)]


def _retrieval(rates: Rates, cells: list[Cell], documents: int, before: int) -> Iterator[PlannedUnit]:
    settings = settings_of(cells[0])
    for kind, length in itertools.product(settings["kinds"], settings["context_tokens"]):
        for batch, stretches in _about(rates, cells, length, documents):
            before += len(stretches)
            _check_units(before, documents, "documents to ask about")
            for stretch in stretches:
                asked = Documents(kind, length, stretch.start, stretch.stop)
                yield PlannedUnit("retrieval", batch, (), 0.0, NO_NEED, asked)


def _about(
    rates: Rates, cells: list[Cell], length: int, documents: int
) -> Iterator[tuple[tuple[Cell, ...], list[range]]]:  # fmt: skip
    """Batches of cells, and the stretches of documents of one length about which a unit asks them."""
    depths = len(settings_of(cells[0])["depths"])
    longest = max(UNIT_SECONDS, SHARED_PARTS * prompt_seconds(rates, length, depths))

    def seconds(many: int, about: int) -> float:
        return retrieval_seconds(cells[:many], rates, length, depths * about)

    size = _most(min(len(cells), MOST_ASKED_CELLS), lambda many: seconds(many, 1), longest)
    for batch in _parts(cells, size):
        yield batch, _evenly(documents, _most(documents, partial(seconds, len(batch))))


def _most(limit: int, seconds: Callable[[int], float], longest: float = UNIT_SECONDS) -> int:
    """The largest count, up to a limit, that takes no longer than a unit may; 1 at least."""
    count = 1
    while count < limit and seconds(count + 1) <= longest:
        count += 1
    return count


def _evenly(count: int, most: int) -> list[range]:
    """0 ... count in parts of ``most`` at most, which differ by one at most."""
    parts = math.ceil(count / most)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def _check_units(count: int, texts: int, kind: str = "windows of a text") -> None:
    if count > MAX_UNITS:
        fewer = "perplexity.windows" if kind == "windows of a text" else "retrieval.questions"
        raise SweepError([
            f"the sweep makes {count:,} units of work ({texts:,} {kind} among them), and {MAX_UNITS:,} is the most; "
            f"lower {fewer}, leave values of axes out, or make several sweeps of it"
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
