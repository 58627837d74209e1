"""The ceiling: a decoding step reads every weight and every entry held, and no machine reads faster than its memory."""

from __future__ import annotations

import time

import torch
from torch import nn

from workers.clock import synchronize

TRIES = 8
LEAST_BYTES = 2**22


def weight_bytes(model: nn.Module) -> int:
    """Bytes of weights that one decoding step reads: all, but for an input embedding of which it looks up single rows."""
    embedding = model.get_input_embeddings().weight  # pyright: ignore
    head = model.get_output_embeddings().weight  # pyright: ignore
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return total if embedding is head else total - embedding.numel() * embedding.element_size()


def memory_bandwidth(device: torch.device, working_set: int) -> float:
    """Bytes per second that this device copies (read and written) or reads, whichever is more, in a working set of that size.

    The size matters: a small model lives in a processor's cache. Best of several tries, because what disturbs only slows down.
    """
    half = torch.ones(max(working_set, LEAST_BYTES) // 8, dtype=torch.float32, device=device)
    other = torch.empty_like(half)
    whole = torch.ones(2 * half.numel(), dtype=torch.float32, device=device)
    size = whole.numel() * whole.element_size()
    best = 0.0
    for work in (lambda: other.copy_(half), lambda: whole.sum()):
        for _ in range(TRIES):
            synchronize(device)
            begin = time.perf_counter()
            work()
            synchronize(device)
            best = max(best, size / (time.perf_counter() - begin))
    return best
