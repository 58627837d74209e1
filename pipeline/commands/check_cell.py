"""``kvsweep check``: one cell as a run evaluates it and by the reference, token by token."""

from __future__ import annotations

import csv as csv_files
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cells.cell import Cell
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.planning_progress import PlanningProgress
from pipeline.planning.spec import load_spec, printable
from pipeline.planning.unit_inputs import work_unit
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.tasks import TASKS
from pipeline.tasks.perplexity import Perplexity
from workers.messages.work import PerplexityWork

if TYPE_CHECKING:
    from workers.cell_check import CellCheck

PARTED = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.05}
"""Nats of a token beyond which two evaluations part: more than rounding in a dtype explains while the same
entries are kept."""
LEAST_OF_ID = 4


class CheckError(RuntimeError):
    """A cell that failed in one of the two ways."""


def check_cell(sweep: str | None, overrides: list[str], cell_id: str, windows: int, csv: str | None) -> bool:
    """Print what both ways give; whether they agree on average within what rounding explains.

    Raises SweepError for bad input, before a model is loaded, and CheckError where the cell fails.
    """
    with PlanningProgress() as said:
        plan = make_plan(load_spec(sweep, overrides), said=said)
    cell = _chosen(plan, cell_id)
    file = _writable(csv)
    unit = next(unit for unit in plan.units if any(each.cell_id == cell.cell_id for each in unit.cells))
    work = work_unit(plan, unit)

    from workers.cell_check import check_cell as checked

    try:
        found = checked(work, cell.cell_id, windows)
    except Exception as error:
        raise CheckError(
            f"cell {cell.cell_id} fails: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error

    assert isinstance(work.work, PerplexityWork)
    print("\n".join(_told(cell, work.work, found, company=len(unit.cells) - 1)))
    if file is not None:
        _write(file, work.work, found)
    return float(np.abs(found.differences).mean()) <= PARTED[cell.dtype]


def _chosen(plan: Plan, cell_id: str) -> Cell:
    """The one cell whose id begins so.

    Raises SweepError where there is none or several, or its task has no reference.
    """
    listed = (
        "`kvsweep plan SWEEP --all`, with the same --set, lists the cells with the beginnings of their ids"
    )

    if len(cell_id) < LEAST_OF_ID:
        raise SweepError(
            [f"--cell {printable(cell_id)}: give {LEAST_OF_ID} letters of a cell's id at least; {listed}"]
        )

    found = [cell for cell in plan.grid.cells if cell.cell_id.startswith(cell_id)]
    if len(found) != 1:
        count = "no cell of the sweep has" if not found else f"{len(found)} cells have"
        raise SweepError([f"--cell {printable(cell_id)}: {count} an id that begins so; {listed}"])

    if not isinstance(TASKS[found[0].task], Perplexity):
        raise SweepError(
            [
                f"--cell {printable(cell_id)}: is a cell of {found[0].task}; "
                "only the likelihood of a text can be evaluated in both ways, token by token; "
                "name a cell of perplexity with the same settings"
            ]
        )

    return found[0]


def _writable(csv: str | None) -> Path | None:
    """Raises SweepError where no file can be made."""
    if csv is None:
        return None
    told = "is a directory, or lies in none that can be written to; name a file in a directory of yours"

    try:
        file = Path(csv).expanduser()
        is_fit = not file.is_dir() and os.access(file if file.exists() else file.parent, os.W_OK)
    except (OSError, RuntimeError, ValueError) as error:
        # A name that is too long, nobody's home, a name with a zero byte.
        raise SweepError([f"--csv {printable(csv)}: names no file ({error})"]) from error

    if not is_fit:
        raise SweepError([f"--csv {printable(csv)}: {told}"])
    return file


def _told(cell: Cell, work: PerplexityWork, found: CellCheck, company: int) -> list[str]:
    """The comparison in a few lines."""
    differences, length = found.differences, work.tokens.shape[1]
    windows = "1 window" if len(differences) == 1 else f"{len(differences)} windows"
    largest = float(np.abs(differences).max())
    limit = PARTED[cell.dtype]
    after = "-" if cell.prune_after is None else cell.prune_after
    lines = [
        f"cell {cell.cell_id}: {cell.policy} {cell.keep_ratio:g}, prune_after {after}, "
        f"{cell.model} on {cell.dataset}, {cell.dtype} on {cell.device}, {windows} of {length} tokens",
        f"by events:        PPL {_perplexity(found.events.nll)}, {found.events.passes} passes behind the "
        f"shared one, windows at a time: {found.windows}, beside {company} cells",
        f"                  stored as {found.storage}",
        f"by the reference: PPL {_perplexity(found.reference.nll)}, {found.reference.passes} passes of one "
        "token",
        f"prune events {found.events.prune_events} and {found.reference.prune_events}",
        f"mean difference of a token's NLL {float(np.abs(differences).mean()):.2g} nats, "
        f"largest {largest:.2g} ({_token(work, found, int(np.abs(differences).argmax()))})",
    ]

    apart = np.flatnonzero(np.abs(differences) > limit)
    if not len(apart):
        return [*lines, f"they never part: no token differs by more than {limit:g} nats"]
    first = _token(work, found, int(apart[0]))
    return [
        *lines,
        f"they part by more than {limit:g} nats at {len(apart)} of {differences.size} tokens, "
        f"first at {first}",
    ]


def _token(work: PerplexityWork, found: CellCheck, place: int) -> str:
    """Which token it is, and what it got in both ways."""
    row, step = divmod(place, found.events.nll.shape[1])
    both = (
        f"{float(found.events.nll[row, step]):.5f} by events, {float(found.reference.nll[row, step]):.5f} by "
        "the reference"
    )
    return f"window {work.windows[row].index}, token {step + 1}: {both}"


def _perplexity(nll: np.ndarray) -> str:
    return f"{math.exp(float(nll.mean())):.6g}"


def _write(file: Path, work: PerplexityWork, found: CellCheck) -> None:
    """A line for each predicted token, both NLLs with all their digits. Raises SweepError where the file
    cannot be written."""
    try:
        with file.open("w", newline="", encoding="utf-8") as stream:
            table = csv_files.writer(stream)
            table.writerow(["window_index", "token", "nll_events", "nll_reference"])
            for row, window in enumerate(work.windows[: len(found.events.nll)]):
                both = zip(found.events.nll[row].tolist(), found.reference.nll[row].tolist(), strict=True)
                table.writerows([window.index, step + 1, *pair] for step, pair in enumerate(both))
    except OSError as error:
        raise SweepError([f"--csv {file}: {error.strerror or error}"]) from error
