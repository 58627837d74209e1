"""How long a run will still take: what the plan estimated,
scaled by how long each kind of unit has really taken.

A unit that goes on counts as far as it is: what is done of it teaches how long its kind takes, and only the
rest is left.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

Kind = tuple[str, Hashable]
"""Task, and what else tells units apart."""

PRIOR_UNITS = 0.25
"""What the other kinds say of one counts as much as so many units of its own."""
OLDER_SHARE = 0.9
"""What an ended unit counts for once another of its kind has
ended: a machine may become faster or slower on the way."""
LEAST_SECONDS = 3.0
"""What a unit that goes on says before is too little to go by."""


@dataclass
class _Planned:
    """A unit that has not ended: its kind, its estimate, and how far it is after so many seconds."""

    kind: Kind
    cost: float
    share: float = 0.0
    seconds: float = 0.0


@dataclass
class _Kind:
    """What is left of a kind, and what was seen of it."""

    cost_left: float = 0.0
    units_left: int = 0
    estimated: float = 0.0
    real: float = 0.0
    units: float = 0.0


class TimeLeft:
    """Told of every unit that is planned, moves and ends;
    ``workers(kind)`` is how many of a kind can run at once."""

    def __init__(self, workers: Callable[[Kind], int]) -> None:
        self._workers = workers
        self._units: dict[str, _Planned] = {}
        self._kinds: defaultdict[Kind, _Kind] = defaultdict(_Kind)
        self._going: set[str] = set()
        self._hints: dict[Kind, float] = {}
        self.cost = self.cost_done = 0.0
        """Estimated seconds of all units, and of those that ended."""

    def planned(self, unit_id: str, kind: Kind, cost: float) -> None:
        """A unit that is to run."""
        self._units[unit_id] = _Planned(kind, cost)
        self._kinds[kind].cost_left += cost
        self._kinds[kind].units_left += 1
        self.cost += cost

    def moved(self, unit_id: str, share: float, seconds: float) -> None:
        """A share of its work is done after so many seconds of
        its worker's time; 0 of it where it has to begin again."""
        unit = self._units[unit_id]
        unit.share, unit.seconds = share, seconds
        (self._going.add if share > 0 else self._going.discard)(unit_id)

    def hint(self, kind: Kind, rate: float) -> None:
        """Real seconds per estimated one, by a measurement of
        a kind's model; counts until units have told better."""
        self._hints[kind] = rate

    def estimate(self, unit_id: str) -> float:
        """Seconds of a unit before anything of it was done, at the pace of its model where that was
        measured."""
        unit = self._units[unit_id]
        return unit.cost * self._hints.get(unit.kind, 1.0)

    def ended(self, unit_id: str, seconds: float) -> None:
        """It ended after this many seconds of its worker's time, which is 0 where it never ran."""
        unit = self._units.pop(unit_id)
        self._going.discard(unit_id)
        self.cost_done += unit.cost
        kind = self._kinds[unit.kind]
        kind.cost_left -= unit.cost
        kind.units_left -= 1
        if seconds > 0:
            kind.estimated = OLDER_SHARE * kind.estimated + unit.cost
            kind.real = OLDER_SHARE * kind.real + seconds
            kind.units = OLDER_SHARE * kind.units + 1

    def share(self) -> float:
        """Of the estimated work, what is done."""
        going = sum(self._units[name].cost * self._units[name].share for name in self._going)
        return (self.cost_done + going) / self.cost if self.cost else 1.0

    def seconds(self) -> float | None:
        """Wall time left; None before anything has moved."""
        seen, done = self._seen(), self._done_of_kinds()
        if not seen:
            return None

        left = 0.0
        for name, kind in self._kinds.items():
            if kind.units_left:
                at_once = max(1, min(kind.units_left, self._workers(name)))
                # The last round leaves some workers idle.
                rounds = math.ceil(kind.units_left / at_once) * at_once / kind.units_left
                cost_left = max(0.0, kind.cost_left - done[name])
                left += cost_left * math.exp(_rate(name, seen)) * rounds / at_once
        return left

    def _seen(self) -> dict[Kind, tuple[float, float, float]]:
        """Estimated and real seconds of what is done of each kind, and of how many units that is."""
        seen = {
            name: (kind.estimated, kind.real, kind.units) for name, kind in self._kinds.items() if kind.units
        }
        for unit in (self._units[name] for name in self._going):
            if unit.seconds >= LEAST_SECONDS:
                estimated, real, units = seen.get(unit.kind, (0.0, 0.0, 0.0))
                seen[unit.kind] = (
                    estimated + unit.cost * unit.share,
                    real + unit.seconds,
                    units + unit.share,
                )
        return seen or {kind: (1.0, rate, PRIOR_UNITS) for kind, rate in self._hints.items() if rate > 0}

    def _done_of_kinds(self) -> defaultdict[Kind, float]:
        """Estimated seconds of what is done of the units that go on."""
        done: defaultdict[Kind, float] = defaultdict(float)
        for unit in (self._units[name] for name in self._going):
            done[unit.kind] += unit.cost * unit.share
        return done


def _rate(kind: Kind, seen: dict[Kind, tuple[float, float, float]]) -> float:
    """Logarithm of real seconds per estimated one: what a kind's
    own units say, else its task's other kinds, else all."""
    others = _mean((known for known in seen if known[0] == kind[0]), seen)
    if others is None:
        others = _mean(seen, seen)
    assert others is not None
    if kind not in seen:
        return others
    own, units = _mean([kind], seen), seen[kind][2]
    assert own is not None
    return (units * own + PRIOR_UNITS * others) / (units + PRIOR_UNITS)


def _mean(kinds: Iterable[Kind], seen: dict[Kind, tuple[float, float, float]]) -> float | None:
    rates = [math.log(seen[name][1] / seen[name][0]) for name in kinds]
    return sum(rates) / len(rates) if rates else None
