"""Bytes of the harness's tasks: contexts that go through together, and continuations that go on from them."""

from __future__ import annotations

from workers.footprint.prompts import QUESTION_TOKENS, fork_bytes, noted_bytes, prefill_bytes
from workers.footprint.shape import AT_ONCE_BYTES, MAX_AT_ONCE, Prunes, Shape, with_room

ROWS = 16
"""Continuations that go on together from the contexts of a batch of the harness, at least, where they fit."""
HARNESS_BYTES = 224 * 2**20
"""What lm-evaluation-harness and what it reads its datasets with add to it (measured: 80 MiB, and tables),
and what is kept of freed memory beyond FRAGMENT_BYTES where many caches are pruned at once (measured: 80 MiB
behind 16 contexts of SmolLM2)."""
HARNESS_LONGEST = 8192
"""Contexts of the harness's tasks are planned as if they were as long as the model takes, and no longer than
this: only running a task tells. Longer ones make a worker exceed its plan, which it says."""


def contexts_at_once(shape: Shape, length: int) -> int:
    """Contexts of ``length`` tokens of the harness that go through together, each with a continuation that
    goes on from it."""
    each = max(
        length * (shape.cached + shape.passing), length * shape.cached + with_room(length) * shape.cached
    )
    return max(1, min(MAX_AT_ONCE, AT_ONCE_BYTES // each))


def rows_at_once(shape: Shape, length: int, contexts: int) -> int:
    """Continuations that go on together from a batch of so many contexts."""
    left = AT_ONCE_BYTES - contexts * length * shape.cached
    return max(1, min(max(ROWS, contexts), left // (with_room(length) * shape.cached)))


def harness_bytes(shape: Shape, longest: int, cell: Prunes) -> int:
    """Of one of the harness's tasks with contexts of up to ``longest`` tokens, which need not be the ones
    that take most."""
    lengths = {min(longest, HARNESS_LONGEST) // part or 1 for part in (1, 2, 4, 8)}
    return max(_contexts_bytes(shape, length, cell) for length in lengths) + HARNESS_BYTES


def _contexts_bytes(shape: Shape, length: int, cell: Prunes) -> int:
    contexts = contexts_at_once(shape, length)
    rows = rows_at_once(shape, length, contexts)
    prompts = contexts * length * shape.cached
    going = fork_bytes(shape, cell, length, rows) + rows * (
        QUESTION_TOKENS * shape.passing + 12 * shape.vocabulary
    )
    noted = noted_bytes(shape, [cell], contexts, length)
    return prompts + max(prefill_bytes(shape, [cell], contexts, length), going) + noted + shape.scoring
