"""What is written: a folder with a file per section, line by line, and the summary of all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from workers.machine.clock import device_name
from workers.messages.out_of_memory import is_out_of_memory

SECTIONS = ("self_checks", "exactness", "large_model", "perplexity", "generation", "memory")
GROWTH = 3.0
"""An item takes at most so many times what the one before took: each has about twice its tokens."""


@dataclass
class Journal:
    """The folder: a file per section, written line by line; what failed and what the time did not reach."""

    folder: Path
    deadline: float
    section: str = ""
    lines: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def begin(self, section: str, header: str) -> None:
        """A section's file, in place of one of an earlier run."""
        self.section = section
        self.lines[section] = 0
        (self.folder / f"{section}.txt").write_text("")
        self._write(header)

    def say(self, line: str) -> None:
        """A result."""
        self.lines[self.section] += 1
        self._write(line)

    def fail(self, line: str) -> None:
        """A check that failed."""
        self.failed.append(f"{self.section}: {line}")
        self._write(f"FAILED: {line}")

    def leave_out(self, line: str) -> None:
        """What is not done, and why."""
        self.left_out.append(f"{self.section}: {line}")
        self._write(f"left out: {line}")

    def attempt(self, what: str, work: Callable[[], None], expected_seconds: float = 0.0) -> float:
        """Do it if the time is there; returns the seconds that it took. What it raises is a failure of it
        alone."""
        left = self.deadline - time.monotonic()
        if left <= expected_seconds:
            self.leave_out(f"{what}: {max(0.0, left):.0f} s are left and it may take {expected_seconds:.0f}")
            return expected_seconds

        begin = time.monotonic()
        try:
            work()
        except (
            Exception
        ) as error:  # whatever it is, it is this item's result, and the others still have theirs
            kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
            self.fail(f"{what}: {kind}: {next(iter(str(error).splitlines()), '')}")
        return time.monotonic() - begin

    def _write(self, line: str) -> None:
        print(line, flush=True)
        with (self.folder / f"{self.section}.txt").open("a") as file:
            file.write(f"{line}\n")


def summary(journal: Journal, device: torch.device, seconds: float) -> int:
    """The last file. Returns the exit status."""
    counts = {section: journal.lines.get(section, 0) for section in SECTIONS}
    journal.begin(
        "summary",
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{device.type}: {device_name(device)}",
    )
    for section, lines in counts.items():
        journal.say(f"{section:12} {lines:3} lines" + ("" if lines else ": nothing was measured"))
    for line in journal.left_out:
        journal.say(f"left out: {line}")
    for line in journal.failed:
        journal.say(f"FAILED: {line}")
    outcome = f"{len(journal.failed)} failed" if journal.failed else "every check that was made passed"
    journal.say(f"{outcome}; {len(journal.left_out)} left out; {seconds:.0f} s; {journal.folder}")
    return 1 if journal.failed else 0
