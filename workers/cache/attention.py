"""Attention over layers of unequal length, for any Hugging Face model that takes attention by name.

``model.set_attn_implementation("kvsweep")`` makes a model call ``attend``. Keys that come from one of our
caches carry their layer (``LAYER``), which attends over what *it* holds and prunes afterwards. A mask made
once from layer 0 would be wrong for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from workers.cache.attending_layer import forget_waiting, layer_of
from workers.footprint.shape import PROBABILITY_BYTES
from workers.policies.attention_weights import Scale, grouped_logits, of_values

NAME = "kvsweep"

CHANGES_NOTHING = frozenset({
    "position_ids", "cache_position", "use_cache", "past_key_value", "past_key_values", "return_dict",
    "logits_to_keep", "output_hidden_states", "output_router_logits", "num_items_in_batch",
})  # fmt: skip
"""Keywords that models hand on to every attention function and that say nothing of what is attended to."""

MASK_CHANGES_NOTHING = frozenset({
    "kv_offset", "allow_is_causal_skip", "allow_is_bidirectional_skip", "allow_torch_fix", "dtype",
    "cache_position",
})  # fmt: skip
"""Keywords of a mask that say how it would be stored, or what is known here otherwise."""

PACKED_OFFSET = -1
"""``get_query_offset`` of a cache whose rows are at different points of their texts:
the index of a token is no position."""

MASK_PLACES = 2**22
"""A mask of queries x entries has so many places at most: of longer passes as many queries attend at a time
as it takes."""


def _open_then_causal(queries: int, entries: int, device: torch.device) -> Tensor:
    """[queries, entries] bool:
    query i sees all entries but those behind it, the newest entry being the last query's own."""
    is_small = queries * entries <= MASK_PLACES
    return _remembered_mask(queries, entries, device) if is_small else _new_mask(queries, entries, device)


def _new_mask(queries: int, entries: int, device: torch.device) -> Tensor:
    return torch.ones(queries, entries, dtype=torch.bool, device=device).tril(entries - queries)


_remembered_mask = lru_cache(maxsize=8)(_new_mask)


def forget_masks() -> None:
    """Give back the masks that were kept for the next layer and pass: behind a unit nobody needs them."""
    _remembered_mask.cache_clear()


def attention(
    query: Tensor, keys: Tensor, values: Tensor, scale: Scale, mask: Tensor | None = None
) -> Tensor:
    """query [batch, heads, q, head_dim],
    keys and values [batch, kv_heads, n, head_dim] -> [batch, heads, q, head_dim].

    mask: [batch, 1 or kv_heads, q, n] float, added to the logits; without it stored entries are open and the
    last q causal.
    """
    if scale.softcap is not None:
        return probe(query, keys, values, scale, mask)[0]
    if mask is not None:
        # kernels on a GPU read the mask as what the queries are, or refuse another type
        mask = mask.to(query.dtype)

    queries, entries = query.shape[2], keys.shape[2]
    causal = mask is None and queries > 1 and queries == entries
    if mask is None and not causal and queries > 1:
        if queries * entries > MASK_PLACES:
            return _in_parts(query, keys, values, scale)
        mask = _open_then_causal(queries, entries, query.device)

    grouped = query.shape[1] != keys.shape[1]
    if grouped and mask is not None and mask.ndim == 4:
        # the heads of a group as more queries of one head: no key is copied
        batch, kv_heads, group = query.shape[0], keys.shape[1], query.shape[1] // keys.shape[1]
        rows = query.reshape(batch, kv_heads, group * queries, -1)
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
        out = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale.scaling)
        return out.reshape(*query.shape[:3], -1)  # kernels on a GPU lay their result out in another order

    return functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, scale=scale.scaling, enable_gqa=grouped
    )


def _in_parts(query: Tensor, keys: Tensor, values: Tensor, scale: Scale) -> Tensor:
    """Open then causal attention of so many queries at a time as a mask has places for,
    over the entries that they see."""
    queries, entries = query.shape[2], keys.shape[2]
    step = max(1, MASK_PLACES // entries)
    parts = []
    for first in range(0, queries, step):
        part = query[:, :, first : first + step]
        seen = entries - queries + first + part.shape[2]
        parts.append(attention(part, keys[:, :, :seen], values[:, :, :seen], scale))
    return torch.cat(parts, 2)


def probe(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: Scale,
    mask: Tensor | None = None,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``attention`` with the probabilities made, and their sum over queries and the head's group:
    [batch, kv_heads, n].

    counted: [batch, q] bool, queries that are not padding; all without it.
    """
    mass = torch.zeros(*keys.shape[:3], device=keys.device)
    outputs = []
    for first, chance in probabilities(query, keys, scale, mask):
        outputs.append(of_values(chance, values))
        if counted is not None:
            chance = chance * counted[:, None, None, first : first + chance.shape[3], None]
        mass += chance.sum((2, 3))
    return torch.cat(outputs, 2), mass


def probabilities(
    query: Tensor, keys: Tensor, scale: Scale, mask: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """(its first query, float32 probabilities [batch, kv_heads, group, some queries, n]), slice by slice."""
    batch, heads, queries = query.shape[:3]
    entries = keys.shape[2]
    step = max(1, PROBABILITY_BYTES // (4 * batch * heads * entries))

    for first in range(0, queries, step):
        logits = grouped_logits(query[:, :, first : first + step], keys, scale)
        if mask is not None:
            logits += mask[:, :, None, first : first + step]
        elif queries > 1:
            # the entry of the slice's first query: what lies before it all of them see
            own = entries - queries + first
            newer = torch.arange(own, entries, device=query.device)
            later = newer > newer[: logits.shape[3], None]
            logits[..., own:].masked_fill_(later, -torch.inf)
        yield first, logits.softmax(-1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [batch, heads, q, head_dim],
    key and value [batch, kv_heads, n, head_dim] -> [batch, q, heads, head_dim], contiguous.

    Raises ValueError for what it does not implement, by name, rather than computing something else.
    """
    _refuse_unknown(module, attention_mask, is_causal, others)
    if dropout and module.training:
        raise ValueError("kvsweep attention is for evaluation: call model.eval() first")

    scale = Scale(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap)
    layer = layer_of(key)
    if layer is None:
        _check_sliding(sliding_window, key.shape[2])
        return attention(query, key, value, scale).transpose(1, 2).contiguous(), None
    _check_sliding(sliding_window, layer.seen)
    return layer.attend(query, scale).contiguous(), None


def _refuse_unknown(
    module: nn.Module, attention_mask: Tensor | None, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """What a model gives its attention has a meaning: what is not known here would be left out silently."""
    kind = type(module).__name__
    if attention_mask is not None:
        raise ValueError(
            f"{kind} gives its attention a mask of its own (attention_mask), which kvsweep's attention does "
            "not apply: it sees everything stored and no future; use a model or a call without one"
        )
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise ValueError(
            f"{kind} lets its tokens see later ones (is_causal is false): such a model has no cache to prune"
        )

    unknown = sorted(
        name
        for name, given in others.items()
        if name not in CHANGES_NOTHING and given is not None and given is not False
    )
    if unknown:
        raise ValueError(
            f"{kind} gives its attention {', '.join(unknown)}, which kvsweep's attention does not know and "
            "would leave out; use a model without it"
        )


def _check_sliding(window: int | None, seen: int) -> None:
    """A sliding-window layer is full attention up to its window, and something else beyond it."""
    if window is not None and seen > window:
        raise ValueError(
            f"this model's layers attend to the last {window} tokens only and the text has {seen}: pruning "
            f"such a layer is not supported; use texts of at most {window} tokens"
        )


def check_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    batch_size: int = 1,
    q_offset: int = 0,
    use_vmap: bool = False,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    device: torch.device | None = None,
    config: Any = None,
    **others: Any,
) -> None:
    """Called once per pass for the mask that a model would have. None is made here, so it may hide nothing
    but the future.

    Raises ValueError for padding, for a mask of another length than what the cache has seen, and for a mask
    that differs.
    """
    forget_waiting()
    unknown = sorted(others.keys() - MASK_CHANGES_NOTHING)
    if unknown:
        raise ValueError(
            f"kvsweep attention does not know {', '.join(unknown)} of a mask and would leave it out"
        )
    if attention_mask is not None:
        _check_padding(attention_mask, q_length, kv_length)
    if mask_function is causal_mask_function or (local_size is not None and not _has_local_layers(config)):
        return
    if local_size is not None:
        _check_sliding(local_size, kv_length)
    if q_offset == PACKED_OFFSET:  # the dense pass over the same texts was checked
        return
    if use_vmap or not _is_causal(mask_function, q_length, kv_length, batch_size, device):
        raise ValueError(
            "this model's mask hides or shows other entries than the future (packed texts, blocks of images, "
            "attention in both directions), which kvsweep's attention does not apply; use a model or a call "
            "without it"
        )


def _has_local_layers(config: Any) -> bool:
    """Whether any layer uses the mask of a window:
    some models make it though all of their layers are full attention."""
    kinds = getattr(config, "layer_types", None)
    return kinds is None or any(kind not in ("full_attention", "attention") for kind in kinds)


def _is_causal(
    mask_function: Callable[..., Tensor],
    q_length: int,
    kv_length: int,
    rows: int,
    device: torch.device | None,
) -> bool:
    """Whether a mask shows each of the last ``q_length`` tokens all that is stored and no future,
    in all rows."""
    queries = torch.arange(kv_length - q_length, kv_length, device=device)[:, None]
    entries = torch.arange(kv_length, device=device)[None]
    head = torch.tensor(0, device=device)
    shown = (mask_function(torch.tensor(row, device=device), head, queries, entries) for row in range(rows))
    return all(bool((each == (entries <= queries)).all()) for each in shown)


def _check_padding(attention_mask: Tensor, q_length: int, kv_length: int) -> None:
    if not bool(attention_mask.all()):
        raise ValueError("kvsweep attention takes no padded batches: group the prompts by length")
    if attention_mask.shape[-1] != kv_length:
        raise ValueError(
            f"the attention mask is of {attention_mask.shape[-1]} tokens, and with the {q_length} of this "
            f"pass the cache has seen {kv_length}: it was used for another text, or use_cache is false; call "
            "its reset() before a new text"
        )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, check_mask)
