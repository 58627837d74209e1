"""Run a conversion in a process of its own, and say what went wrong in words. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from workers.machine.code_digest import ROOT
from workers.models.model_json import one_line

NEEDED = ("gguf", "accelerate")
"""What transformers' loader of GGUF files needs beside it; the extra ``gguf``."""


class ConversionError(ValueError):
    """A GGUF file that could not be converted, with the reason."""


def missing_packages() -> str:
    """What a conversion lacks on this machine and how to get it, as a clause; empty if it lacks nothing."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if not absent:
        return ""
    return f"reading GGUF files needs {' and '.join(absent)}: pip install 'kvsweep[gguf]'"


def convert_file(file: Path, out: Path) -> None:
    """Write the folder ``out``. Raises ConversionError, with the last that the process said."""
    command = [sys.executable, "-m", "workers.models.gguf.convert", str(file.absolute()), str(out.absolute())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
    )

    if done.returncode == 0:
        return

    said = done.stderr.strip().splitlines()
    if done.returncode < 0:
        raise ConversionError(
            f"the process that converted it was ended by signal {-done.returncode} (is there enough memory?)"
        )
    raise ConversionError(one_line(said[-1] if said else f"exit status {done.returncode}"))
