"""Attention whose probabilities are made themselves, because a policy asks for them:
in float32, whatever the keys are.

The heads of a group are taken as more queries of the KV head that they share, so no key and no value is
copied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scale(NamedTuple):
    """What turns query-key products into logits."""

    scaling: float
    softcap: float | None


def grouped_logits(query: Tensor, keys: Tensor, scale: Scale) -> Tensor:
    """float32 [batch, kv_heads, group, q, n] of query [batch, heads, q, head_dim] and keys [batch, kv_heads,
    n, head_dim]."""
    batch, heads, queries, width = query.shape
    kv_heads, entries = keys.shape[1:3]
    rows = query.reshape(batch, kv_heads, -1, width).float()
    logits = (rows @ keys.transpose(2, 3).float()).mul_(scale.scaling)
    if scale.softcap is not None:
        logits = scale.softcap * torch.tanh(logits / scale.softcap)
    return logits.view(batch, kv_heads, heads // kv_heads, queries, entries)


def of_values(chance: Tensor, values: Tensor) -> Tensor:
    """Probabilities [batch, kv_heads, group, q, n] of values [batch, kv_heads, n, head_dim]:
    [batch, heads, q, head_dim]."""
    group, queries = chance.shape[2:4]
    out = chance.flatten(2, 3).to(values.dtype) @ values
    return out.unflatten(2, (group, queries)).flatten(1, 2)


def weights(query: Tensor, keys: Tensor, scale: Scale, positions: Tensor, seen: Tensor) -> Tensor:
    """Probabilities of the last queries, each over the entries that are no later than itself: [batch,
    kv_heads, group, w, n].

    query: [batch, heads, w, head_dim], the last of ``seen`` [batch or 1, 1, 1] tokens; positions: [batch,
    kv_heads, n], of the entries.
    """
    count = query.shape[2]
    asked_at = (seen[..., None] - count + torch.arange(count, device=query.device)[:, None]).to(
        positions.dtype
    )
    later = positions[:, :, None] > asked_at
    return grouped_logits(query, keys, scale).masked_fill_(later[:, :, None], -torch.inf).softmax(-1)
