"""The command, in a process of its own or in this one."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.driving.run_sweep import RunOptions, run_sweep

ROOT = Path(__file__).parents[2]


def kvsweep(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, started in ``folder``."""
    environment = {**(os.environ if environment is None else environment), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def run_inline(sweep: Path, out: Path | str, *, retry_failed: bool = False) -> int:
    """The same as ``kvsweep run --inline`` in this process."""
    return run_sweep(
        str(sweep), [], RunOptions(out=str(out), inline=True, threads=1, retry_failed=retry_failed)
    )
