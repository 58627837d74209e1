"""Plain rotary embeddings, undone and redone: a stored key turned to a later position.

A key k at position p is stored as R(p) k, where R(p) turns pairs of coordinates by angles p * frequency. R(d)
R(p) = R(p + d), so a stored key is moved by turning it again, and queries see nothing but differences of
positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from workers.models.positions import PLAIN_ROTARY


@dataclass(frozen=True)
class Rotary:
    """How a model turns its keys:
    coordinate i of the first ``2 * len(frequencies)`` with coordinate i + len(frequencies)."""

    frequencies: Tensor
    """[pairs] float32, radians per position."""

    @classmethod
    def of(cls, config: PretrainedConfig) -> Rotary:
        """Raises ValueError for a model whose rotation is not the plain one, or not known to be."""
        text = config.get_text_config()
        if text.model_type not in PLAIN_ROTARY:
            raise ValueError(
                f"policy streaming_rolled turns stored keys, and whether models of type {text.model_type} "
                f"turn theirs in the plain way is not known; it knows {', '.join(PLAIN_ROTARY)}; use "
                "streaming"
            )
        rope = getattr(text, "rope_parameters", None) or {}
        if rope.get("rope_type") != "default":
            kind = rope.get("rope_type", "of several types of layers")
            raise ValueError(
                "policy streaming_rolled turns stored keys in the plain way, and this model's rotation is "
                f"{kind}; use streaming"
            )

        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        turned = int(width * rope.get("partial_rotary_factor", 1.0))
        return cls(1.0 / rope["rope_theta"] ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned))

    def turn(self, keys: Tensor, by: Tensor) -> Tensor:
        """Keys [batch, kv_heads, n, head_dim] ``by`` [batch, kv_heads, n] positions further; by 0 they are
        the same bits.

        Raises ValueError for 16 bits, in which what each prune rounds adds up.
        """
        if keys.dtype != torch.float32:
            raise ValueError(
                "policy streaming_rolled turns keys at every prune, and in 16 bits the rounding adds up: use "
                "float32"
            )
        angles = by[..., None].float() * self.frequencies.to(keys.device)
        cos, sin = angles.cos(), angles.sin()
        half = cos.shape[-1]
        one, other, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
        return torch.cat([one * cos - other * sin, other * cos + one * sin, rest], -1)


def places_closed(index: Tensor, entries: int | Tensor, kept: int | Tensor) -> Tensor:
    """[batch, kv_heads, k]:
    how far kept entries move, so that what is held lies contiguously before the next token.

    index [batch, kv_heads, k], ascending, into ``entries`` entries that lie contiguously themselves, of which
    ``kept`` stay: an entry moves by how many are dropped behind it. Numbers are ints or [batch, 1, 1].
    """
    rank = torch.arange(index.shape[2], device=index.device)
    return ((entries - kept) - (index - rank)).clamp(min=0)
