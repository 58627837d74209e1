"""What is freed in the middle of the heap goes back to the system, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from workers.machine.heap import limit_heap_blocks
from workers.machine.peak_memory import resident_bytes

limit_heap_blocks()
SIZE, COUNT = 20 * 2**20, 10
for _ in range(3):
    torch.ones(30 * 2**20, dtype=torch.uint8)  # glibc's own limit grows to what was freed
before, large, small = resident_bytes(), [], []
for _ in range(COUNT):
    large.append(torch.ones(SIZE, dtype=torch.uint8))
    small.append(torch.ones(100_000, dtype=torch.uint8))  # lives on behind it
held = resident_bytes() - before
large.clear()
print(held >= COUNT * SIZE, (resident_bytes() - before) < 2 * SIZE)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_that_are_freed_between_living_ones_are_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
