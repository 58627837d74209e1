"""Synchronised time: cuda, mps and cpu behind one interface."""

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


class Stopwatch:
    """``with watch:`` adds up what the device does inside, without waiting for it where its stream can keep
    the time (cuda)."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._total = 0.0
        self._begin = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.clock.device.type == "cuda":
            self._marks.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._marks[-1][0].record()
        else:
            self._begin = self.clock()

    def __exit__(self, *_: object) -> None:
        if self.clock.device.type == "cuda":
            self._marks[-1][1].record()
        else:
            self._total += self.clock() - self._begin

    def seconds(self) -> float:
        """The sum so far; waits for the device."""
        synchronize(self.clock.device)
        self._total += sum(begin.elapsed_time(end) for begin, end in self._marks) / 1000
        self._marks = []
        return self._total


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
