"""Eviction policies: one score function each, and the selection that keeps temporal order.

Contract: ``score(view) -> [batch, kv_heads, n]`` float32, **higher = kept**, equal scores go to the earlier position. How many
entries are kept is decided in ``budget.py`` alone; what is protected is added in ``select``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CacheView:
    """What a policy sees of one layer at a prune event."""

    keys: Tensor
    """[batch, kv_heads, n, head_dim], rotated as cached."""
    positions: Tensor
    """[batch, kv_heads, n], absolute positions of the entries, ascending."""
    seen: int
    """Tokens seen so far."""
    layer: int
    seed: int
    row_ids: Tensor
    """[batch], what tells one text from another whatever the batch (perplexity: the window's start)."""


def round_significant(scores: Tensor, bits: int = 12) -> Tensor:
    """Non-negative float32 scores rounded to ``bits`` significant bits.

    Rotation keeps norms, so repetitions of a token tie exactly in mathematics and differ by rounding noise in floats;
    without rounding that noise, not the method, chooses which repetition stays (science, section 1, point 3).
    """
    drop = 24 - bits
    whole = scores.float().contiguous().view(torch.int32)
    return ((whole + (1 << (drop - 1))) & ~((1 << drop) - 1)).view(torch.float32)


def knorm(view: CacheView) -> Tensor:
    """Keep the keys of lowest L2 norm (Devoto et al. 2024, arXiv 2406.11430, section 3)."""
    return -round_significant(torch.linalg.vector_norm(view.keys, dim=-1, dtype=torch.float32))


def knorm_high(view: CacheView) -> Tensor:
    """The inverse control: keep the keys of highest norm."""
    return round_significant(torch.linalg.vector_norm(view.keys, dim=-1, dtype=torch.float32))


def random(view: CacheView) -> Tensor:
    """A fresh uniform draw per event, the same for a (seed, layer, head, text, position, event) in any batch."""
    head = torch.arange(view.positions.shape[1], device=view.positions.device)[None, :, None]
    state = _mix(view.row_ids.long()[:, None, None] + _mix(head + (view.layer << 20) + (view.seed << 32)))
    state = _mix(state ^ _mix(view.positions.long() + (view.seen << 32)))
    return (state & 0xFFFFFF).float() / float(1 << 24)


def recent(view: CacheView) -> Tensor:
    """Sliding window: keep the newest."""
    return view.positions.float()


def streaming(view: CacheView) -> Tensor:
    """Attention sinks: the first 4 positions and the newest (Xiao et al. 2023, arXiv 2309.17453, section 3.2)."""
    return torch.where(view.positions < 4, torch.inf, view.positions.float())


Score = Callable[[CacheView], Tensor]
POLICIES: dict[str, Score] = {f.__name__: f for f in (knorm, knorm_high, random, recent, streaming)}
"""Every policy that prunes; ``dense`` is the absence of one."""


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (arithmetic shifts masked to logical ones)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def select(scores: Tensor, keep: int, protected: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the ``keep`` best entries in temporal order, and whether the cut fell on a tie.

    scores: [batch, kv_heads, n] with 0 < keep < n; protected: bool of the same shape, kept whatever their score.
    Returns ([batch, kv_heads, keep] ascending, [batch, kv_heads] bool).
    """
    n = scores.shape[-1]
    bits = (scores.float() + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    rank = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    if protected is not None:
        rank = rank + (protected.long() << 33)
    # One integer orders by score, then by earlier position: no two are equal, so the choice never depends on a sort's whims.
    order = (rank << 24) + torch.arange(n - 1, -1, -1, device=scores.device)
    best, index = order.topk(keep + 1, dim=-1)
    tied = (best[..., keep - 1] >> 24) == (best[..., keep] >> 24)
    return index[..., :keep].sort(dim=-1).values, tied
