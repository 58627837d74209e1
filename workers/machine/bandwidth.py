"""The ceiling: a decoding step reads every weight and every entry held, no faster than memory gives them.

Of a mixture of experts it reads those that its tokens are sent to.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator

import torch
from torch import nn

from workers.machine.clock import synchronize

TRIES = 8
LEAST_BYTES = 2**22


def weight_bytes(model: nn.Module, batch: int = 1) -> int:
    """Bytes of weights that one decoding step of ``batch`` texts reads: all, but for an input embedding of
    which it looks up single rows, and for experts that no token is sent to.

    With k of E experts for each token a step reads min(E, k * batch) of a layer's at most: exactly that for
    one text, and fewer for several, where tokens share experts.
    """
    embedding = model.get_input_embeddings().weight  # pyright: ignore
    head = model.get_output_embeddings().weight  # pyright: ignore
    total = _bytes(model)
    if embedding is not head:
        total -= embedding.numel() * embedding.element_size()
    for experts, count in _routed_experts(model):
        total -= _bytes(experts) // count * (count - min(count, _chosen(model, count) * batch))
    return total


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _routed_experts(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Modules that hold a layer's experts, and how many: a list of modules, or weights [experts, ...] that
    are told which to use.

    Code that is told nothing multiplies by all of its experts, as Llama 4's does.
    """
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] != "experts":
            continue
        if isinstance(module, nn.ModuleList):
            yield module, len(module)
            continue
        sizes = {p.shape[0] for p in module.parameters()}
        is_told = any("top_k" in parameter for parameter in inspect.signature(module.forward).parameters)
        if is_told and len(sizes) == 1 and max(p.ndim for p in module.parameters()) == 3:
            yield module, sizes.pop()


def _chosen(model: nn.Module, count: int) -> int:
    """Experts for each token; the most of any layer, and all where the configuration does not say."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)  # pyright: ignore
    return max(chosen) if isinstance(chosen, list | tuple) else chosen or count


def memory_bandwidth(device: torch.device, working_set: int) -> float:
    """Bytes per second that this device copies (read and written) or reads, whichever is more, in a working
    set of that size.

    The size matters: a small model lives in a processor's cache. Best of several tries, because what disturbs
    only slows down.
    """
    whole = torch.ones(max(working_set, LEAST_BYTES) // 8 * 2, dtype=torch.float32, device=device)
    half, other = whole.chunk(2)
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
