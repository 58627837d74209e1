"""How many CPUs and how much memory this process may use, which is less than the machine has in a container
or a batch job.

CPU affinity (``taskset``, Slurm) and the limits of control groups (docker, Kubernetes, systemd; version 1 and
2) are read. A limit holds for a group and all below it, so the least on the way up counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CPU_FILES = {2: "cpu.max", 1: "cpu.cfs_quota_us"}
MEMORY_FILES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
CACHED = {2: "inactive_file", 1: "total_inactive_file"}
"""Of ``memory.stat``: bytes of files that were read, which the kernel gives up when memory is needed."""


@dataclass(frozen=True)
class Machine:
    """What is there, and what of it this process may use."""

    cpus: int
    usable_cpus: int
    memory_bytes: int
    usable_memory_bytes: int
    free_memory_bytes: int
    """Of what may be used, what nothing uses now."""

    @property
    def is_limited_in_memory(self) -> bool:
        """Whether a control group allows less than there is."""
        return self.usable_memory_bytes < self.memory_bytes


def this_machine(proc: Path = Path("/proc")) -> Machine:
    """As it is now."""
    cpus = os.cpu_count() or 1
    memory = psutil.virtual_memory()
    shares = [share for group in _groups(proc, "cpu") if (share := _cpu_share(*group)) is not None]
    limits = [limit for group in _groups(proc, "memory") if (limit := _memory_limit(*group)) is not None]
    return Machine(
        cpus=cpus,
        usable_cpus=max(1, min([_affinity(cpus), *(int(share) for share in shares)])),
        memory_bytes=memory.total,
        usable_memory_bytes=min([memory.total, *(limit for limit, _ in limits)]),
        free_memory_bytes=max(0, min([memory.available, *(limit - used for limit, used in limits)])),
    )


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return this_machine().usable_cpus


def _affinity(cpus: int) -> int:
    """The system's own answer where it has one (Linux); elsewhere all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus


def _groups(proc: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of this process's groups, from its own up to the top that can be seen."""
    try:
        memberships = (proc / "self" / "cgroup").read_text().splitlines()
        mounts = [line.split(" ") for line in (proc / "self" / "mountinfo").read_text().splitlines()]
    except (OSError, ValueError):  # no Linux
        return

    for line in memberships:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue

        for root, place in _mounted(mounts, version, controller):
            below = path.removeprefix(root.rstrip("/")) if path.startswith(root) else ""
            folder = Path(place + below)
            for each in [folder, *folder.parents]:
                if len(str(each)) >= len(place):
                    yield version, each
            break


def _mounted(mounts: list[list[str]], version: int, controller: str) -> Iterator[tuple[str, str]]:
    """Which group is at the top of what is mounted, and where."""
    for fields in mounts:
        if "-" not in fields:
            continue
        kind = fields[fields.index("-") + 1]
        options = fields[-1].split(",")
        if kind == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or controller in options):
            yield fields[3], fields[4]


def _cpu_share(version: int, folder: Path) -> float | None:
    """CPUs' worth of time that a group may take; None where it has no limit."""
    words = _words(folder / CPU_FILES[version])
    if version == 1:
        words += _words(folder / "cpu.cfs_period_us")
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None  # max, or -1
    return int(words[0]) / int(words[1])


def _memory_limit(version: int, folder: Path) -> tuple[int, int] | None:
    """Bytes that a group may hold, and holds now beside cached files; None where it has no limit."""
    limit, used = (_words(folder / name) for name in MEMORY_FILES[version])
    if (
        len(limit) != 1 or not limit[0].isdecimal() or int(limit[0]) >= 2**60
    ):  # version 1 writes a huge number for none
        return None
    held = int(used[0]) if len(used) == 1 and used[0].isdecimal() else 0
    return int(limit[0]), max(0, held - _cached(version, folder))


def _cached(version: int, folder: Path) -> int:
    """Bytes that count as held and can be had at once; 0 where the group does not tell."""
    words = _words(folder / "memory.stat")
    figures = dict(zip(words[::2], words[1::2], strict=False))
    bytes_cached = figures.get(CACHED[version], "")
    return int(bytes_cached) if bytes_cached.isdecimal() else 0


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []
