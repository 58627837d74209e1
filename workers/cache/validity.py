"""How much of a pass through a pruned cache was really compressed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Validity:
    """How much of a pass was really compressed; one value per row, None where nothing was ever pruned."""

    prune_events: int
    recent_retained: list[float] | None = field(default=None)
    sink_retained: list[float] | None = field(default=None)
    score_ties: list[float] | None = field(default=None)
