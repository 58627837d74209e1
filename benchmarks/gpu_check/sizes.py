"""How much is done: for eight minutes of a GPU, and small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RATIOS = (1.0, 0.5, 0.1)
"""Kept by the cells that are timed; 1.0 is the dense one."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    models: tuple[str, ...]
    policies: tuple[str, ...]
    check_tokens: int
    exact_tokens: int
    large: dict[str, Any]
    """Settings of the large model that differ from LARGE."""
    windows: int
    window_lengths: tuple[int, ...]
    prune_after: int
    reference_tokens: int
    """Fed one by one to tell what one token per pass takes."""
    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int
    rounds: int


FULL = Sizes(
    models=("reference-neox", "reference-llama"),
    policies=("knorm", "random", "streaming", "h2o", "snapkv"),
    check_tokens=1024,
    exact_tokens=512,
    large={},
    windows=8,
    window_lengths=(2048, 32768),
    prune_after=1024,
    reference_tokens=256,
    prompts=(4096, 8192, 16384, 32768),
    batches=(1, 8),
    new_tokens=32,
    rounds=3,
)
SMALL = Sizes(
    models=("reference-llama",),
    policies=("knorm", "h2o"),
    check_tokens=64,
    exact_tokens=64,
    large={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    },
    windows=2,
    window_lengths=(64, 256),
    prune_after=32,
    reference_tokens=16,
    prompts=(64, 128),
    batches=(1, 2),
    new_tokens=4,
    rounds=1,
)
