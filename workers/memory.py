"""How much memory is free, and what running out of it looks like."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that a process on this device could still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    left = _left_in_container()
    available = psutil.virtual_memory().available
    return available if left is None else min(available, left)


def _left_in_container() -> int | None:
    """What the control group leaves, page cache counted as free."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        cache = next(
            int(line.split()[1]) for line in (CGROUP / "memory.stat").read_text().splitlines() if line.startswith("file ")
        )
    except (OSError, ValueError, StopIteration):
        return None
    return None if limit == "max" else int(limit) - used + cache


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: by type on accelerators, by its words on CPU."""
    words = ("not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def cores_sharing() -> int:
    """How many processes like this one may share the machine's memory: one per core, at most."""
    return max(1, (os.cpu_count() or 1) // max(1, torch.get_num_threads()))
