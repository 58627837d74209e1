"""Attention over layers of unequal length, for any Hugging Face model that takes its attention function by name.

``model.set_attn_implementation("kvsweep")`` makes a model call ``attend``, which builds the mask from what *this* layer
holds: stored entries are open to every query, the new ones causal. A mask made once from layer 0 would be wrong for others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "kvsweep"


@lru_cache(maxsize=64)
def _open_then_causal(queries: int, entries: int, device: torch.device) -> Tensor:
    """[queries, entries] bool: query i sees all entries but those behind it, the newest entry being the last query's own."""
    return torch.ones(queries, entries, dtype=torch.bool, device=device).tril(entries - queries)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [batch, heads, q, head_dim], key and value [batch, kv_heads, n, head_dim] -> [batch, q, heads, head_dim].

    Raises ValueError for what it does not implement, rather than computing something else.
    """
    for option in ("softcap", "sliding_window", "s_aux"):
        if options.get(option) is not None:
            raise ValueError(f"kvsweep attention does not support this model's {option}; use a model without it")
    if dropout:
        raise ValueError("kvsweep attention is for evaluation: call model.eval() first")
    queries, entries = query.shape[2], key.shape[2]
    causal = queries > 1 and queries == entries
    mask = None if causal or queries == 1 else _open_then_causal(queries, entries, query.device)
    grouped = query.shape[1] != key.shape[1]
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2), None


def refuse_padding(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """No mask is made here; a padded batch would be attended to silently, so it is refused."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("kvsweep attention takes no padded batches: group the prompts by length")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, refuse_padding)
