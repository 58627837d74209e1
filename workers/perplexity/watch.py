"""What is told of an evaluation while it goes on, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.perplexity.cell_scores import CellScores

Outcome = CellScores | Exception | None
"""Of a cell: its scores, what made it fail, or None where it never prunes and *is* the dense cell."""


@dataclass(frozen=True)
class Watch:
    """Who is told of an evaluation while it goes on; by default nobody."""

    ended: Callable[[CellScores, int, Outcome], None] = lambda dense, cell, outcome: None
    """Of the dense cell's scores and of each cell, by index, as it ends."""
    worked: Callable[[int, int], None] = lambda tokens, cell: None
    """Of tokens that went through a model, over all windows, and the cell at hand, -1 being the dense one."""


UNWATCHED = Watch()
