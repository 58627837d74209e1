"""How long a plan takes on this machine, with how many workers,
at the pace that its models were measured to have here.

A model that was never measured on this machine is loaded once, in a process of its own, where the plan is
long enough to be worth it and its weights are here: planning itself imports no torch.
"""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass

from pipeline.cells.planned_unit import PlannedUnit
from pipeline.cells.rates import Rates
from pipeline.cluster.cluster_head import STORE_BYTES
from pipeline.cluster.placement import Fleet, Need, Node
from pipeline.planning.cutting import unit_seconds
from pipeline.planning.plan import Plan
from workers.machine.code_digest import ROOT
from workers.machine.gpus import gpu_memory_bytes, list_gpus
from workers.machine.host import this_machine
from workers.models.model_files import ModelFacts
from workers.models.pace import Pace, remembered

WORTH_SECONDS = 60.0
"""Plans that are shorter by nominal rates are not worth measuring a model for."""
MEASURING_SECONDS = 120.0
"""What loading and measuring a model may take."""


@dataclass(frozen=True)
class WallClock:
    """What a plan takes from start to end."""

    seconds: float
    workers: int
    """At once, at most."""
    unmeasured: tuple[str, ...]
    """Models of which only nominal rates are known."""
    without_place: int = 0
    """Units that this machine cannot hold; they are counted as if it could."""
    failed: tuple[str, ...] = ()
    """Models that could not be measured now."""

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        rough = (
            f"; rough, as {', '.join(self.unmeasured)} was not measured on this machine"
            if self.unmeasured
            else ""
        )
        lost = f"; {self.without_place} units find no place on this machine" if self.without_place else ""
        why = (
            f"; measuring {', '.join(self.failed)} failed or took too long (--no-measure leaves it out)"
            if self.failed
            else ""
        )
        return f"{_duration(self.seconds)} with {workers} on this machine{rough}{lost}{why}"


def wall_clock(plan: Plan, *, measure: bool = True) -> WallClock:
    """Of all units of a plan, kind after kind; ``measure``:
    whether models may be loaded that were never measured here."""
    is_long = sum(unit.cost_seconds for unit in plan.units) >= WORTH_SECONDS
    fleet = _this_machine()
    kinds: defaultdict[Need, list[PlannedUnit]] = defaultdict(list)
    for unit in plan.units:
        kinds[unit.need].append(unit)

    paces: dict[tuple[str, str, str], Pace | None] = {}
    failed: set[str] = set()
    seconds, workers, without_place = 0.0, 1, 0
    for need, units in kinds.items():
        first, places = units[0].cells[0], fleet.places(need)
        facts, key = plan.resolved.models[first.model], (first.model, first.dtype, first.device)
        if key not in paces:
            is_plain = facts.parameters > 0 and not (facts.trust_remote_code or facts.allow_pickle)
            may = measure and is_long and places > 0 and is_plain
            paces[key] = remembered(facts, *key[1:], 1) or (_measured(facts, *key[1:]) if may else None)
            failed |= {first.model} if may and paces[key] is None else set()
        pace = paces[key]
        rates = Rates.nominal(facts, first) if pace is None else Rates.measured(pace, facts, first)

        at_once = max(1, min(len(units), places))
        workers, without_place = max(workers, at_once), without_place + (0 if places else len(units))
        taken = [unit_seconds(unit, rates) for unit in units]
        rounds = math.ceil(len(units) / at_once) * at_once / len(units)  # the last round leaves some idle
        seconds += max(sum(taken) * rounds / at_once, max(taken))
    unmeasured = tuple(sorted({key[0] for key, pace in paces.items() if pace is None}))
    return WallClock(seconds, workers, unmeasured, without_place, tuple(sorted(failed)))


def _this_machine() -> Fleet:
    """The one node that a local run has."""
    machine, gpus = this_machine(), list_gpus()[0]
    memory = max(1, machine.free_memory_bytes - STORE_BYTES)
    node = Node(
        "here", machine.usable_cpus, len(gpus), memory, 1, gpu_memory=gpu_memory_bytes() if gpus else None
    )
    return Fleet(nodes={"here": node})


def _measured(facts: ModelFacts, dtype: str, device: str) -> Pace | None:
    """As a process with torch finds it now, with one thread; None where it cannot.

    The process stands where this one does, because a model may be named by a relative path, and imports
    nothing from there.
    """
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from workers.loaded.measure_pace import main; "
        "main(*sys.argv[1:])"
    )
    command = [sys.executable, "-P", "-c", start, facts.name, facts.commit or "", dtype, device, "1"]
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MEASURING_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return remembered(facts, dtype, device, 1)


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
