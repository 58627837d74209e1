"""Synchronised time and memory counters: cuda, mps and cpu behind one interface."""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """``clock()`` is seconds since some start, read after the device is synchronised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        """Synchronise, then read."""
        synchronize(self.device)
        return time.perf_counter()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now and not in the timed part."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def reset_peak_memory(device: torch.device) -> bool:
    """Start a new peak; False where the device has no peak counter that can be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type == "cpu" and sys.platform == "linux":
        try:
            with open("/proc/self/clear_refs", "w") as refs:
                refs.write("5")  # proc(5): resets the peak resident set size to the present one
        except OSError:
            return False
        return True
    return False


def peak_memory(device: torch.device) -> tuple[int | None, str | None]:
    """(bytes, method) since ``reset_peak_memory`` returned True; (None, None) where there is no counter."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda allocator, peak allocated"
    if device.type == "cpu" and sys.platform == "linux":
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024, "process peak resident set (VmHWM, reset before the run)"
    return None, None


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and sys.platform == "linux":
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
