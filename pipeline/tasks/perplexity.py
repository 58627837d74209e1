"""Sliding perplexity: windows of a dataset, one token per
step; cells that prune at the same places share passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl

from pipeline.cells.beginning import beginning
from pipeline.cells.cell import Cell, settings_of
from pipeline.cells.model_size import shape_of
from pipeline.cells.planned_budget import PlannedBudget
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import Resolved
from pipeline.cells.unit_sizes import check_units, evenly, longest_seconds, most
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_keys import CellFilter, SweepSpec
from pipeline.tasks.stored_rows import StoredRows
from pipeline.tasks.task import Task, TextNeed
from workers.corpora import Tokens
from workers.footprint.perplexity import perplexity_bytes
from workers.messages.work import PerplexityWork
from workers.models.model_files import ModelFacts
from workers.policies.budget import Schedule
from workers.texts.check_text import TEXTS
from workers.texts.windows import Window

MOST_CELLS, MOST_WINDOWS = 24, 16
"""Of a unit."""
LARGEST_WINDOW = 2**24
"""The largest number of a window that is believed: a row with a larger one, or none, is nobody's, and would
fill the memory."""


def schedule_of(cell: Cell, steps: int) -> Schedule:
    """The event schedule of a cell's pruning layers over one-token steps."""
    return cell.budget.event_schedule(steps)


@dataclass(frozen=True)
class Passes:
    """What cells of a perplexity unit put through a model: tokens
    of each window, and passes of each batch of windows."""

    tokens: int
    passes: int

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Passes:
        """One dense pass, each cell's tokens behind its first event, passes shared by the cells."""
        steps = settings_of(cells[0])["window"] - 1
        schedules = [schedule_of(cell, steps) for cell in cells]
        tokens = steps + sum(steps - (schedule.first_event or steps) for schedule in schedules)
        return cls(tokens, 1 + max(schedule.count for schedule in schedules))

    def seconds(self, rates: Rates, windows: int) -> float:
        """Of a unit of so many windows."""
        return windows * self.tokens * rates.token + self.passes * rates.single_pass


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a text that a unit's cells are scored on."""

    windows: tuple[Window, ...]
    passes: Passes
    """What they put through a model. Units of the same cells on other windows share it."""

    def keys(self) -> Iterable[str]:
        """Their numbers."""
        return (str(window.index) for window in self.windows)

    @property
    def words(self) -> str:
        """Nothing: which they are says little."""
        return ""


class Perplexity(Task):
    """NLL of the tokens of windows, each scored from what the cache holds then."""

    name = "perplexity"
    block = "perplexity"

    def settings(self, spec: SweepSpec) -> Iterator[dict[str, Any]]:
        if spec.perplexity:
            yield spec.perplexity.model_dump(exclude=set(CellFilter.model_fields))

    def sweep_faults(self, spec: SweepSpec) -> Iterator[tuple[tuple[str, ...], str]]:
        asked = spec.perplexity
        if asked and asked.stride > asked.window:
            yield (
                ("perplexity", "stride"),
                f"must be <= perplexity.window {asked.window} (got {asked.stride})",
            )

    def lengths(self, spec: SweepSpec) -> list[tuple[str, int]]:
        return [("perplexity.window", spec.perplexity.window)] if spec.perplexity else []

    def text_needs(self, spec: SweepSpec, tokens: Tokens, bos: bool) -> list[TextNeed]:
        asked = spec.perplexity
        if asked is None:
            return []
        return [TextNeed("one perplexity window", asked.window - bos, asked.windows, all_apart=False)]

    def why_no_cell(self, cell: Cell) -> str | None:
        if cell.schedule == "prefill_once":
            return "prefill_once prunes after a prompt, and perplexity has none"
        return None

    def prompt_tokens(self, settings: Mapping[str, Any]) -> int:
        return 1

    def tokens_read(self, settings: Mapping[str, Any]) -> int:
        return settings["window"]

    def last_check(self, cell: Cell, settings: Mapping[str, Any]) -> int | None:
        return settings["window"] - 2  # what the last step leaves, no token sees

    def planned_budget(self, cell: Cell) -> PlannedBudget | None:
        settings = settings_of(cell)
        steps = settings["window"] - 1
        first_scored = max(1, settings["window"] - settings["stride"])

        schedule = schedule_of(cell, steps)
        dense_mean = (steps + first_scored) / 2
        return PlannedBudget(schedule.count, schedule.mean(first_scored) / dense_mean)

    def rows_expected(self, cell: Cell, resolved: Resolved) -> int:
        return len(windows_of(cell, resolved))

    def text_notes(self, resolved: Resolved, cells: Sequence[Cell]) -> list[str]:
        notes = []
        for dense in (cell for cell in cells if cell.policy == "dense"):
            count = len(windows_of(dense, resolved))
            asked = settings_of(dense)["windows"]
            if count < asked:
                holds = f"{dense.dataset} holds {count} windows under the tokenizer of {dense.model}"
                notes.append(f"{holds}, {asked} were asked for")
            if count < 2:
                notes.append(f"{dense.dataset}: no interval can be given from {count} window")
        return notes

    def units(
        self, cells: list[Cell], resolved: Resolved, rates: Rates, before: int
    ) -> Iterator[PlannedUnit]:
        windows = windows_of(cells[0], resolved)
        longest = longest_seconds(dense_seconds(cells[0], rates))

        batches: list[tuple[tuple[Cell, ...], Passes, list[range]]] = []
        for sharing in sharing_passes(cells):
            for batch, passes in _with_passes(sharing, rates, longest):
                at_once = most(MOST_WINDOWS, partial(passes.seconds, rates))
                batches.append((batch, passes, evenly(len(windows), at_once)))

        count = before + sum(len(stretches) for _, _, stretches in batches)
        check_units(count, f"{len(windows):,} windows of a text", "perplexity.windows")

        for batch, passes, stretches in batches:
            for stretch in stretches:
                yield PlannedUnit(self.name, batch, Windows(windows[stretch.start : stretch.stop], passes))

    def seconds(self, unit: PlannedUnit, rates: Rates) -> float:
        part = _part_of(unit)
        return part.passes.seconds(rates, len(part.windows))

    def texts_at_once(self, unit: PlannedUnit) -> int:
        return len(_part_of(unit).windows)

    def bytes_at_once(self, facts: ModelFacts, cells: Sequence[Cell], texts: int) -> tuple[int, int]:
        length = settings_of(cells[0])["window"]
        return length, perplexity_bytes(shape_of(facts, cells[0]), length, texts, cells)

    def work(self, unit: PlannedUnit, resolved: Resolved, spec: SweepSpec) -> PerplexityWork:
        first = unit.cells[0]
        tokens = resolved.tokens[first.model, first.dataset]

        def ids(windows: Sequence[Window]) -> np.ndarray:
            return np.stack([beginning(first, tokens.held(w, w.length), w.length) for w in windows])

        checked = ids(windows_of(first, resolved)[:TEXTS])
        windows = _part_of(unit).windows
        documents = tuple(tokens.document_of(w) for w in windows)
        return PerplexityWork(windows, ids(windows), documents, settings_of(first)["stride"], checked)

    def stored_rows(self, store: RunStore, cells: Sequence[Cell], resolved: Resolved) -> StoredRows:
        return _StoredWindows(store)


def _part_of(unit: PlannedUnit) -> Windows:
    assert isinstance(unit.part, Windows)
    return unit.part


def windows_of(cell: Cell, resolved: Resolved) -> tuple[Window, ...]:
    """The windows of a perplexity cell."""
    settings = settings_of(cell)
    tokens = resolved.tokens[cell.model, cell.dataset]
    return tokens.windows(
        settings["window"], settings["stride"], settings["windows"], bos=cell.bos is not None
    )


def dense_seconds(cell: Cell, rates: Rates) -> float:
    """Of the dense pass over one window."""
    return settings_of(cell)["window"] * rates.token


def _with_passes(
    cells: tuple[Cell, ...], rates: Rates, longest: float
) -> list[tuple[tuple[Cell, ...], Passes]]:
    """Cells, neighbours together, in parts of which one window takes no longer than that, or single ones."""
    passes = Passes.of(cells)
    if len(cells) == 1 or passes.seconds(rates, 1) <= longest:
        return [(cells, passes)]
    middle = len(cells) // 2
    return [*_with_passes(cells[:middle], rates, longest), *_with_passes(cells[middle:], rates, longest)]


def sharing_passes(cells: list[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that prune at the same places together, at most MOST_CELLS to a batch."""

    def sharing(cell: Cell) -> tuple[int, str, tuple[int, ...]]:
        skip = cell.skip_layers
        return (
            (cell.prune_after or 0, skip, ()) if isinstance(skip, str) else (cell.prune_after or 0, "", skip)
        )

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


class _StoredWindows:
    """The windows of each cell as bits, so that a million cells' worth of them fits in memory."""

    def __init__(self, store: RunStore) -> None:
        index = pl.col("window_index")
        stored = store.scan(Perplexity.name).filter(index.is_between(0, LARGEST_WINDOW))
        stored = stored.select("cell_id", "window_index").unique()

        self._windows: dict[str, int] = {}
        for cell_id, indices in stored.group_by("cell_id").agg("window_index").collect().iter_rows():
            self._windows[cell_id] = sum(1 << index for index in indices)

    def add(self, row: dict[str, Any]) -> None:
        cell_id = row["cell_id"]
        self._windows[cell_id] = self._windows.get(cell_id, 0) | 1 << row["window_index"]

    def has_any(self, cell_id: str) -> bool:
        return cell_id in self._windows

    def is_stored(self, row: dict[str, Any]) -> bool:
        return bool(self._windows.get(row["cell_id"], 0) >> row["window_index"] & 1)

    def is_missing(self, cell: Cell, unit: PlannedUnit) -> bool:
        return bool(_mask(_part_of(unit).windows) & ~self._windows.get(cell.cell_id, 0))


@lru_cache(maxsize=4096)
def _mask(windows: tuple[Window, ...]) -> int:
    """Windows as bits."""
    return sum(1 << window.index for window in windows)
