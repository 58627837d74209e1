"""Bytes of prompts that caches go on from: questions of retrieval, and timed generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workers.footprint.shape import AT_ONCE_BYTES, MAX_AT_ONCE, Prunes, Shape, observation_of, with_room
from workers.policies.observation import widest
from workers.policies.skip_rule import skipped_count

QUESTION_TOKENS = 64
"""Tokens of a question and its answer at most, roughly."""


def fork_bytes(shape: Shape, cell: Prunes, length: int, rows: int) -> int:
    """A cache of ``rows`` texts behind a prompt of ``length`` tokens:
    entries with their room, what its policy observes."""
    skipped = min(shape.layers, skipped_count(cell.skip_layers))
    kept = cell.budget.kept(length)
    positions = 4 * shape.kv_heads
    pruned = (shape.layers - skipped) * with_room(kept) * (shape.entry + positions)
    return rows * (pruned + skipped * with_room(length) * shape.entry) + shape.observing(
        observation_of(cell.policy), rows, kept
    )


def questions_at_once(shape: Shape, length: int) -> int:
    """Questions about prompts of ``length`` tokens that go through together, whatever cells answer them.

    The dense one's cache holds each prompt twice, beside the one that all cells go on from.
    """
    each = max(
        length * (shape.cached + shape.passing),
        length * shape.cached + 2 * with_room(length + QUESTION_TOKENS) * shape.cached,
    )
    return max(1, min(MAX_AT_ONCE, AT_ONCE_BYTES // each))


def retrieval_bytes(shape: Shape, length: int, questions: int, cells: Sequence[Prunes]) -> int:
    """Of a unit of so many questions about prompts of ``length`` tokens."""
    rows = min(questions, questions_at_once(shape, length))
    prompts = rows * length * shape.cached
    forks = max((fork_bytes(shape, cell, length + QUESTION_TOKENS, 2 * rows) for cell in cells), default=0)
    # of the dense cache, with the entries of the question, once joined and once apart
    layer = 4 * rows * length * shape.entry
    asking = 2 * rows * (QUESTION_TOKENS * shape.passing + 12 * shape.vocabulary)

    largest = max(prefill_bytes(shape, cells, rows, length), max(forks, layer) + asking)
    return prompts + largest + noted_bytes(shape, cells, rows, length)


def prefill_bytes(shape: Shape, cells: Iterable[Prunes], rows: int, length: int) -> int:
    """A pass over prompts for these cells, without its cache."""
    return shape.pass_over(rows, length, probed=any(observation_of(cell.policy).probes for cell in cells))


def noted_bytes(shape: Shape, cells: Iterable[Prunes], rows: int, length: int) -> int:
    """What a pass over prompts notes for the policies of cells."""
    observed = widest(observation_of(cell.policy) for cell in cells)
    return sum(shape.observing(each, rows, length) for each in observed.values())


def generation_bytes(
    shape: Shape, prompt: int, batch: int, new_tokens: int, cells: Sequence[Prunes], weights: int
) -> int:
    """Of a timed unit; ``weights``: the working set in which the memory's bandwidth is measured before it."""
    length = prompt + new_tokens
    held = batch * with_room(length) * shape.cached
    noted = max((shape.observing(observation_of(cell.policy), batch, length) for cell in cells), default=0)
    logits = 3 * batch * shape.vocabulary * 4
    return max(held + prefill_bytes(shape, cells, batch, prompt) + noted + logits, weights)
