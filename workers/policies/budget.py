"""Pure integers: ratio -> kept count, the next prune event, the whole event schedule of a cell.

The only place where a keep_ratio becomes a number of entries (science: one forward pass, step 2), and where a
schedule says when.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache


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
    """Whether a layer that holds ``entries`` prunes now: the threshold is reached and some entry would go."""
    return entries >= prune_after and kept_count(keep_ratio, entries) < entries


def next_event(keep_ratio: float, prune_after: int, held: int) -> int | None:
    """Number of entries at which a layer that holds ``held`` prunes next;
    None where the ratio never drops anything.

    The smallest m > held, m >= prune_after, with ``ceil(keep_ratio * m) < m``: from m >= 1 / (1 - ratio) on
    it holds.
    """
    numerator, denominator = _exact(keep_ratio)
    if numerator >= denominator:
        return None
    progress = -(-denominator // (denominator - numerator))
    return max(prune_after, held + 1, progress)


SCHEDULES = ("every_step", "prefill_once", "constant")
"""``every_step``: a layer that holds prune_after entries keeps ``ceil(keep_ratio * n)`` of n, after each step
and each prompt. ``prefill_once``: the same, checked after a prompt alone. ``constant``: a layer that holds
more than ``ceil(keep_ratio * prune_after)`` entries keeps so many, after every step and every prompt: the
budget of H2O, TOVA and StreamingLLM, whose papers drop an entry as soon as one is too many."""


@dataclass(frozen=True)
class Budget:
    """How many entries a pruning layer holds and when it is looked at:
    what ratio, threshold and schedule are together."""

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
        """Number of entries at which a layer that holds ``held`` prunes next, were every entry checked;
        None for never."""
        if self.constant is None:
            return next_event(self.keep_ratio, self.prune_after, held)
        return max(self.constant, held) + 1 if self.drops else None

    def first_kept(self, prompt: int) -> int | None:
        """What the first prune leaves where ``prompt`` tokens come before the first check; None where nothing
        is ever dropped."""
        first = self.next_event(prompt - 1) if prompt else self.next_event(0)
        return None if first is None else self.kept(first)

    def event_schedule(self, steps: int) -> Schedule:
        """All prune events of a pruning layer over ``steps`` one-token steps from an empty cache."""
        full = self.next_event(0)
        return Schedule(steps, full, 0 if full is None else self.kept(full))


@dataclass(frozen=True)
class Schedule:
    """What a pruning layer does over ``steps`` one-token steps from an empty cache.

    Each prune finds ``full`` entries and leaves ``kept``. That is so under every schedule: what a prune
    leaves is under ``full``, so the next one comes as soon as there are as many again. All figures follow
    from these three numbers, without a walk through the steps.
    """

    steps: int
    full: int | None
    """None where nothing is ever dropped."""
    kept: int

    @property
    def count(self) -> int:
        """How often it prunes."""
        if self.full is None or self.full > self.steps:
            return 0
        return 1 + (self.steps - self.full) // (self.full - self.kept)

    @cached_property
    def events(self) -> tuple[tuple[int, int, int], ...]:
        """(tokens seen at the event, entries before, entries after), in order."""
        if self.full is None:
            return ()
        between = self.full - self.kept
        return tuple((self.full + between * i, self.full, self.kept) for i in range(self.count))

    @property
    def first_event(self) -> int | None:
        """Tokens seen when something is dropped for the first time."""
        return self.full if self.count else None

    @property
    def final(self) -> int:
        """Entries held after the last step."""
        return self._held(self.steps)

    @property
    def peak(self) -> int:
        """Most entries stored at once: what the last query before a prune attends to."""
        return self.steps if self.first_event is None else self.first_event

    def mean(self, first_scored: int = 1) -> float:
        """Entries held after a step
        (after its prune), over the steps that predict the tokens ``first_scored..steps``."""
        start = first_scored - 1  # token i is predicted by step i - 1
        total = self._sum(self.steps) - self._sum(start)
        return total / (self.steps - start) if self.steps > start else 0.0

    def scored_pruned(self, first_scored: int) -> int:
        """How many of the tokens ``first_scored..steps`` were predicted with an entry already dropped.

        Token i is predicted by step i - 1 (0-based), which sees the cache that the event after step i - 2
        left.
        """
        if self.first_event is None:
            return 0
        return max(0, self.steps - max(first_scored, self.first_event + 1) + 1)

    def _held(self, step: int) -> int:
        """Entries after so many steps."""
        if self.full is None or step < self.full:
            return step
        return self.kept + (step - self.full) % (self.full - self.kept)

    def _sum(self, step: int) -> int:
        """Entries after each of the first ``step`` steps, together."""
        if self.full is None or step < self.full:
            return _triangle(step)

        between = self.full - self.kept
        whole, rest = divmod(step - self.full + 1, between)
        behind = (
            whole * (self.kept * between + _triangle(between - 1)) + rest * self.kept + _triangle(rest - 1)
        )
        return _triangle(self.full - 1) + behind


def _triangle(last: int) -> int:
    """``1 + 2 + ... + last``."""
    return last * (last + 1) // 2


def event_schedule(keep_ratio: float, prune_after: int, steps: int) -> Schedule:
    """The events under ``every_step``."""
    return Budget(keep_ratio, prune_after).event_schedule(steps)
