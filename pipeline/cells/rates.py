"""How fast a worker puts tokens and passes through a model, roughly: what units take follows from it.

Nominal rates of a kind of device cut a sweep into units; rates that were measured on a machine say how long a
run will take there. No figure of a report rests on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cells.cell import Cell
from pipeline.cells.model_size import shape_of
from workers.models.model_files import ModelFacts
from workers.models.pace import Pace

FLOPS_PER_SECOND = {"cpu": 4e10, "cuda": 2e13, "mps": 2e12}
SECONDS_PER_PASS_LAYER = {"cpu": 5e-4, "cuda": 3e-4, "mps": 5e-4}
"""Of a nominal device: one core, one GPU."""
ANSWERED_BYTES_PER_SECOND = {"cpu": 4e8, "cuda": 8e10, "mps": 8e9}
"""Of the keys and values of a cell's answers: they are forked, copied for each answer and read by every pass
of it (measured on one core with three models, of 3, 12 and 46 KB a token: 4.1e8)."""


@dataclass(frozen=True)
class Rates:
    """Seconds of a token among many of one pass, of a pass beside its tokens, of a token held while a
    question is answered."""

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
