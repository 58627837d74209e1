"""How long a run will still take: what the plan estimated, scaled by how long each kind of unit has really taken."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

PRIOR_UNITS = 0.25
"""What all kinds together say of one counts as much as so many units of its own."""


class TimeLeft:
    """Told of every unit that is planned and every one that ends; ``workers(kind)`` is how many of a kind can run at once."""

    def __init__(self, workers: Callable[[Hashable], int]) -> None:
        self._workers = workers
        self._cost_left: defaultdict[Hashable, float] = defaultdict(float)
        self._units_left: Counter[Hashable] = Counter()
        self._seen: dict[Hashable, tuple[float, float, int]] = defaultdict(lambda: (0.0, 0.0, 0))
        """Estimated and real seconds of the units of a kind that ended, and their count."""

    def planned(self, kind: Hashable, cost: float) -> None:
        """A unit that is to run."""
        self._cost_left[kind] += cost
        self._units_left[kind] += 1

    def ended(self, kind: Hashable, cost: float, seconds: float) -> None:
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
        rates = [math.log(real / estimated) for estimated, real, _ in self._seen.values()]
        overall = sum(rates) / len(rates)
        left = 0.0
        for kind, units in self._units_left.items():
            if units:
                at_once = max(1, min(units, self._workers(kind)))
                rounds = math.ceil(units / at_once) * at_once / units  # the last round leaves some workers idle
                left += self._cost_left[kind] * self._own_rate(kind, overall) * rounds / at_once
        return left

    def _own_rate(self, kind: Hashable, overall: float) -> float:
        """Real seconds per estimated one; ``overall`` is the mean of the kinds' logarithms."""
        if kind not in self._seen:
            return math.exp(overall)
        estimated, real, count = self._seen[kind]
        return math.exp((count * math.log(real / estimated) + PRIOR_UNITS * overall) / (count + PRIOR_UNITS))
