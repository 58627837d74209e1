"""Policies of a user's own that end their worker, each in its way, for as long as the file ``faults`` lies
beside them.

A copy of this file stands where the command is started: rows and cells are named by its hash, so it stays as
it is throughout.
"""

import os
import time
from pathlib import Path

FAULTS = Path(__file__).parent / "faults"
"""Where there is one, its text is the control group that ``grows`` enters."""
STEP = 2**24


def oldest(view):
    return -view.positions.float()


def quits(view):
    """Ends its process, as a crash in compiled code does."""
    if FAULTS.exists():
        os._exit(1)
    return oldest(view)


def sleeps(view):
    """Never comes back."""
    while FAULTS.exists():
        time.sleep(0.1)
    return oldest(view)


def grows(view):
    """Takes memory without end, in a control group that allows little: the kernel ends the process."""
    if FAULTS.exists():
        (Path(FAULTS.read_text()) / "cgroup.procs").write_text(str(os.getpid()))
    held = []
    while FAULTS.exists():
        held.append(b"x" * STEP)
    return oldest(view)


def asks_too_much(view):
    """Wants more memory at once than there is, which the allocator refuses."""
    import torch

    if FAULTS.exists():
        torch.empty(2**50, dtype=torch.uint8)
    return oldest(view)
