"""Pure integers: ratio -> kept count, the next prune event, the whole event schedule of a cell.

The only place where a keep_ratio becomes a number of entries (science: one forward pass, step 2), and where a schedule says when.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@lru_cache(maxsize=4096)
def _exact(keep_ratio: float) -> tuple[int, int]:
    """The ratio as the decimal that was written: 0.55 is 55/100, though the nearest double lies above it."""
    fraction = Fraction(repr(keep_ratio))
    return fraction.numerator, fraction.denominator


def kept_count(keep_ratio: float, entries: int) -> int:
    """``ceil(keep_ratio * entries)`` in exact arithmetic: how many of ``entries`` a prune event keeps."""
    numerator, denominator = _exact(keep_ratio)
    return -(-numerator * entries // denominator)


def is_due(keep_ratio: float, prune_after: int, entries: int) -> bool:
    """Whether a layer that holds ``entries`` prunes now: the threshold is reached and at least one entry would go."""
    return entries >= prune_after and kept_count(keep_ratio, entries) < entries


def next_event(keep_ratio: float, prune_after: int, held: int) -> int | None:
    """Number of entries at which a layer that holds ``held`` prunes next; None where the ratio never drops anything.

    The smallest m > held, m >= prune_after, with ``ceil(keep_ratio * m) < m``: from m >= 1 / (1 - ratio) on it holds.
    """
    numerator, denominator = _exact(keep_ratio)
    if numerator >= denominator:
        return None
    progress = -(-denominator // (denominator - numerator))
    return max(prune_after, held + 1, progress)


SCHEDULES = ("every_step", "prefill_once", "constant")
"""``every_step``: a layer that holds prune_after entries keeps ``ceil(keep_ratio * n)`` of n, after each step and each prompt.
``prefill_once``: the same, checked after a prompt alone. ``constant``: a layer that holds more than
``ceil(keep_ratio * prune_after)`` entries keeps so many, after every step and every prompt: the budget of H2O, TOVA and
StreamingLLM, whose papers drop an entry as soon as one is too many."""


@dataclass(frozen=True)
class Budget:
    """How many entries a pruning layer holds and when it is looked at: what ratio, threshold and schedule are together."""

    keep_ratio: float
    prune_after: int
    schedule: str = "every_step"

    @property
    def checks_steps(self) -> bool:
        """Whether a check follows each single token, and not only a prompt."""
        return self.schedule != "prefill_once"

    @property
    def drops(self) -> bool:
        """Whether anything is ever dropped."""
        return next_event(self.keep_ratio, self.prune_after, 0) is not None

    @property
    def constant(self) -> int | None:
        """The entries that ``constant`` holds; None under the other schedules."""
        return kept_count(self.keep_ratio, self.prune_after) if self.schedule == "constant" else None

    def kept(self, entries: int) -> int:
        """What a check leaves of ``entries``; all where it drops nothing."""
        if not self.is_due(entries):
            return entries
        return kept_count(self.keep_ratio, entries) if self.constant is None else self.constant

    def is_due(self, entries: int) -> bool:
        """Whether a check drops any of ``entries``."""
        if self.constant is None:
            return is_due(self.keep_ratio, self.prune_after, entries)
        return self.drops and entries > self.constant

    def next_event(self, held: int) -> int | None:
        """Number of entries at which a layer that holds ``held`` prunes next, were every entry checked; None for never."""
        if self.constant is None:
            return next_event(self.keep_ratio, self.prune_after, held)
        return max(self.constant, held) + 1 if self.drops else None

    def first_kept(self, prompt: int) -> int | None:
        """What the first prune leaves where ``prompt`` tokens come before the first check; None where nothing is ever dropped."""
        first = self.next_event(prompt - 1) if prompt else self.next_event(0)
        return None if first is None else self.kept(first)

    def event_schedule(self, steps: int) -> Schedule:
        """All prune events of a pruning layer over ``steps`` one-token steps from an empty cache."""
        return _event_schedule(self, steps)


@dataclass(frozen=True)
class Schedule:
    """What a pruning layer does over ``steps`` one-token steps.

    ``events``: (tokens seen at the event, entries before, entries after), in order.
    """

    steps: int
    events: tuple[tuple[int, int, int], ...]

    @property
    def first_event(self) -> int | None:
        """Tokens seen when something is dropped for the first time."""
        return self.events[0][0] if self.events else None

    @property
    def final(self) -> int:
        """Entries held after the last step."""
        seen, _, after = self.events[-1] if self.events else (0, 0, 0)
        return after + self.steps - seen

    @property
    def peak(self) -> int:
        """Most entries stored at once: what the last query before a prune attends to."""
        return max([before for _, before, _ in self.events] + [self.final])

    def mean(self, first_scored: int = 1) -> float:
        """Entries held after a step (after its prune), over the steps that predict the tokens ``first_scored..steps``."""
        start = first_scored - 1  # token i is predicted by step i - 1
        total, seen, held = 0, 0, 0
        for at, _, after in [*self.events, (self.steps + 1, 0, 0)]:
            skipped = min(max(0, start - seen), at - 1 - seen)  # of the steps seen..at-2, which drop nothing
            total += _sum_range(held + 1 + skipped, held + at - 1 - seen)
            total += after if start < at <= self.steps else 0
            seen, held = at, after
        return total / (self.steps - start) if self.steps > start else 0.0

    def scored_pruned(self, first_scored: int) -> int:
        """How many of the tokens ``first_scored..steps`` were predicted with at least one entry already dropped.

        Token i is predicted by step i - 1 (0-based), which sees the cache that the event after step i - 2 left.
        """
        if self.first_event is None:
            return 0
        return max(0, self.steps - max(first_scored, self.first_event + 1) + 1)


def _sum_range(first: int, last: int) -> int:
    return (first + last) * (last - first + 1) // 2 if last >= first else 0


@lru_cache(maxsize=16384)
def _event_schedule(budget: Budget, steps: int) -> Schedule:
    events: list[tuple[int, int, int]] = []
    seen = held = 0
    while (at := budget.next_event(held)) is not None and seen + at - held <= steps:
        seen, held = seen + at - held, budget.kept(at)
        events.append((seen, at, held))
    return Schedule(steps, tuple(events))


def event_schedule(keep_ratio: float, prune_after: int, steps: int) -> Schedule:
    """The events under ``every_step``."""
    return Budget(keep_ratio, prune_after).event_schedule(steps)
