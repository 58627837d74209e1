"""How much of what the harness measured really went through a pruned cache."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Any

from workers.policies.settings import PruneSettings

MOST = 2**40
"""More is no count of one request."""


@dataclass
class Counts:
    """Sums over requests; a request counts what it would alone, whatever it shares a pass with."""

    requests: int = 0
    prune_events: int = 0
    """Prunes of a layer that prunes."""
    tokens_predicted: int = 0
    """Tokens scored or generated; each is one step, the context's pass being the first."""
    tokens_predicted_pruned: int = 0
    """Those predicted with at least one entry already dropped. The first token after a context never is."""
    cache_tokens: float = 0.0
    """Entries held after a step and its check, averaged over layers, summed over steps."""

    def add(self, other: Counts) -> None:
        """Add what another counted."""
        self.requests += other.requests
        self.prune_events += other.prune_events
        self.tokens_predicted += other.tokens_predicted
        self.tokens_predicted_pruned += other.tokens_predicted_pruned
        self.cache_tokens += other.cache_tokens

    def plain(self) -> list[int | float]:
        """As JSON can hold it; ``of_plain`` reads it."""
        return list(astuple(self))

    @classmethod
    def of_plain(cls, values: Any) -> Counts:
        """Raises ValueError for what are no counts."""
        if not isinstance(values, list) or len(values) != len(fields(cls)):
            raise ValueError("no counts")
        *whole, entries = values
        if not all(type(value) is int and 0 <= value < MOST for value in whole):
            raise ValueError("counts that are no whole numbers")
        if type(entries) is not float or not math.isfinite(entries):
            raise ValueError("a count of entries that is no number")
        return cls(*values)

    @property
    def cache_tokens_mean(self) -> float | None:
        """Entries held, averaged over steps and layers; None where nothing was asked."""
        return self.cache_tokens / self.tokens_predicted if self.tokens_predicted else None

    def figures(self) -> dict[str, Any]:
        """By name, for the harness's results."""
        mean = self.cache_tokens_mean
        return {
            "requests": self.requests,
            "prune_events": self.prune_events,
            "tokens_predicted": self.tokens_predicted,
            "tokens_predicted_pruned": self.tokens_predicted_pruned,
            "cache_tokens_mean": None if mean is None else round(mean, 3),
        }

    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"{self.requests} requests, prune_events {self.prune_events}; {self.tokens_predicted_pruned} of "
            f"{self.tokens_predicted} tokens came from a pruned cache; {self.cache_tokens_mean or 0:.1f} "
            "entries held on average"
        )

    def warning(self, settings: PruneSettings) -> str | None:
        """Why the figures say nothing about pruning,
        where settings ask for it and it did not happen or came too late."""
        asked = settings.policy != "dense" and settings.keep_ratio < 1
        if not asked or not self.requests or self.tokens_predicted_pruned:
            return None

        how = f"{settings.policy} keep_ratio {settings.keep_ratio:g} prune_after {settings.prune_after}"
        if not self.prune_events:
            return (
                f"{how}: nothing was ever pruned (no context reached the threshold): these are the dense "
                "model's figures"
            )
        return (
            f"{how}: no token was predicted from a pruned cache: the first token after a context comes from "
            "the context's own dense pass, and no later one came after a prune: these are the dense model's "
            "figures"
        )


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of several."""
    found = Counts()
    for each in counts:
        found.add(each)
    return found
