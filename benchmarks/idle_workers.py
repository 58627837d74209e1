"""Workers that do nothing but answer as real ones do, so that what is measured is the driver; and plans for
them."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cluster.executors import RayExecutor
from pipeline.cluster.placement import Need
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.spec import load_spec
from tools.made_rows import as_given, perplexity_row
from workers.machine.code_digest import code_digest
from workers.messages.work import PerplexityWork, UnitCell, UnitResult, WorkUnit
from workers.texts.windows import Window

os.environ.setdefault("RAY_AUTH_MODE", "token")  # both are read as ray is imported
os.environ.setdefault(
    "RAY_AUTH_TOKEN", secrets.token_hex(32)
)  # a worker that imports this file has its driver's
import ray

SWEEP = """\
name: driver
models: [reference-neox]
datasets: [pydocs]
devices: [cpu]
policies: [knorm, random, streaming, recent, knorm_high, h2o, snapkv, tova]
keep_ratios: [{ratios}]
prune_after: [{thresholds}]
skip_layers: [[], [0], [1], [0, 1], [2]]
perplexity: {{window: 64, stride: 64, windows: 1}}
"""
CELLS = 24
"""Of a unit."""
ROW = as_given(
    "perplexity", perplexity_row(nll=[0.5] * 63, window=64, stride=64, event_steps=[], event_kept=[])
)
"""A window of a cell, as a worker gives it."""


def given_row(cell_id: str, window: Window) -> dict[str, Any]:
    """The row of a cell's window."""
    return ROW | {"cell_id": cell_id, "window_index": window.index, "window_start": window.start}


def result(cells: Sequence[UnitCell], windows: Sequence[Window], seconds: float, node: str) -> UnitResult:
    """What a worker tells of a unit: each window of each cell."""
    rows = [given_row(cell.cell_id, window) for cell in cells for window in windows]
    return UnitResult(rows=rows, seconds=seconds, node=node, device_name="none", code=code_digest())


def windows_of(unit: WorkUnit) -> Sequence[Window]:
    """What a worker is asked to score."""
    assert isinstance(unit.work, PerplexityWork)
    return unit.work.windows


@ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1)
class Idle:
    """Takes what a worker takes and gives what it gives, without the work."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        code_digest()  # reads all files once, as a real worker does while it starts

    @ray.method(num_returns="streaming")
    def run(self, unit: WorkUnit) -> Iterator[UnitResult]:
        yield result(unit.cells, windows_of(unit), 1e-4, "idle")

    @ray.method
    def nothing(self, unit: int) -> int:
        return unit


class IdleExecutor(RayExecutor):
    """The real executor with workers that do nothing."""

    def _new_actor(self, options: dict[str, Any], threads: int) -> Any:
        return Idle.options(**options).remote(threads)

    def wanted(self, queued: Mapping[Need, int]) -> dict[Need, str]:
        """Where nothing waits any more, idle actors stay: those of the next units are up before a clock
        starts."""
        return super().wanted(queued) if queued else {}

    def close(self) -> None:
        """End the actors: the cluster serves the next contestant."""
        for slot in list(self._slots):
            self._drop(slot)


def planned(units: int) -> Plan:
    """A plan of at least so many units of 24 cells each."""
    thresholds = max(1, units * CELLS // (8 * 5 * 99) + 1)
    ratios = ", ".join(f"{i / 100:g}" for i in range(1, 100))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        file.write_text(
            SWEEP.format(ratios=ratios, thresholds=", ".join(str(8 + i) for i in range(thresholds)))
        )
        plan = make_plan(load_spec(str(file), []))
    assert len(plan.units) >= units, f"{len(plan.units)} units, {units} wanted"
    plan.units = plan.units[:units]
    return plan


def of_one_cell(plan: Plan) -> list[PlannedUnit]:
    """The smallest real units."""
    return [replace(unit, cells=unit.cells[:1]) for unit in plan.units]
