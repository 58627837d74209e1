"""What was left after a layer's prunes, as sums that nothing has to wait for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

RECENT = 8
"""``recent_retained`` looks at this many of the last positions."""


def retained(positions: Tensor, seen: int | Tensor, held: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What is left of ``seen`` tokens:
    the share of the last ``RECENT`` positions, and whether position 0 is still there.

    positions: [..., batch, kv_heads, places], in any order -> [..., batch, kv_heads] float each. ``seen``: of
    all rows, or [batch, 1, 1]; ``held``: bool like positions, which places hold an entry; all without it.
    """
    is_recent, is_sink = positions >= seen - RECENT, positions == 0
    if held is not None:
        is_recent, is_sink = is_recent & held, is_sink & held
    most = min(RECENT, seen) if isinstance(seen, int) else seen[..., 0].clamp(max=RECENT)
    return is_recent.sum(-1) / most, is_sink.any(-1).float()


@dataclass
class LayerRecord:
    """Sums over a layer's prune events, [batch, kv_heads] each, so that no event is waited for."""

    events: int = 0
    recent: Tensor | None = None
    sink: Tensor | None = None
    ties: Tensor | None = None

    def add(self, positions: Tensor, seen: int, tied: Tensor) -> None:
        """Count one event: ``positions`` [batch, kv_heads, kept] are what is left of ``seen`` tokens."""
        recent, sink = retained(positions, seen)
        self.events += 1
        self.recent = recent if self.recent is None else self.recent + recent
        self.sink = sink if self.sink is None else self.sink + sink
        self.ties = tied.float() if self.ties is None else self.ties + tied.float()

    def take_rows(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone."""
        if self.events:
            assert self.recent is not None and self.sink is not None and self.ties is not None
            self.recent, self.sink, self.ties = self.recent[rows], self.sink[rows], self.ties[rows]
