"""How long a run will still take: what the plan estimated, scaled by how long each kind of unit has really taken."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

PRIOR_SHARE = 0.02
"""A kind's own rate counts fully once units worth this share of all work have shown it; before, partly that of all kinds."""


class TimeLeft:
    """Told of every unit that is planned and every one that ends; ``workers(kind)`` is how many of a kind can run at once."""

    def __init__(self, workers: Callable[[Hashable], int]) -> None:
        self._workers = workers
        self._cost_left: defaultdict[Hashable, float] = defaultdict(float)
        self._units_left: Counter[Hashable] = Counter()
        self._seen: dict[Hashable, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        """Estimated and real seconds of the units of a kind that ended."""
        self._total = 0.0

    def planned(self, kind: Hashable, cost: float) -> None:
        """A unit that is to run."""
        self._cost_left[kind] += cost
        self._units_left[kind] += 1
        self._total += cost

    def ended(self, kind: Hashable, cost: float, seconds: float) -> None:
        """It ended after this many seconds of its worker's time, which is 0 where it never ran."""
        self._cost_left[kind] -= cost
        self._units_left[kind] -= 1
        if seconds > 0:
            estimated, real = self._seen[kind]
            self._seen[kind] = estimated + cost, real + seconds

    def seconds(self) -> float | None:
        """Wall time left; None before anything has ended."""
        overall = self._rate(*map(sum, zip(*self._seen.values(), strict=True))) if self._seen else None
        if overall is None:
            return None
        left = 0.0
        for kind, units in self._units_left.items():
            if units:
                at_once = max(1, min(units, self._workers(kind)))
                rounds = math.ceil(units / at_once) * at_once / units  # the last round leaves some workers idle
                left += self._cost_left[kind] * self._own_rate(kind, overall) * rounds / at_once
        return left

    def _own_rate(self, kind: Hashable, overall: float) -> float:
        estimated, real = self._seen.get(kind, (0.0, 0.0))
        own = self._rate(estimated, real)
        if own is None:
            return overall
        weight = min(1.0, estimated / max(self._total * PRIOR_SHARE, 1e-9))
        return math.exp(weight * math.log(own) + (1 - weight) * math.log(overall))

    @staticmethod
    def _rate(estimated: float, real: float) -> float | None:
        return real / estimated if estimated > 0 and real > 0 else None
