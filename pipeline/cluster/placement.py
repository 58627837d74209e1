"""Which node takes which worker: pure accounting of CPUs, GPUs, memory and timing slots.

Knows nothing of Ray.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

UNSAID = 2**62
"""Bytes of a node that does not say how many it has: enough."""
MEMORY_STEP = 2**29
"""Workers ask for this much memory, or twice, four times ...: one that has served a small model may then take
a larger one."""
MOST_PER_GPU = 8
GPU_SHARE = 0.9
"""Of a GPU's memory that is given out; the rest is for its driver and for fragments."""


@dataclass(frozen=True)
class Need:
    """What a unit asks of the place where it runs."""

    device: str
    timed: bool
    """Timed units have their node to themselves."""
    memory_bytes: int
    """What its worker takes at most, by the plan's estimate."""
    model: str
    """Weights and dtype: a worker that has them loaded is preferred."""
    least_bytes: int = 0
    """Without this much it cannot even start; with less than
    ``memory_bytes`` it has a node's memory to itself."""

    @property
    def memory(self) -> int:
        """``memory_bytes`` rounded up to MEMORY_STEP doubled."""
        size = MEMORY_STEP
        while size < self.memory_bytes:
            size *= 2
        return size

    def __str__(self) -> str:
        slot = " with a timing slot" if self.timed else ""
        return f"a {self.device} worker{slot} (at least {self.least_bytes / 2**30:.1f} GiB)"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or a type of machine that an autoscaler can start (``count`` of them)."""

    node_id: str
    cpus: float
    gpus: float
    memory: int
    timing: float
    host: str = ""
    gpu_memory: int | None = None
    """Bytes of one GPU; None where nobody could tell, and then each worker has a whole one."""
    count: int = 1

    @classmethod
    def of(cls, node_id: str, resources: dict[str, float], host: str = "", count: int = 1) -> Node:
        """From a table of resources by name, as Ray has them."""
        memory = int(resources.get("memory", 0)) or UNSAID
        return cls(
            node_id,
            resources.get("CPU", 0),
            resources.get("GPU", 0),
            memory,
            resources.get("timing", 0),
            host,
            count=count,
        )

    def __str__(self) -> str:
        memory = "" if self.memory == UNSAID else f", {self.memory / 2**30:.1f} GiB"
        return f"CPU {self.cpus:g}, GPU {self.gpus:g}{memory}, timing {self.timing:g}"


@dataclass(frozen=True)
class Seat:
    """What one worker takes of a node."""

    node_id: str
    device: str
    timed: bool
    cpus: float
    gpus: float
    memory: int
    all_memory: bool = False
    """Whether that is all that the node has."""

    def suits(self, need: Need) -> bool:
        """Whether a worker that sits here can take a unit with this need."""
        wanted = need.least_bytes if self.all_memory else need.memory_bytes
        return (self.device, self.timed) == (need.device, need.timed) and wanted <= self.memory


@dataclass
class Fleet:
    """The nodes, and the seats that are taken on them."""

    nodes: dict[str, Node] = field(default_factory=dict)
    threads: int = 1
    keep_for_gpus: bool = False
    """Whether CPUs of GPU nodes are left to the workers of their GPUs."""
    avoid: set[str] = field(default_factory=set)
    """Nodes where a worker has just found no place: others have them."""
    taken: dict[str, list[Seat]] = field(default_factory=lambda: defaultdict(list))
    """By node."""

    def take(self, seat: Seat) -> None:
        """Count a seat as taken."""
        self.taken[seat.node_id].append(seat)

    def free(self, seat: Seat) -> None:
        """Give it back."""
        self.taken[seat.node_id].remove(seat)

    def is_taken(self) -> bool:
        """Whether any worker of ours sits anywhere."""
        return any(self.taken.values())

    def find(self, need: Need) -> Seat | None:
        """A seat that is free now; CPU workers go to nodes without a GPU first."""
        for node in sorted(self.nodes.values(), key=lambda node: node.gpus if need.device != "cuda" else 0):
            seat = self._seat(node, need) if node.node_id not in self.avoid else None
            if seat and self._fits(node, seat, need):
                return seat
        return None

    def places(self, need: Need, kinds: Sequence[Node] = ()) -> int:
        """How many such workers all nodes could hold, were they empty, and those that could still be
        started."""
        return sum(self._most(node, need) * node.count for node in (*self.nodes.values(), *kinds))

    def gpu_share(self, need: Need) -> float:
        """The share of a GPU that such a worker takes on the nodes
        that are there; a whole one where none has GPUs yet."""
        return max((_gpu_share(node, need) for node in self.nodes.values() if node.gpus), default=1.0)

    def _most(self, node: Node, need: Need) -> int:
        seat = self._seat(node, need)
        if seat is None:
            return 0
        if need.timed:
            return 1
        limits = [self._cpus(node, need) // seat.cpus, node.memory // seat.memory]
        return int(min(limits + ([node.gpus // seat.gpus] if seat.gpus else [])))

    def _seat(self, node: Node, need: Need) -> Seat | None:
        """What such a worker would take of an empty node; None where it holds none."""
        gpu = need.device == "cuda"
        cpus = node.cpus if need.timed else self.threads
        memory = min(need.memory, node.memory)
        fits = (
            0 < cpus <= self._cpus(node, need)
            and need.least_bytes <= memory
            and (node.timing or not need.timed)
        )
        if not fits or (gpu and not node.gpus):
            return None
        share = _gpu_share(node, need) if gpu else 0
        return Seat(node.node_id, need.device, need.timed, cpus, share, memory, memory == node.memory)

    def _cpus(self, node: Node, need: Need) -> float:
        """CPUs of a node that such workers may take."""
        kept = (
            self.threads * node.gpus if self.keep_for_gpus and need.device != "cuda" and not need.timed else 0
        )
        return node.cpus - kept

    def _fits(self, node: Node, seat: Seat, need: Need) -> bool:
        here = self.taken[node.node_id]
        if here and (seat.timed or here[0].timed):
            return False
        of_kind = sum(other.cpus for other in here if other.device == seat.device)
        return (
            seat.cpus <= node.cpus - sum(other.cpus for other in here)
            and seat.cpus <= self._cpus(node, need) - of_kind
            and seat.gpus
            <= node.gpus - sum(other.gpus for other in here) + 1e-9  # thirds do not add up to one
            and seat.memory <= node.memory - sum(other.memory for other in here)
        )


def _gpu_share(node: Node, need: Need) -> float:
    """The share of a GPU that a worker is given: a whole one
    for timings, else as many to a GPU as its memory holds."""
    if need.timed or node.gpu_memory is None:
        return 1.0
    many = int(node.gpu_memory * GPU_SHARE // need.memory_bytes)
    return 1.0 / max(1, min(MOST_PER_GPU, many, int(node.cpus // max(1, node.gpus))))
