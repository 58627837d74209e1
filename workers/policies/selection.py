"""Which entries stay: the best by score, in temporal order or best first, and how they are taken."""

from __future__ import annotations

import torch
from torch import Tensor

POSITION_BITS = 24
"""Of an entry's order the lowest bits, which say its position; those above them say protection and score."""
NOT_HELD = -(1 << 62)
"""The order of a place that holds no entry: below that of any entry, whose rank has 34 bits and a sign."""


def order_by_score(scores: Tensor, positions: Tensor, protected: Tensor | None) -> Tensor:
    """One int64 per entry that orders by protection, score, earlier position (below 2**24): no two are equal,
    so the choice never depends on a sort's whims. ``are_tied`` compares what lies above the position."""
    bits = (scores.float() + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    # the bits of floats from 0 on ascend as integers do; of negative ones all but the sign ascend with the
    # magnitude, so the integer is its negative
    rank = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    if protected is not None:
        rank = rank + (protected.long() << 33)  # above any score, which has 31 bits and a sign
    latest = (1 << POSITION_BITS) - 1
    return (rank << POSITION_BITS) + (latest - positions).clamp_(min=0)


def are_tied(order: Tensor, other: Tensor) -> Tensor:
    """Whether orders differ by position at most: protection and score are the same."""
    return (order >> POSITION_BITS) == (other >> POSITION_BITS)


def select(
    scores: Tensor, keep: int, protected: Tensor | None = None, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the ``keep`` best entries in temporal order, and whether the cut fell on a tie.

    scores: [batch, kv_heads, n] with 0 < keep < n; protected: bool of the same shape, kept whatever their
    score; positions: of the same shape, for a policy that is not temporal: entries may lie in any order, and
    the indices are best first, protected ones before others. Returns ([batch, kv_heads, keep], ascending
    without positions, and [batch, kv_heads] bool).
    """
    places = torch.arange(scores.shape[-1], device=scores.device) if positions is None else positions
    order = order_by_score(scores, places, protected)
    if positions is None and keep > scores.shape[-1] // 2:
        return _without_the_worst(order, keep)

    best, index = order.topk(keep + 1, dim=-1)
    tied = are_tied(best[..., keep - 1], best[..., keep])
    kept = index[..., :keep]
    return (kept.sort(dim=-1).values if positions is None else kept), tied


def _without_the_worst(order: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """``select`` in temporal order where few entries go:
    those are looked for, and the others are counted past them."""
    gone = order.shape[-1] - keep
    worst, index = order.topk(gone + 1, dim=-1, largest=False)
    tied = are_tied(worst[..., gone - 1], worst[..., gone])

    return _staying(index[..., :gone].sort(dim=-1).values, keep), tied


def _without_the_worst_of_rows(
    order: Tensor, keep: Tensor, lengths: Tensor, widest: int, narrowest: int
) -> tuple[Tensor, Tensor]:
    """``_without_the_worst`` for rows of unequal length: what lies behind a row's entries is the worst."""
    n = order.shape[-1]
    spare = n - keep
    worst, index = order.topk(min(n, n - narrowest + 1), dim=-1, largest=False)
    at = spare.expand(-1, order.shape[1], -1)
    last = worst.shape[-1] - 1
    best_dropped = worst.gather(-1, (at - 1).clamp(0, last))
    worst_kept = worst.gather(-1, at.clamp(0, last))
    tied = are_tied(best_dropped, worst_kept)[..., 0] & (keep < lengths[:, None, None])[..., 0]

    rank = torch.arange(index.shape[-1], device=order.device)
    goes = index.masked_fill(rank >= spare, 2 * n).sort(dim=-1).values
    return _staying(goes, widest).clamp_(max=n - 1), tied


def _staying(goes: Tensor, keep: int) -> Tensor:
    """The first ``keep`` indices, ascending, that are not among ``goes`` [batch, kv_heads, g], ascending.

    Before the j-th that goes (from 0) lie j that go and so many others, which stay.
    """
    staying_before = goes - torch.arange(goes.shape[-1], device=goes.device)
    rank = torch.arange(keep, device=goes.device).expand(*goes.shape[:-1], -1).contiguous()
    return rank + torch.searchsorted(staying_before, rank, right=True)


def select_ragged(
    scores: Tensor,
    keep: Tensor,
    lengths: Tensor,
    widest: int,
    protected: Tensor | None = None,
    positions: Tensor | None = None,
    narrowest: int = 1,
) -> tuple[Tensor, Tensor]:
    """``select`` for rows of unequal length:
    row i holds ``lengths[i]`` entries and keeps ``keep[i] <= lengths[i]``.

    scores: [batch, kv_heads, n]; keep, lengths: [batch]; widest: the largest ``keep``; narrowest: the
    smallest, or less, which is slower. Returns ([batch, kv_heads, widest] in the order of ``select``,
    meaningless behind each row's keep but inside the tensor, and [batch, kv_heads] bool).
    """
    n = scores.shape[-1]
    slot = torch.arange(n, device=scores.device)
    keep = keep[:, None, None]
    order = order_by_score(scores, slot if positions is None else positions, protected)
    order = order.masked_fill(slot >= lengths[:, None, None], NOT_HELD)
    if positions is None and narrowest > n // 2:
        return _without_the_worst_of_rows(order, keep, lengths, widest, narrowest)

    best, index = order.sort(dim=-1, descending=True)
    at = keep.expand(-1, scores.shape[1], -1)
    cut = are_tied(best.gather(-1, at - 1), best.gather(-1, at.clamp(max=n - 1)))
    tied = cut[..., 0] & (keep < lengths[:, None, None])[..., 0]
    if positions is not None:
        return index[..., :widest], tied
    kept = index.masked_fill(slot >= keep, n).sort(dim=-1).values[..., :widest]
    return kept.clamp_(max=n - 1), tied


def take_entries(entries: Tensor, index: Tensor) -> Tensor:
    """entries [batch, kv_heads, n, width], index [batch, kv_heads, k] -> [batch, kv_heads, k, width]."""
    batch, heads, n, width = entries.shape
    rows = index + torch.arange(batch * heads, device=index.device).view(batch, heads, 1) * n
    return entries.reshape(-1, width).index_select(0, rows.flatten()).view(*index.shape, width)
