"""What one actor call will do: cells of one task, and the part of their texts that they are asked about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from pipeline.cell import Cell
from pipeline.placement import Need
from pipeline.seconds import Passes
from workers.windows import Window

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
    windows: tuple[Window, ...] = ()
    cost_seconds: float = 0.0
    need: Need = NO_NEED
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
