"""How long a run will still take: what the plan estimated, scaled by how long each kind of unit has really taken."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable

Kind = tuple[str, Hashable]
"""Task, and what else tells units apart."""

PRIOR_UNITS = 0.25
"""What the other kinds say of one counts as much as so many units of its own."""


class TimeLeft:
    """Told of every unit that is planned and every one that ends; ``workers(kind)`` is how many of a kind can run at once."""

    def __init__(self, workers: Callable[[Kind], int]) -> None:
        self._workers = workers
        self._cost_left: defaultdict[Kind, float] = defaultdict(float)
        self._units_left: Counter[Kind] = Counter()
        self._seen: dict[Kind, tuple[float, float, int]] = defaultdict(lambda: (0.0, 0.0, 0))
        """Estimated and real seconds of the units of a kind that ended, and their count."""

    def planned(self, kind: Kind, cost: float) -> None:
        """A unit that is to run."""
        self._cost_left[kind] += cost
        self._units_left[kind] += 1

    def ended(self, kind: Kind, cost: float, seconds: float) -> None:
        """It ended after this many seconds of its worker's time, which is 0 where it never ran."""
        self._cost_left[kind] -= cost
        self._units_left[kind] -= 1
        if seconds > 0:
            estimated, real, count = self._seen[kind]
            self._seen[kind] = estimated + cost, real + seconds, count + 1

    def seconds(self) -> float | None:
        """Wall time left; None before anything has ended."""
        if not self._seen:
            return None
        left = 0.0
        for kind, units in self._units_left.items():
            if units:
                at_once = max(1, min(units, self._workers(kind)))
                rounds = math.ceil(units / at_once) * at_once / units  # the last round leaves some workers idle
                left += self._cost_left[kind] * math.exp(self._rate(kind)) * rounds / at_once
        return left

    def _rate(self, kind: Kind) -> float:
        """Logarithm of real seconds per estimated one: what a kind's own units say, else its task's other kinds, else all."""
        others = self._mean(known for known in self._seen if known[0] == kind[0])
        if others is None:
            others = self._mean(self._seen)
        assert others is not None
        if kind not in self._seen:
            return others
        own, count = self._mean([kind]), self._seen[kind][2]
        assert own is not None
        return (count * own + PRIOR_UNITS * others) / (count + PRIOR_UNITS)

    def _mean(self, kinds: Iterable[Kind]) -> float | None:
        rates = [math.log(real / estimated) for estimated, real, _ in map(self._seen.__getitem__, kinds)]
        return sum(rates) / len(rates) if rates else None
