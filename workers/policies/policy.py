"""What an eviction policy is: a score function, what it observes, how its entries may lie.
Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.policies.observation import NOTHING, Observation

if TYPE_CHECKING:
    from torch import Tensor

    from workers.policies.cache_view import CacheView

Score = Callable[["CacheView"], "Tensor"]
"""[batch, kv_heads, n] float32, higher = kept; equal scores go to the earlier position."""


@dataclass(frozen=True)
class Policy:
    """A score function and what the cache must record for it."""

    score: Score
    observes: Observation = NOTHING
    entrywise: bool = False
    """An entry's score depends on that entry alone, on its key, its value and its position."""
    temporal: bool = True
    """Kept entries stay in temporal order. Otherwise each prune lays them best first, and newer ones follow:
    other places in the tensor, the same figures, because attention is a sum over a set."""
    rolls: bool = False
    """Kept keys are turned to positions that lie contiguously before the next token; needs ``temporal``."""
    name: str = ""
    """As a sweep names it."""
    own: bool = False
    """Whether it is one of kvsweep's, which may see the entries themselves, in any order and among places
    that hold nothing."""

    def __post_init__(self) -> None:
        """Raises ValueError for what is no observation, for one beside ``entrywise``, which says that there
        is none, and for a policy that rolls keys which lie in no temporal order: nothing says where they
        would go."""
        if not isinstance(self.observes, Observation):
            raise ValueError(
                f"observes must be Nothing(), LastQueries(count) or Mass() (got {self.observes!r})"
            )
        if self.entrywise and self.observes != NOTHING:
            raise ValueError(
                "a policy that is entrywise looks at each entry alone, so it must observe nothing"
            )
        if self.rolls and not self.temporal:
            raise ValueError("a policy that rolls must be temporal")

    @property
    def in_slots(self) -> bool:
        """Whether its entries may stay where they are in short passes (``slot_layer``).

        Not those of a policy that is not temporal, because that they lie in another order is what it is run
        for, and not those of a policy that rolls, whose keys change at a prune.
        """
        return self.entrywise and self.temporal and not self.rolls
