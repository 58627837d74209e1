"""How long a plan takes on this machine, with how many workers, at the pace that its models were measured to have here.

A model that was never measured on this machine is loaded once, in a process of its own, where the plan is long enough to be worth
it and its weights are here: planning itself imports no torch.
"""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

from pipeline.cluster_head import STORE_BYTES
from pipeline.cutting import PlannedUnit, unit_seconds
from pipeline.placement import Fleet, Need, Node
from pipeline.plan import Plan
from pipeline.seconds import Rates
from workers.gpus import gpu_memory_bytes, list_gpus
from workers.machine import this_machine
from workers.model_files import ModelFacts
from workers.pace import Pace, remembered

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

    def __str__(self) -> str:
        rough = f"; rough, as {', '.join(self.unmeasured)} was not measured on this machine" if self.unmeasured else ""
        return f"{_duration(self.seconds)} with {self.workers} workers on this machine{rough}"


def wall_clock(plan: Plan, *, measure: bool = True) -> WallClock:
    """Of all units of a plan, kind after kind; ``measure``: whether models may be loaded that were never measured here."""
    is_long = sum(unit.cost_seconds for unit in plan.units) >= WORTH_SECONDS
    fleet = _this_machine()
    kinds: defaultdict[Need, list[PlannedUnit]] = defaultdict(list)
    for unit in plan.units:
        kinds[unit.need].append(unit)

    paces: dict[tuple[str, str, str], Pace | None] = {}
    seconds, workers = 0.0, 1
    for need, units in kinds.items():
        first = units[0].cells[0]
        facts, key = plan.resolved.models[first.model], (first.model, first.dtype, first.device)
        if key not in paces:
            paces[key] = _pace(facts, first.dtype, first.device, measure=measure and is_long)
        pace = paces[key]
        rates = Rates.nominal(facts, first.device) if pace is None else Rates.measured(pace)
        at_once = max(1, min(len(units), fleet.places(need)))
        workers = max(workers, at_once)
        taken = [unit_seconds(unit, rates) for unit in units]
        seconds += max(sum(taken) * math.ceil(len(units) / at_once) / (len(units) / at_once) / at_once, max(taken))
    return WallClock(seconds, workers, tuple(sorted({key[0] for key, pace in paces.items() if pace is None})))


def _this_machine() -> Fleet:
    """The one node that a local run has."""
    machine, gpus = this_machine(), list_gpus()[0]
    memory = max(1, machine.free_memory_bytes - STORE_BYTES)
    node = Node("here", machine.usable_cpus, len(gpus), memory, 1, gpu_memory=gpu_memory_bytes() if gpus else None)
    return Fleet(nodes={"here": node})


def _pace(facts: ModelFacts, dtype: str, device: str, *, measure: bool) -> Pace | None:
    """As it was measured here with one thread; measured now where it was not and may be."""
    recall = partial(remembered, facts, dtype, device, 1)
    pace = recall()
    if pace is not None or not measure or not facts.parameters or facts.trust_remote_code or facts.allow_pickle:
        return pace
    command = [sys.executable, "-m", "workers.measure_pace", facts.name, facts.commit or "", dtype, device, "1"]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MEASURING_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return recall()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
