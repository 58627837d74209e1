"""The method in a loop over the stock model: transformers' own cache and attention, and nothing of kvsweep's.

One token per forward pass. After each, every layer that holds ``prune_after`` entries or more keeps those
keys whose norm, rounded to twelve significant bits, is lowest; of equal ones the earlier.
"""

from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache


def rounded(norms: Tensor) -> Tensor:
    """Twelve significant bits, by arithmetic."""
    mantissa, exponent = torch.frexp(norms)
    return torch.ldexp(torch.floor(mantissa * 4096 + 0.5) / 4096, exponent)


@torch.inference_mode()
def pruned_nll(model: Any, tokens: Tensor, keep_ratio: str, prune_after: int) -> Tensor:
    """[texts, length - 1] NLL in nats of tokens [texts, length]; the model is under stock attention."""
    cache, ratio, losses = DynamicCache(), Fraction(keep_ratio), []
    for step in range(tokens.shape[1] - 1):
        position = torch.full((tokens.shape[0], 1), step)
        out = model(
            input_ids=tokens[:, step : step + 1], position_ids=position, past_key_values=cache, use_cache=True
        )
        losses.append(
            functional.cross_entropy(out.logits[:, -1].float(), tokens[:, step + 1], reduction="none")
        )
        for layer in cache.layers:
            held = layer.keys.shape[2]
            keep = ceil(ratio * held)
            if held >= prune_after and keep < held:
                order = (
                    rounded(layer.keys.float().norm(dim=-1))
                    .argsort(dim=-1, stable=True)[..., :keep]
                    .sort(dim=-1)
                    .values
                )
                for name in ("keys", "values"):
                    entries = getattr(layer, name)
                    width = order[..., None].expand(-1, -1, -1, entries.shape[3])
                    setattr(layer, name, entries.gather(2, width))
    return torch.stack(losses, 1)
