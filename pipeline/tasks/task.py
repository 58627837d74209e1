"""What planning, storing and resuming ask of a task: everything in which one task differs from another.

A task is one object without state. Where most tasks answer
alike, the answer stands here; the others say their own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from pipeline.cells.cell import Cell
from pipeline.cells.planned_budget import PlannedBudget
from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cells.resolved import OwnText, Resolved
from pipeline.store.run_store import RunStore
from pipeline.store.schema import ROW_KEYS, TASK_COLUMNS
from pipeline.sweepfile.sweep_keys import CellFilter, SweepSpec
from pipeline.tasks.stored_rows import CountedRows, StoredRows
from workers.corpora import Tokens
from workers.messages.work import Work
from workers.models.model_files import ModelFacts


@dataclass(frozen=True)
class TextNeed:
    """How many tokens of a dataset something takes."""

    what: str
    """What takes them, in words."""
    length: int
    count: int
    """Texts of that length that are asked for."""
    all_apart: bool
    """Whether it takes as many texts, none in another; else one is enough."""


class Task(Protocol):
    """One thing that is measured of a cell."""

    name: str
    """As cells and rows have it; the folder of its rows in a run."""
    block: str
    """The key of the sweep file that asks for it; the block's model stands in ``sweep_keys``."""
    timed: bool = False
    """Whether it measures time: the cells of a group take turns in one unit, which has its machine to itself
    and runs after all others; partners are in a cell's id, and rows of two runs never belong together."""
    brings_texts: bool = False
    """Whether it has texts of its own, whatever the sweep's
    datasets; they are read as whoever wrote them has it."""
    at_least: bool = False
    """Whether a cell may get more rows than ``rows_expected`` says."""
    keeps_answers: bool = False
    """Whether a worker tells of answers before a cell's rows are made of them (``answer_files``)."""

    # the sweep file

    def block_of(self, spec: SweepSpec) -> CellFilter | None:
        """Its block in a sweep; None where the sweep does not ask for it."""
        return getattr(spec, self.block, None)

    @abstractmethod
    def settings(self, spec: SweepSpec) -> Iterator[dict[str, Any]]:
        """The settings that change its numbers, once for each group of cells of a target; none where it is
        not asked for.

        Filters choose cells and change no number, so they are not among them.
        """

    def sweep_faults(self, spec: SweepSpec) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be, by the sweep file alone: the key that is to blame, and what is wrong with it."""
        return iter(())

    # models and texts

    def texts(self, spec: SweepSpec, faults: list[str]) -> list[OwnText]:
        """Of a task that brings its own; adds to ``faults`` what cannot be found."""
        return []

    def lengths(self, spec: SweepSpec) -> list[tuple[str, int]]:
        """The longest texts that a model must take: the keys that make them so long, and their tokens."""
        return []

    def model_faults(self, spec: SweepSpec, facts: ModelFacts, bos: int | None) -> Iterable[str]:
        """What a model cannot be asked, beside texts that are too long for it. Raises TokenizerError."""
        return ()

    def text_needs(self, spec: SweepSpec, tokens: Tokens, bos: bool) -> list[TextNeed]:
        """What it takes of a dataset; with ``bos`` a text takes one token less of it.

        Texts that any dataset gives are read here, as far as they are needed. Raises CorpusError where one
        cannot be read.
        """
        return []

    # cells

    def why_no_cell(self, cell: Cell) -> str | None:
        """Why a combination of axes is no cell of this task, in words; None where it is one.

        Asked a million times.
        """
        return None

    @abstractmethod
    def prompt_tokens(self, settings: Mapping[str, Any]) -> int:
        """Tokens that go through before the first check: the (shortest) prompt, or one step."""

    @abstractmethod
    def tokens_read(self, settings: Mapping[str, Any]) -> int:
        """The most tokens of one text that a cell's model sees at once; 0 where its texts are cut to fit."""

    @abstractmethod
    def last_check(self, cell: Cell, settings: Mapping[str, Any]) -> int | None:
        """Entries that a cache which never prunes holds at
        the last check of which any token sees the outcome.

        None where only its texts can tell.
        """

    @abstractmethod
    def planned_budget(self, cell: Cell) -> PlannedBudget | None:
        """What the cache will hold; None where only its texts can tell."""

    @abstractmethod
    def rows_expected(self, cell: Cell, resolved: Resolved) -> int:
        """How many rows make a cell complete."""

    def notes(self, spec: SweepSpec, cells: Sequence[Cell]) -> list[str]:
        """What a person should know of its cells before they run."""
        return []

    def text_notes(self, resolved: Resolved, cells: Sequence[Cell]) -> list[str]:
        """What a person should know of the texts that its cells get."""
        return []

    # units

    def units(
        self, cells: list[Cell], resolved: Resolved, rates: Rates, before: int
    ) -> Iterable[PlannedUnit]:
        """One group of cells, the dense one first, as units without need and cost; ``before``: units that the
        sweep has already.

        Raises SweepError for too many.
        """
        return [PlannedUnit(self.name, (cell,)) for cell in cells]

    @abstractmethod
    def seconds(self, unit: PlannedUnit, rates: Rates) -> float:
        """What a unit takes at these rates."""

    def texts_at_once(self, unit: PlannedUnit) -> int:
        """Texts of a unit that could go through a model together."""
        return 1

    @abstractmethod
    def bytes_at_once(self, facts: ModelFacts, cells: Sequence[Cell], texts: int) -> tuple[int, int]:
        """Tokens of the longest text, and bytes of what goes through at once of so many texts."""

    @abstractmethod
    def work(self, unit: PlannedUnit, resolved: Resolved, spec: SweepSpec) -> Work:
        """What a worker is sent of a unit beside its cells."""

    # rows

    @property
    def columns(self) -> Mapping[str, pl.DataType | type[pl.DataType]]:
        """The columns that its rows have beside those of every table."""
        return TASK_COLUMNS[self.name]

    @property
    def row_keys(self) -> list[str]:
        """What tells the rows of one cell apart."""
        return ROW_KEYS[self.name]

    def stored_rows(self, store: RunStore, cells: Sequence[Cell], resolved: Resolved) -> StoredRows:
        """What a store holds of its rows; ``cells``: those of the plan.

        Raises PolarsError where a part is no Parquet file.
        """
        return CountedRows(store, self.name, self.row_keys, lambda cell: self.rows_expected(cell, resolved))

    def as_stored(self, rows: list[dict[str, Any]], facts: ModelFacts) -> list[dict[str, Any]]:
        """A worker's rows with what it could not know; ``facts`` are of their model."""
        return rows
