"""What was planned, against what the device counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu_check.journal import Journal

GIB = 2**30


@dataclass(frozen=True)
class Taken:
    """What one line was planned to take beside the process, and its counter's peak; bytes."""

    what: str
    planned: int
    peak: int | None
    method: str | None


def memory(journal: Journal, device: torch.device, taken: list[Taken]) -> None:
    """Planned against measured; judged where a counter counts this alone, which on a CPU none does."""
    judged = device.type == "cuda"
    holds = "planned holds where it is at least the peak"
    if not judged:
        holds = "a process's peak holds other things: nothing is judged here"
    counter = next((each.method for each in taken if each.method), "none")
    columns = "planned GiB  peak GiB  planned / peak  of"
    journal.begin("memory", f"{holds}; planned without the process\ncounter: {counter}\n{columns}")
    for each in taken:
        if each.peak is None:
            journal.say(f"{each.planned / GIB:11.2f} {'-':>9} {'-':>15}  {each.what}: no counter here")
            continue
        times = each.planned / each.peak
        journal.say(f"{each.planned / GIB:11.2f} {each.peak / GIB:9.2f} {times:15.2f}  {each.what}")
        if judged and each.peak > each.planned:
            journal.fail(
                f"{each.what} took {each.peak} bytes, more than the {each.planned} that were planned"
            )
