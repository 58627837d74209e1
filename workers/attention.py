"""Attention over layers of unequal length, for any Hugging Face model that takes its attention function by name.

``model.set_attn_implementation("kvsweep")`` makes a model call ``attend``. Keys that come from one of our caches carry their
layer (``LAYER``), which attends over what *it* holds and prunes afterwards. A mask made once from layer 0 would be wrong
for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "kvsweep"
LAYER = "kvsweep_layer"
"""Attribute of the keys that a cache layer's ``update`` returns: the layer, which then attends."""

PROBABILITY_BYTES = 64 * 2**20
"""Where probabilities are needed themselves they are made for so many queries at a time."""


class Scale(NamedTuple):
    """What turns query-key products into logits."""

    scaling: float
    softcap: float | None


class AttendingLayer(Protocol):
    """A cache layer that attends over what it holds."""

    @property
    def seen(self) -> int:
        """Tokens seen, those of this pass included."""
        ...

    def attend(self, query: Tensor, scale: Scale) -> Tensor:
        """query [batch, heads, q, head_dim] -> [batch, q, heads, head_dim]; prunes where due."""
        ...


@lru_cache(maxsize=64)
def _open_then_causal(queries: int, entries: int, device: torch.device) -> Tensor:
    """[queries, entries] bool: query i sees all entries but those behind it, the newest entry being the last query's own."""
    return torch.ones(queries, entries, dtype=torch.bool, device=device).tril(entries - queries)


def attention(query: Tensor, keys: Tensor, values: Tensor, scale: Scale, mask: Tensor | None = None) -> Tensor:
    """query [batch, heads, q, head_dim], keys and values [batch, kv_heads, n, head_dim] -> [batch, heads, q, head_dim].

    mask: [batch, 1 or kv_heads, q, n] float, added to the logits; without it stored entries are open and the last q causal.
    """
    if scale.softcap is not None:
        return probe(query, keys, values, scale, mask)[0]
    queries, entries = query.shape[2], keys.shape[2]
    causal = mask is None and queries > 1 and queries == entries
    if mask is None and not causal and queries > 1:
        mask = _open_then_causal(queries, entries, query.device)
    grouped = query.shape[1] != keys.shape[1]
    if grouped and mask is not None and mask.ndim == 4:  # the heads of a group as more queries of one head: no key is copied
        batch, kv_heads, group = query.shape[0], keys.shape[1], query.shape[1] // keys.shape[1]
        rows = query.reshape(batch, kv_heads, group * queries, -1)
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
        out = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale.scaling)
        return out.view(*query.shape[:3], -1)
    return functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, scale=scale.scaling, enable_gqa=grouped
    )


def probe(
    query: Tensor, keys: Tensor, values: Tensor, scale: Scale, mask: Tensor | None = None, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``attention`` with the probabilities made, and their sum over queries and the head's group: [batch, kv_heads, n].

    counted: [batch, q] bool, queries that are not padding; all without it.
    """
    mass = torch.zeros(*keys.shape[:3], device=keys.device)
    outputs = []
    for first, chance in probabilities(query, keys, scale, mask):
        outputs.append((chance.to(values.dtype) @ values[:, :, None]).flatten(1, 2))
        if counted is not None:
            chance = chance * counted[:, None, None, first : first + chance.shape[3], None]
        mass += chance.sum((2, 3))
    return torch.cat(outputs, 2), mass


def probabilities(query: Tensor, keys: Tensor, scale: Scale, mask: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """(index of its first query, float32 probabilities [batch, kv_heads, group, some queries, n]), slice by slice."""
    batch, heads, queries, width = query.shape
    kv_heads, entries = keys.shape[1:3]
    if mask is None and queries > 1:
        mask = torch.zeros(queries, entries, device=query.device).masked_fill(
            ~_open_then_causal(queries, entries, query.device), -torch.inf
        )[None, None]
    step = max(1, PROBABILITY_BYTES // (4 * batch * heads * entries))
    for first in range(0, queries, step):
        part = query[:, :, first : first + step].reshape(batch, kv_heads, heads // kv_heads, -1, width)
        logits = (part.float() @ keys[:, :, None].transpose(3, 4).float()) * scale.scaling
        if scale.softcap is not None:
            logits = scale.softcap * torch.tanh(logits / scale.softcap)
        if mask is not None:
            logits = logits + mask[:, :, None, first : first + step]
        yield first, logits.softmax(-1)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, softcap: float | None = None, sliding_window: int | None = None, s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [batch, heads, q, head_dim], key and value [batch, kv_heads, n, head_dim] -> [batch, q, heads, head_dim].

    Raises ValueError for what it does not implement, rather than computing something else.
    """
    if s_aux is not None:
        raise ValueError("kvsweep attention does not support attention sinks learned per head (s_aux); use a model without them")
    if dropout and module.training:
        raise ValueError("kvsweep attention is for evaluation: call model.eval() first")
    scale = Scale(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap)
    layer: AttendingLayer | None = getattr(key, LAYER, None)
    if layer is None:
        _check_sliding(sliding_window, key.shape[2])
        return attention(query, key, value, scale).transpose(1, 2), None
    _check_sliding(sliding_window, layer.seen)
    return layer.attend(query, scale), None


def _check_sliding(window: int | None, seen: int) -> None:
    """A sliding-window layer is full attention up to its window, and something else beyond it."""
    if window is not None and seen > window:
        raise ValueError(
            f"this model's layers attend to the last {window} tokens only and the text has {seen}: pruning such a layer is not "
            f"supported; use texts of at most {window} tokens"
        )


def refuse_padding(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """No mask is made here; a padded batch would be attended to silently, so it is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("kvsweep attention takes no padded batches: group the prompts by length")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, refuse_padding)
