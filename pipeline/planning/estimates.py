"""Bytes that a worker takes, roughly. No figure of a report rests on them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cells.cell import Cell
from pipeline.cells.model_size import shape_of, weight_bytes
from pipeline.tasks import task_of
from workers.footprint.worker import PROCESS_BYTES, check_bytes, with_slack
from workers.models.model_files import ModelFacts


def worker_bytes(facts: ModelFacts, cells: Sequence[Cell], texts: int = 1) -> int:
    """Memory of a worker that does a unit of these cells, which are of one task and target.

    The process, the weights, and the self-check or what goes through at once, by the accounting that sizes a
    worker's batches (``workers.footprint``). ``texts``: windows, or questions, of the unit.
    """
    first = cells[0]
    length, at_once = task_of(first).bytes_at_once(facts, cells, texts)

    checked = check_bytes(shape_of(facts, first), length)
    running = PROCESS_BYTES + weight_bytes(facts, first) + with_slack(max(at_once, checked))
    return max(running, least_bytes(facts, first))


def least_bytes(facts: ModelFacts, cell: Cell) -> int:
    """Memory of a worker that has loaded the cell's model and done nothing yet.

    Files of another dtype are in memory beside what is made of them until all of it is made.
    """
    weights = weight_bytes(facts, cell)
    is_converted = abs(facts.stored_bytes - weights) > weights // 100
    return PROCESS_BYTES + weights + (facts.stored_bytes if is_converted else 0)
