"""What a cell will take, roughly: seconds of one core or GPU, bytes of a worker. No figure of a report rests on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cell import Cell, settings_of
from workers.budget import Schedule
from workers.model_files import ModelFacts
from workers.settings import BATCH_WINDOWS_BYTES, CELLS_BYTES, MAX_BATCH_WINDOWS

FLOPS_PER_SECOND = {"cpu": 4e10, "cuda": 2e13, "mps": 2e12}
SECONDS_PER_PASS_LAYER = {"cpu": 5e-4, "cuda": 3e-4, "mps": 5e-4}
"""Rough rates, for the order of units; the time left is scaled by what units really took."""
TIMED_SHARE = 2.5
"""What a timed run takes for a second of its passes alone: the dense cell twice a round, prunes, clocks (the default sweep)."""
ANSWER_PASSES = 20
"""An answer's passes, and as many again for what is pruned and copied, of a batch of questions."""
ASKED_TOKENS = 24
"""Of a question."""
HARNESS_DOCUMENTS, HARNESS_TOKENS, HARNESS_PASSES = 1000, 400, 8
"""What a document of the harness takes, where only running it can tell."""
PROCESS_BYTES = 600 * 2**20
"""A worker with its libraries and no model."""
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def schedule_of(cell: Cell, steps: int) -> Schedule:
    """The event schedule of a cell's pruning layers over one-token steps."""
    return cell.budget.event_schedule(steps)


@dataclass(frozen=True)
class Passes:
    """What cells of a perplexity unit put through a model: tokens of each window, and passes of each batch of windows."""

    tokens: int
    passes: int

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Passes:
        """One dense pass, each cell's tokens behind its first event, passes shared by the cells."""
        steps = settings_of(cells[0])["window"] - 1
        schedules = [schedule_of(cell, steps) for cell in cells]
        tokens = steps + sum(steps - (schedule.first_event or steps) for schedule in schedules)
        return cls(tokens, 1 + max(schedule.count for schedule in schedules))

    def seconds(self, facts: ModelFacts, device: str, windows: int) -> float:
        """Estimated seconds of a unit of so many windows."""
        return windows * self.tokens * _seconds_per_token(facts, device) + self.passes * _seconds_per_pass(facts, device)


def cell_seconds(facts: ModelFacts, cell: Cell) -> float:
    """Estimated seconds of a generation cell, or of one of the harness's tasks, on one core or one GPU."""
    settings, flops = settings_of(cell), _seconds_per_token(facts, cell.device)
    per_pass = _seconds_per_pass(facts, cell.device)
    if cell.task == "generation":
        per_step = per_pass + settings["batch_size"] * flops
        one = settings["batch_size"] * settings["prompt_tokens"] * flops + settings["new_tokens"] * per_step
        return TIMED_SHARE * one * (settings["max_repeats"] + settings["warmup"])
    documents = settings["limit"] or HARNESS_DOCUMENTS
    return documents * (HARNESS_TOKENS * flops + HARNESS_PASSES * per_pass)


def dense_seconds(facts: ModelFacts, cell: Cell) -> float:
    """Estimated seconds of the dense pass over one window."""
    return settings_of(cell)["window"] * _seconds_per_token(facts, cell.device)


def prompt_seconds(facts: ModelFacts, cell: Cell, length: int, questions: int) -> float:
    """Estimated seconds of the dense pass over the prompts of questions."""
    return questions * length * _seconds_per_token(facts, cell.device)


def retrieval_seconds(facts: ModelFacts, cells: Sequence[Cell], length: int, questions: int) -> float:
    """Estimated seconds of a unit: the prompts once for all cells, then each cell's answers, and what they fork and prune.

    Each answer goes through twice, with the right tokens and with the model's own, and so does a question that is kept out.
    """
    flops, per_pass = _seconds_per_token(facts, cells[0].device), _seconds_per_pass(facts, cells[0].device)
    settings, batches = settings_of(cells[0]), math.ceil(questions / MAX_BATCH_WINDOWS)
    tokens = 2 * (max(settings["digits"]) + (0 if settings["question_pruned"] else ASKED_TOKENS))
    own = questions * tokens * flops + batches * ANSWER_PASSES * per_pass
    return prompt_seconds(facts, cells[0], length, questions) + len(cells) * own


def _seconds_per_token(facts: ModelFacts, device: str) -> float:
    return 2 * max(facts.parameters, 1) / FLOPS_PER_SECOND[device]


def _seconds_per_pass(facts: ModelFacts, device: str) -> float:
    return SECONDS_PER_PASS_LAYER[device] * facts.layers


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
