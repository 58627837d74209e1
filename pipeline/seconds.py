"""What units will take, roughly, in seconds of one worker: from the tokens and passes that they put through a model.

With nominal rates of a kind of device these seconds cut a sweep into units; with rates that were measured on a machine they say
how long a run will take there. No figure of a report rests on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cell import Cell, settings_of
from pipeline.estimates import shape_of
from workers.budget import Schedule
from workers.footprint import MAX_AT_ONCE
from workers.model_files import ModelFacts
from workers.pace import Pace

FLOPS_PER_SECOND = {"cpu": 4e10, "cuda": 2e13, "mps": 2e12}
SECONDS_PER_PASS_LAYER = {"cpu": 5e-4, "cuda": 3e-4, "mps": 5e-4}
"""Of a nominal device: one core, one GPU."""
RUN_SECONDS = 0.25
"""Of a timed run beside its passes: memory given back, garbage collected, prunes, clocks (the default sweep)."""
ANSWERED_BYTES_PER_SECOND = {"cpu": 4e8, "cuda": 8e10, "mps": 8e9}
"""Of the keys and values of a cell's answers: they are forked, copied for each answer and read by every pass of it (measured on
one core with three models, of 3, 12 and 46 KB a token: 4.1e8)."""
ASKED_TOKENS = 16
"""Of a question."""
HARNESS_DOCUMENTS, HARNESS_TOKENS, HARNESS_PASSES = 1000, 400, 8
"""What a document of the harness takes, where only running it can tell."""


@dataclass(frozen=True)
class Rates:
    """Seconds of a token among many of one pass, of a pass beside its tokens, of a token held while a question is answered."""

    token: float
    single_pass: float
    held_token: float

    @classmethod
    def nominal(cls, facts: ModelFacts, cell: Cell) -> Rates:
        """Of a model on a nominal device, the same everywhere."""
        token = 2 * max(facts.parameters, 1) / FLOPS_PER_SECOND[cell.device]
        return cls(token, SECONDS_PER_PASS_LAYER[cell.device] * facts.layers, _held_seconds(facts, cell))

    @classmethod
    def measured(cls, pace: Pace, facts: ModelFacts, cell: Cell) -> Rates:
        """As they were found on a machine; what is held is read at a nominal rate."""
        return cls(pace.token_seconds, pace.pass_seconds, _held_seconds(facts, cell))


def _held_seconds(facts: ModelFacts, cell: Cell) -> float:
    """Of one token that a cell's cache holds, all layers together, while one answer is made."""
    return shape_of(facts, cell).cached / ANSWERED_BYTES_PER_SECOND[cell.device]


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

    def seconds(self, rates: Rates, windows: int) -> float:
        """Of a unit of so many windows."""
        return windows * self.tokens * rates.token + self.passes * rates.single_pass


def dense_seconds(cell: Cell, rates: Rates) -> float:
    """Of the dense pass over one window."""
    return settings_of(cell)["window"] * rates.token


def prompt_seconds(rates: Rates, length: int, questions: int) -> float:
    """Of the dense pass over the prompts of questions."""
    return questions * length * rates.token


def retrieval_seconds(cells: Sequence[Cell], rates: Rates, length: int, questions: int) -> float:
    """Of a unit: the prompts once for all cells, then each cell's answers, and what they fork and prune.

    Each answer goes through twice, with the right tokens and with the model's own, and so does a question that is kept out.
    """
    settings, batches = settings_of(cells[0]), math.ceil(questions / MAX_AT_ONCE)
    answered, is_asked_apart = max(settings["digits"]) + 1, not settings["question_pruned"]

    tokens = 2 * questions * (answered + ASKED_TOKENS * is_asked_apart)
    passes = batches * (answered + is_asked_apart)
    each = tokens * rates.token + passes * rates.single_pass
    held = 2 * questions * length * sum(cell.keep_ratio for cell in cells)
    return prompt_seconds(rates, length, questions) + len(cells) * each + held * rates.held_token


def generation_seconds(cells: Sequence[Cell], rates: Rates) -> float:
    """Of all rounds of timed cells, in each of which the dense one runs twice."""
    settings = settings_of(cells[0])
    per_step = rates.single_pass + settings["batch_size"] * rates.token
    one = settings["batch_size"] * settings["prompt_tokens"] * rates.token + settings["new_tokens"] * per_step
    return (len(cells) + 1) * (settings["max_repeats"] + settings["warmup"]) * (one + RUN_SECONDS)


def harness_seconds(cell: Cell, rates: Rates) -> float:
    """Of one of the harness's tasks."""
    documents = settings_of(cell)["limit"] or HARNESS_DOCUMENTS
    return documents * (HARNESS_TOKENS * rates.token + HARNESS_PASSES * rates.single_pass)
