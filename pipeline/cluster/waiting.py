"""What waits for a place, for how long it may, and how to say it. Pure; the clock is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.cluster.placement import UNSAID, Fleet, Need, Node


@dataclass(frozen=True)
class Patience:
    """Seconds that units wait while they have no worker: where
    no node could ever do, where one may come or come back."""

    starting: float = 30.0
    """No node, and no type of node that can be started, could hold such a worker."""
    growing: float = 1200.0
    """A node could, and is lost, full of others' work, or yet to be started."""
    unknown_types: bool = False
    """Whether nodes may join of which nobody can say what they will hold."""


@dataclass
class Waiting:
    """Remembers since when each need has had no worker."""

    fleet: Fleet
    kinds: Sequence[Node] | None
    """What an autoscaler could start; None where nothing starts nodes."""
    patience: Patience
    clock: Callable[[], float] = time.monotonic
    counts: dict[Need, int] = field(default_factory=dict)
    """Units per need that have no place at all now."""
    _since: dict[Need, float] = field(default_factory=dict)
    _had: set[Need] = field(default_factory=set)

    def look(self, queued: Mapping[Need, int], served: Collection[Need]) -> dict[Need, str]:
        """Told what waits and which of it has workers now. Returns the needs whose time is up, and why."""
        self._had.update(served)
        self.counts = {
            need: count
            for need, count in queued.items()
            if need not in served and not self.fleet.places(need)
        }
        self._since = {need: self._since.get(need, self.clock()) for need in queued if need not in served}

        never = {}
        for need in self._since:
            # It waits for our own work, however long that takes.
            if self.fleet.places(need) > 0 and self.fleet.is_taken():
                self._since[need] = self.clock()
                continue
            hope = (
                need in self._had
                or self.fleet.places(need, self.kinds or ()) > 0
                or self.patience.unknown_types
            )
            limit = self.patience.growing if hope else self.patience.starting
            if self.clock() - self._since[need] >= limit:
                never[need] = self._reason(need, limit)
        return never

    def bundles(self, threads: int, wanted: Mapping[Need, int]) -> list[dict[str, float]]:
        """Resources that an autoscaler should see to: a worker for every unit that waits or runs, at most
        what it can start."""
        # Memory would fit no type that does not say what it has.
        kinds_say_memory = self.kinds and all(kind.memory < UNSAID for kind in self.kinds)
        bundles = []
        for need, count in wanted.items():
            one: dict[str, float] = {"CPU": threads}
            if kinds_say_memory:
                one["memory"] = need.memory
            if need.device == "cuda":
                one["GPU"] = self.fleet.gpu_share(need)
            if need.timed:
                one["timing"] = 1

            most = self.fleet.places(need, self.kinds) if self.kinds else count
            bundles += [one] * min(count, most)
        return bundles

    def _reason(self, need: Need, limit: float) -> str:
        nodes = "; ".join(str(node) for node in self.fleet.nodes.values()) or "none"
        types = "; ".join(f"{kind.node_id}: {kind}" for kind in self.kinds or ())
        hint = " Start nodes with --resources='{\"timing\": 1}'." if need.timed else ""
        waited = f" in {limit:.0f} s" if limit else ""
        start = f"; could be started: {types}" if types else ""
        return f"no node of this cluster could hold {need}{waited} (nodes: {nodes}{start}).{hint}"


def waiting_in_words(counts: Mapping[Need, int]) -> list[str]:
    """One phrase per kind of node that is waited for, such as "12 units wait for a node with a GPU"."""
    phrases: dict[str, int] = {}
    for need, count in counts.items():
        what = "a GPU" if need.device == "cuda" else f"{need.memory_bytes / 2**30:.1f} GiB free"
        slot = " and a timing slot" if need.timed else ""
        phrases[what + slot] = phrases.get(what + slot, 0) + count
    return [
        f"{count} {'unit waits' if count == 1 else 'units wait'} for a node with {what}"
        for what, count in phrases.items()
    ]
