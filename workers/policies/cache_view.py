"""What a policy sees of a layer at a prune event, and its one maker. Imports torch only where it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from workers.cache.notes import Observed
    from workers.policies.attention_weights import Scale

SIGNIFICANT_BITS = {"float32": 12, "float16": 11, "bfloat16": 10}
"""Of a score, by the dtype of the keys that it was computed from; in others as in float32.

In 16 bits the keys' own rounding moves a norm by 1e-4 (float16) to 1e-3 (bfloat16) of its value. With more
bits it chooses among repetitions of a token, with fewer norms tie that differ: these numbers drop most of
what float32 drops (``benchmarks.rounding``).
"""


@dataclass(frozen=True, kw_only=True)
class CacheView:
    """What a policy sees of one layer at a prune event: the entries held, in temporal order, the newest last.

    After a policy that is not ``temporal`` they lie in the order in which it left them. The tensors are the
    policy's own copies.
    """

    keys: Tensor
    """[batch, kv_heads, n, head_dim], rotated as cached."""
    take_values: Callable[[], Tensor]
    """Gives ``values``: most policies look at none, and cutting them out of a batch of cells takes time."""
    positions: Tensor
    """[batch, kv_heads, n], absolute positions of the entries."""
    seen: Tensor
    """[batch, 1, 1], tokens seen so far."""
    keep: Tensor
    """[batch, 1, 1], how many entries will stay."""
    layer: Tensor
    """[batch, 1, 1], index of the layer."""
    seed: Tensor
    """[batch, 1, 1], the cell's seed."""
    row_ids: Tensor
    """[batch, 1, 1], what tells one text from another whatever the batch (perplexity: the window's start)."""
    scale: Scale
    """How the model's attention scales and caps its logits."""
    queries: Tensor | None = None
    """[batch, heads, w, head_dim], the last w = min(count, seen)
    queries, rotated, oldest first; see ``LastQueries``."""
    mass: Tensor | None = None
    """[batch, kv_heads, n], attention that each entry got from all queries so far, summed over the head's
    group; see ``Mass``."""
    weights: Tensor | None = None
    """[batch, kv_heads, group, w, n], attention of some of the last queries where the pass itself made it."""

    @cached_property
    def values(self) -> Tensor:
        """[batch, kv_heads, n, head_dim], of the same entries as ``keys``."""
        return self.take_values()

    def attention(self, last: int) -> Tensor:
        """Attention of the last queries over the entries held now:
        [batch, kv_heads, group, w, n], w = min(last, seen)."""
        from workers.policies.attention_weights import weights

        assert self.queries is not None, "the policy has to say that it observes LastQueries"
        queries = self.queries[:, :, -last:]
        if self.weights is not None and self.weights.shape[3] >= queries.shape[2]:
            return self.weights[:, :, :, -queries.shape[2] :]
        return weights(queries, self.keys, self.scale, self.positions, self.seen)

    def rounded(self, scores: Tensor) -> Tensor:
        """Non-negative scores without what is only noise in keys of this dtype (``SIGNIFICANT_BITS``)."""
        kind = str(self.keys.dtype).removeprefix("torch.")
        return round_significant(scores, SIGNIFICANT_BITS.get(kind, SIGNIFICANT_BITS["float32"]))


def view_of(
    *,
    keys: Tensor,
    values: Callable[[], Tensor],
    positions: Tensor,
    seen: int | Tensor,
    keep: int | Tensor,
    layer: int | Tensor,
    seed: int | Tensor,
    row_ids: Tensor,
    observed: Observed,
    scale: Scale,
) -> CacheView:
    """The view of some rows of a layer; numbers that differ by row come as tensors [batch]."""
    import torch

    def by_row(number: int | Tensor) -> Tensor:
        if isinstance(number, int):
            return torch.full((1, 1, 1), number, device=keys.device).expand(keys.shape[0], 1, 1)
        return number[:, None, None]

    return CacheView(
        keys=keys,
        take_values=values,
        positions=positions,
        seen=by_row(seen),
        keep=by_row(keep),
        layer=by_row(layer),
        seed=by_row(seed),
        row_ids=by_row(row_ids),
        scale=scale,
        queries=observed.queries,
        mass=observed.mass,
        weights=observed.weights,
    )


def round_significant(scores: Tensor, bits: int = 12) -> Tensor:
    """Non-negative float32 scores rounded to ``bits`` significant bits.

    Rotation keeps norms, so repetitions of a token tie exactly in mathematics and differ by rounding noise in
    floats; without rounding that noise, not the method, chooses which repetition stays (science, section 1,
    point 3).
    """
    import torch

    drop = 24 - bits
    whole = scores.float().contiguous().view(torch.int32)
    # as integers, bits of floats from 0 on count units in the last place: half of what is dropped is added,
    # which rounds half up and carries into the exponent, then the lowest bits are cleared
    return ((whole + (1 << (drop - 1))) & ~((1 << drop) - 1)).view(torch.float32)
