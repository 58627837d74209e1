"""Bytes that a worker takes, roughly. No figure of a report rests on them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cell import Cell, settings_of
from workers.footprint import (
    HARNESS_LONGEST,
    PROCESS_BYTES,
    Shape,
    check_bytes,
    generation_bytes,
    harness_bytes,
    perplexity_bytes,
    retrieval_bytes,
    with_slack,
)
from workers.model_files import ModelFacts

HARNESS_TOKENS = 400
"""Of a document of the harness, where only running it can tell."""
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def shape_of(facts: ModelFacts, cell: Cell) -> Shape:
    """A model as far as bytes go, in a cell's dtype on its device; what its config.json does not say is taken from its keys."""
    heads = facts.heads or facts.kv_heads
    hidden = facts.hidden or heads * facts.head_dim
    inner, width = facts.inner or 4 * hidden, WIDTHS[cell.dtype]
    return Shape(
        facts.layers, heads, facts.kv_heads, facts.head_dim, hidden, inner, facts.vocabulary or 0, width, cell.device
    )  # fmt: skip


def worker_bytes(facts: ModelFacts, cells: Sequence[Cell], texts: int = 1) -> int:
    """Memory of a worker that does a unit of these cells, which are of one task and target.

    The process, the weights, and the self-check or what goes through at once, by the accounting that sizes a worker's
    batches (``workers.footprint``). ``texts``: windows, or questions, of the unit.
    """
    first, settings = cells[0], settings_of(cells[0])
    shape, weights = shape_of(facts, first), _weight_bytes(facts, first)
    if first.task == "perplexity":
        length = settings["window"]
        at_once = perplexity_bytes(shape, length, texts, cells)
    elif first.task == "generation":
        length = settings["prompt_tokens"] + settings["new_tokens"]
        at_once = generation_bytes(
            shape, settings["prompt_tokens"], settings["batch_size"], settings["new_tokens"], cells, weights
        )  # fmt: skip
    elif first.task == "retrieval":
        length = max(settings["context_tokens"])
        at_once = retrieval_bytes(shape, length, texts, cells)
    else:
        length = min(facts.longest(HARNESS_TOKENS), HARNESS_LONGEST)
        at_once = max(harness_bytes(shape, length, cell) for cell in cells)
    running = PROCESS_BYTES + weights + with_slack(max(at_once, check_bytes(shape, length)))
    return max(running, least_bytes(facts, first))


def least_bytes(facts: ModelFacts, cell: Cell) -> int:
    """Memory of a worker that has loaded the cell's model and done nothing yet.

    Files of another dtype are in memory beside what is made of them until all of it is made.
    """
    weights = _weight_bytes(facts, cell)
    is_converted = abs(facts.stored_bytes - weights) > weights // 100
    return PROCESS_BYTES + weights + (facts.stored_bytes if is_converted else 0)


def _weight_bytes(facts: ModelFacts, cell: Cell) -> int:
    """Of the weights as loaded; roughly, by the shape, where their files are not here yet."""
    return (facts.parameters or shape_of(facts, cell).parameters) * WIDTHS[cell.dtype]
