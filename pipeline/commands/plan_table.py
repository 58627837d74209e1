"""``kvsweep plan`` on a terminal: what would run, what would not and why, and what it would cost."""

from __future__ import annotations

import sys
from itertools import groupby

from rich.console import Console
from rich.table import Table

from pipeline.cells.cell import PRUNED_BY, Cell
from pipeline.planning.cell_reach import planned_budget
from pipeline.planning.plan import Plan
from pipeline.planning.wall_clock import WallClock
from pipeline.store.schema import PRUNING
from workers.machine.host import this_machine
from workers.policies.skip_rule import skipped_count

LISTED = 400
SHOWN_OF_ID = 10

SHOWN = ("policy", "keep_ratio", "prune_after", "skip_layers", "protect_sink", "protect_recent")
"""Settings that have a column, or share one."""


def print_plan(plan: Plan, clock: WallClock, every: bool = False) -> None:
    """Cells with their realised budget, then units, dropped combinations, notes and estimates."""
    width = None if sys.stdout.isatty() else 160  # a pipe has no width of its own
    console = Console(width=width, emoji=False)  # "text:notes:" means none
    never = {cell.cell_id for cell in plan.never_prune}
    cells = plan.grid.cells if every else plan.grid.cells[:LISTED]
    for _, group in groupby(cells, key=lambda cell: cell.group):
        console.print(_table(plan, list(group), never, with_ids=every))
    if len(cells) < len(plan.grid.cells):
        console.print(f"... and {len(plan.grid.cells) - len(cells)} more cells (--all lists them)")

    console.print(f"{len(plan.grid.cells)} cells in {len(plan.units)} units")
    for reason, count in plan.grid.dropped.items():
        console.print(f"{count} combinations dropped: {reason}", markup=False)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)

    console.print(f"estimate: {clock}, ", end="", markup=False)
    most = max((unit.need.memory_bytes for unit in plan.units), default=0)
    console.print(f"{most / 2**20:,.0f} MiB per worker at most")
    usable = this_machine().usable_memory_bytes
    if most > usable:
        console.print(
            f"note: that is more than the {usable / 2**20:,.0f} MiB that may be used on this machine",
            markup=False,
        )


def _table(plan: Plan, cells: list[Cell], never: set[str], *, with_ids: bool) -> Table:
    dense = cells[0]
    title = f"{dense.task}: {dense.model} on {dense.dataset}, {dense.device} {dense.dtype}"
    title += "" if dense.bos is None else ", BOS first"
    table = Table(title=_plain(title), title_justify="left")
    for name in (
        "policy",
        "keep_ratio",
        "prune_after",
        "skip_layers",
        "protect",
        "mode",
        "events",
        "realised budget",
        "",
    ):
        table.add_column(name, justify="left" if name in ("policy", "mode", "") else "right")

    if with_ids:
        table.add_column("cell", no_wrap=True)

    layers = plan.resolved.models[dense.model].layers
    for cell in cells:
        budget = planned_budget(cell)
        share = "" if budget is None else f"{budget.over_layers(layers, skipped_count(cell.skip_layers)):.3f}"
        table.add_row(
            cell.policy,
            f"{cell.keep_ratio:g}",
            "-" if cell.prune_after is None else str(cell.prune_after),
            _skipped(cell),
            f"{cell.protect_sink}/{cell.protect_recent}",
            _mode(cell),
            "" if budget is None else str(budget.events),
            share,
            "never prunes" if cell.cell_id in never else "",
            *([cell.cell_id[:SHOWN_OF_ID]] if with_ids else []),
        )
    return table


def _skipped(cell: Cell) -> str:
    """The layers, or the rule that will choose them."""
    skip = cell.skip_layers
    return skip if isinstance(skip, str) else _plain(str(list(skip)))


def _mode(cell: Cell) -> str:
    """The settings without a column of their own that depart
    from the dense cell's: a schedule, a position_mode."""
    own = dict(zip(PRUNED_BY, cell.pruning, strict=True))
    told = {name: value for name, value in own.items() if name not in SHOWN and value != PRUNING[name]}
    return _plain(
        ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in told.items())
    )


def _plain(text: str) -> str:
    """Names are not markup."""
    return text.replace("[", r"\[")
