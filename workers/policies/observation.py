"""What a policy may ask a cache to note of the queries that go through, and how much memory that takes.

A kind of observation is one class here, and one in ``workers/cache/notes.py`` that says how a layer keeps it.
Imports no torch, because planning counts bytes by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from workers.footprint.shape import Shape

OBSERVED_QUERIES = 32
"""A layer keeps at least so many of the last queries where it keeps any: cells whose policies ask for fewer
share passes with those that ask for all."""
MOST_QUERIES = 128
"""What a policy can ask for:
more than any method of the literature looks at, and little beside a prompt's own cache."""
WEIGHT_BYTES = 16 * 2**20
"""Attention of the last queries that policies look at is made with the pass, for all rows at once, where it
takes no more."""


@dataclass(frozen=True)
class Observation:
    """What is noted. Sizes are bytes of one layer."""

    kind: ClassVar[str]
    """Cells whose policies observe the same kind of thing go through together."""
    probes: ClassVar[bool] = False
    """Whether the probabilities of a pass over prompts are made for it."""

    @property
    def amount(self) -> int:
        """How much of it a policy asks for at most."""
        return 0

    def of_entry(self, shape: Shape) -> int:
        """What is kept for each entry of a row."""
        return 0

    def of_row(self, shape: Shape) -> int:
        """What is kept for each row, whatever it holds."""
        return 0

    def of_pass(self, shape: Shape, rows: int, entries: int) -> int:
        """What a pass of so many rows takes for it, and gives back."""
        return 0


@dataclass(frozen=True)
class Nothing(Observation):
    """The policy looks at keys, values and positions alone."""

    kind = "nothing"


@dataclass(frozen=True)
class LastQueries(Observation):
    """The last ``count`` queries; ``CacheView.attention`` gives their attention over the entries held."""

    count: int = OBSERVED_QUERIES
    kind = "queries"

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is none, or more than are kept."""
        if not 1 <= self.count <= MOST_QUERIES:
            raise ValueError(f"LastQueries: count must be 1 to {MOST_QUERIES} (got {self.count})")

    @property
    def amount(self) -> int:
        """Queries whose attention is asked for."""
        return self.count

    @property
    def kept(self) -> int:
        """How many a layer keeps."""
        return max(self.count, OBSERVED_QUERIES)

    def of_row(self, shape: Shape) -> int:
        """The queries of all heads."""
        return shape.heads * self.kept * shape.head_dim * shape.width

    def of_pass(self, shape: Shape, rows: int, entries: int) -> int:
        """Their attention, with what it is made from."""
        return 3 * WEIGHT_BYTES * self.kept // OBSERVED_QUERIES + shape.keys_in_float32(rows, entries)


@dataclass(frozen=True)
class Mass(Observation):
    """The attention that each entry got from all queries so far."""

    kind = "mass"
    probes = True

    def of_entry(self, shape: Shape) -> int:
        """A float32 for each KV head."""
        return 4 * shape.kv_heads

    def of_pass(self, shape: Shape, rows: int, entries: int) -> int:
        """The probabilities of the pass."""
        return shape.probing(rows, entries)


@dataclass(frozen=True)
class Anything(Mass):
    """What planning counts with for a user's own policy, of which only its code tells:
    as much as any observation takes."""

    def of_row(self, shape: Shape) -> int:
        """As many queries as there may be."""
        return LastQueries(MOST_QUERIES).of_row(shape)

    def of_pass(self, shape: Shape, rows: int, entries: int) -> int:
        """The larger of both."""
        return max(
            super().of_pass(shape, rows, entries), LastQueries(MOST_QUERIES).of_pass(shape, rows, entries)
        )


NOTHING = Nothing()


def widest(observations: Iterable[Observation]) -> dict[str, Observation]:
    """By kind, the one that asks for most: what serves it serves the others."""
    found: dict[str, Observation] = {}
    for each in observations:
        if each.kind not in found or found[each.kind].amount < each.amount:
            found[each.kind] = each
    return found
