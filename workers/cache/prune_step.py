"""What prunes have in common, however a layer stores entries: what is protected, chosen, and stays."""

from __future__ import annotations

from torch import Tensor

from workers.cache.rotary import Rotary, places_closed
from workers.policies.policy import Policy
from workers.policies.selection import select, take_entries

Number = int | Tensor
"""Of all rows, or [rows, 1, 1]."""


def protected_entries(
    positions: Tensor, seen: Number, sink: Number, recent: Number, outside: tuple[int, int] = (0, 0)
) -> Tensor:
    """positions [rows, kv_heads, n] -> bool, what is never dropped: the first ``sink`` and last ``recent`` of
    ``seen`` tokens, and positions [start, end) that are kept out of pruning."""
    start, end = outside
    own = (positions < sink) | (positions >= seen - recent)
    return own if start == end else own | (positions >= start) & (positions < end)


def chosen(
    policy: Policy, scores: Tensor, positions: Tensor, keep: int, protected: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Indices [rows, kv_heads, keep] of what stays of rows of one length, and whether each cut fell on a tie.

    scores: those that ``policy`` gave the entries at ``positions``, [rows, kv_heads, n] both; else as
    ``select``.
    """
    return select(scores, keep, protected, None if policy.temporal else positions)


def kept_entries(
    keys: Tensor, values: Tensor, index: Tensor, rotary: Rotary | None, before: Number, after: Number
) -> tuple[Tensor, Tensor]:
    """The entries ``index`` of ``before``, of which ``after`` stay;
    with ``rotary`` keys are turned to places without gaps.

    keys, values: [rows, kv_heads, n, head_dim] -> [rows, kv_heads, k, head_dim].
    """
    kept = take_entries(keys, index)
    if rotary is not None:
        kept = rotary.turn(kept, places_closed(index, before, after))
    return kept, take_entries(values, index)
