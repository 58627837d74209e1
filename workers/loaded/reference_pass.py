"""One token per pass, as far as a long text allows: what the self-check compares with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from workers.cache.pruned_cache import PrunedCache
from workers.cache.scoring import body_of, score
from workers.policies.settings import PruneSettings

SINGLE_PASSES = 256
"""Texts of so many tokens go through one token at a time. In longer ones that takes minutes, or hours."""
STRETCH = 32
"""Of a longer text so many tokens go through one by one before every power of two, and all of its start and
behind its first prune."""


def passes(steps: int, first_prune: int) -> Iterator[int]:
    """Tokens of each pass over ``steps`` tokens; none but single ones behind the first prune."""
    if steps <= SINGLE_PASSES:
        yield from [1] * steps
        return
    ends = [2**power for power in range(6, steps.bit_length()) if 2**power < first_prune] + [first_prune]
    seen = 0
    for end in ends:
        bulk = max(0, end - STRETCH - seen) if seen else 0
        if bulk:
            yield bulk
        yield from [1] * (end - seen - bulk)
        seen = end
    yield from [1] * (steps - seen)


@torch.inference_mode()
def reference_nll(model: Any, tokens: Tensor, cell: PruneSettings) -> Tensor:
    """[texts, length - 1] NLL on the CPU of tokens [texts, length] through a ``PrunedCache``,
    a check behind each pass."""
    cache = PrunedCache(model.config, cell, row_ids=list(range(len(tokens))))
    steps = tokens.shape[1] - 1
    seen = 0
    parts = []

    for count in passes(steps, cell.prune_after):
        if count > 1:
            cache.begin_steps(count)
        positions = torch.arange(seen, seen + count, device=tokens.device)[None]
        hidden = body_of(model)(
            input_ids=tokens[:, seen : seen + count],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        parts.append(score(model, hidden, tokens[:, seen + 1 : seen + count + 1]).nll)
        seen += count
    return torch.cat(parts, 1).cpu()
