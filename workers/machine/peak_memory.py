"""Peak memory of one run, by the counter of its device; none where there is none, never a made-up zero.

There is one counter, and a run may be measured within a unit that is measured too: whoever starts the counter
anew first tells those who are still measuring what it said.
"""

from __future__ import annotations

import ctypes
import sys
from typing import ClassVar
from weakref import WeakSet

import torch

METHODS = {
    "cuda": "cuda allocator, peak allocated",
    "mps": "mps driver, largest of samples after each token",
    "cpu": "process peak resident set (VmHWM, freed memory returned and reset before the run)",
}


class PeakMemory:
    """``start()``, ``sample()`` after every step, ``result()``:
    (bytes, method), or (None, None) without a counter."""

    _measuring: ClassVar[WeakSet[PeakMemory]] = WeakSet()

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._counts = False
        self._highest = 0

    def start(self) -> None:
        """Forget earlier peaks: what a run before this one left behind must not count for this one."""
        for other in self._measuring:
            other.sample()
        self._highest = 0
        self._measuring.add(self)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._counts = True
        elif self.device.type == "mps":
            self._counts = True
        elif self.device.type == "cpu" and sys.platform == "linux":
            self._counts = _reset_resident_peak()

    def sample(self) -> None:
        """Note what the counter says: some count only what is allocated now."""
        if self._counts:
            self._highest = max(self._highest, self._counter())

    def _counter(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return _status("VmHWM:")

    def result(self) -> tuple[int | None, str | None]:
        """Peak in bytes since ``start``, and how it was obtained."""
        if not self._counts:
            return None, None
        self.sample()
        self._measuring.discard(self)
        return self._highest, METHODS[self.device.type]


def resident_bytes() -> int | None:
    """What this process has in memory now; None where the system does not say."""
    return _status("VmRSS:") if sys.platform == "linux" else None


def _status(name: str) -> int:
    with open("/proc/self/status") as status:
        held = next(line for line in status if line.startswith(name))
    return int(held.split()[1]) * 1024


def _reset_resident_peak() -> bool:
    """Give freed memory back to the system, then start a new peak; False where either cannot be done."""
    try:
        # freed blocks stay resident otherwise, and would count for the next run
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # proc(5): resets the peak resident set size to the present one
    except (OSError, AttributeError):
        return False
    return True
