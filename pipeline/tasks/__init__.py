"""The tasks that a sweep can ask for, by the name that cells, rows and folders of a run have."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.cells.cell import Cell
from pipeline.sweepfile.sweep_keys import SweepSpec
from pipeline.tasks.generation import Generation
from pipeline.tasks.harness import Harness
from pipeline.tasks.perplexity import Perplexity
from pipeline.tasks.retrieval import Retrieval
from pipeline.tasks.task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (Perplexity(), Generation(), Retrieval(), Harness())}
"""In the order in which a grid has their cells."""


def task_of(cell: Cell) -> Task:
    """The task of a cell."""
    return TASKS[cell.task]


def tasks_asked(spec: SweepSpec) -> list[Task]:
    """Those that a sweep has a block for."""
    return [task for task in TASKS.values() if task.block_of(spec) is not None]


def phases() -> list[str]:
    """Names in the order in which units run: timings last, when a machine can be left to them alone."""
    return sorted(TASKS, key=lambda name: TASKS[name].timed)
