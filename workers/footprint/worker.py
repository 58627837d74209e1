"""Bytes of a worker beside its units: the process, the self-check, what an allocator keeps."""

from __future__ import annotations

import math

from workers.footprint.perplexity import dense_kept, dense_pass
from workers.footprint.shape import Shape

CHECK_LOGITS_BYTES = 512 * 2**20
"""What the stock model's logits may take at a time in the self-check."""
STARTED_BYTES = 480 * 2**20
"""A worker as it starts: measured 415 MiB alone, 460 beside the driver, 480 as a Ray actor."""
PROCESS_BYTES = STARTED_BYTES + 80 * 2**20
"""The same with the code of a model and what else is imported when it is used (measured: 35 to 60 MiB)."""
CHECK_RATIOS = (0.5, 0.9, 0.3)
"""What the cells of the self-check keep; the first is the one that is judged."""
CHECK_LATE = 128
"""They prune where so many tokens of a long text are still to come, or half of a short one."""
FRAGMENT_BYTES = 208 * 2**20
"""What glibc keeps of freed memory at most, beside what is in use: it takes blocks below
``heap.OWN_PAGES_BYTES`` from its heap, where those that live on part the free ones (measured: 40 to 130 MiB
behind a unit, up to 210 in a worker that has done many)."""


def check_prune_after(length: int) -> int:
    """Tokens that the self-check's cells see of a text before they prune."""
    return max((length - 1) // 2, length - 1 - CHECK_LATE)


def check_bytes(shape: Shape, length: int) -> int:
    """Of the self-check on a text of ``length`` tokens: the stock model's logits twice, or one window and the
    cells on it, whose tokens are scored in tiles; the stock model's are gone by then."""
    logits = min(4 * length * shape.vocabulary, CHECK_LOGITS_BYTES)
    stock = length * (shape.hidden * shape.width + shape.passing) + 2 * logits
    after = check_prune_after(length)
    entries = length + sum(math.ceil(ratio * after) + length - after for ratio in CHECK_RATIOS)
    cells = dense_kept(shape, length) + entries * shape.cached
    return max(stock, max(dense_pass(shape, length), cells) + shape.scoring)


def with_slack(size: int) -> int:
    """With what an allocator keeps of it beyond need."""
    return size + min(size, FRAGMENT_BYTES)
