"""What one actor call will do: cells of one task, and the part of their texts that they are asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from pipeline.cells.cell import Cell
from pipeline.cluster.placement import Need

NO_NEED = Need("cpu", False, 0, "")
"""Of a unit that is not whole yet."""


class Part(Protocol):
    """What of their texts a unit asks its cells about."""

    def keys(self) -> Iterable[str]:
        """What tells it from the other parts that the same cells are asked about."""
        ...

    @property
    def words(self) -> str:
        """For a person; empty where there is nothing to say in few words."""
        ...


@dataclass(frozen=True, slots=True)
class AllTexts:
    """Whatever its cells are to read."""

    def keys(self) -> Iterable[str]:
        """None: no other unit has these cells."""
        return ()

    @property
    def words(self) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class PlannedUnit:
    """Cells of one task that one actor call will do."""

    task: str
    cells: tuple[Cell, ...]
    part: Part = AllTexts()
    """As the task cuts its texts."""
    cost_seconds: float = 0.0
    need: Need = NO_NEED
    scout: bool = False
    """Runs before the others: shows how long its kind takes, and at once whether its model works at all."""

    @property
    def unit_id(self) -> str:
        """From the cells and their part of the texts alone."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = [*(cell.cell_id for cell in self.cells), *self.part.keys()]
        return hashlib.sha256(" ".join(content).encode()).hexdigest()[:20]
