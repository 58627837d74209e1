"""Bytes that a worker takes, roughly. No figure of a report rests on them."""

from __future__ import annotations

from pipeline.cell import Cell, settings_of
from workers.model_files import ModelFacts
from workers.settings import BATCH_WINDOWS_BYTES, CELLS_BYTES, MAX_BATCH_WINDOWS

HARNESS_TOKENS = 400
"""Of a document of the harness, where only running it can tell."""
PROCESS_BYTES = 600 * 2**20
"""A worker with its libraries and no model."""
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def worker_bytes(facts: ModelFacts, cell: Cell) -> int:
    """Memory of a worker that does this cell's task, at most: the process, the weights, and what goes through at once."""
    entry = 2 * facts.layers * facts.kv_heads * facts.head_dim * WIDTHS[cell.dtype]
    settings = settings_of(cell)
    if cell.task == "perplexity":
        dense = settings["window"] * entry * 8  # the cache and as much again several times over for activations
        windows = max(1, min(MAX_BATCH_WINDOWS, BATCH_WINDOWS_BYTES // max(1, dense)))
        at_once = windows * dense + CELLS_BYTES
    elif cell.task == "generation":
        at_once = 4 * settings["batch_size"] * (settings["prompt_tokens"] + settings["new_tokens"]) * entry
    else:
        # prompts of a batch and what one cell keeps of them twice; the harness's batches are of the same kind
        length = max(settings["context_tokens"]) if cell.task == "retrieval" else facts.longest(HARNESS_TOKENS)
        at_once = 4 * MAX_BATCH_WINDOWS * length * entry
    return int(least_bytes(facts, cell) + at_once)


def least_bytes(facts: ModelFacts, cell: Cell) -> int:
    """Memory of a worker that has loaded the cell's model and done nothing yet."""
    return PROCESS_BYTES + facts.parameters * WIDTHS[cell.dtype]
