"""``kvsweep`` as a user starts it, in a process of its own: one thread, no network, no cache of the
user's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START = "import sys; sys.argv[0] = 'kvsweep'; from kvsweep.command import main; main()"
"""What the console script does, by the code of this checkout."""

THREADS = 1
FIXED = {
    "OMP_NUM_THREADS": str(THREADS),
    "MKL_NUM_THREADS": str(THREADS),
    "POLARS_MAX_THREADS": str(THREADS),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "COLUMNS": "160",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}
"""One thread adds floats in one order; the rest is what may move a message."""

FOREIGN = ("RAY_", "AWS_", "HF_", "KVSWEEP_")
"""Variables of the user's that begin so say where to run or what to read, which is fixed here."""

FRAME = str.maketrans(dict.fromkeys(map(chr, range(0x2500, 0x2580)), " "))
"""Lines of the boxes around tables and messages, as wide as a terminal."""

MOST_SECONDS = 600.0
"""Of one command; the longest takes a tenth of it."""


@dataclass(frozen=True)
class Said:
    """How a command ended and what it wrote, in both with paths masked."""

    status: int
    out: str
    err: str


class CommandError(RuntimeError):
    """A command that had to succeed and did not."""


def kvsweep(*arguments: str | Path, folder: Path, cache: Path) -> Said:
    """The command, started in ``folder``, whose Python files it can import.

    ``cache`` is where it remembers self-checks.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "XDG_CACHE_HOME": str(cache)}
    places["HF_DATASETS_CACHE"] = str(cache / "datasets")
    command = [sys.executable, "-P", "-c", START, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**own, **FIXED, **places},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
    return Said(done.returncode, masked(done.stdout, folder), masked(done.stderr, folder))


def demanded(*arguments: str | Path, folder: Path, cache: Path, statuses: tuple[int, ...] = (0,)) -> Said:
    """As ``kvsweep``. Raises CommandError where it ends with another status."""
    said = kvsweep(*arguments, folder=folder, cache=cache)
    if said.status not in statuses:
        raise CommandError(f"kvsweep {' '.join(map(str, arguments))} ended with {said.status}:\n{said.err}")
    return said


def masked(text: str, folder: Path) -> str:
    """A text without the places of this machine: where a command was started, the code's, Python's."""
    for place, name in (
        (folder, "FOLDER"),
        (ROOT, "REPOSITORY"),
        (Path(sys.prefix), "PYTHON"),
        (Path.home(), "HOME"),
    ):
        for form in dict.fromkeys((str(place), str(place.resolve()))):
            text = re.sub(rf"{re.escape(form)}(?![\w.-])", name, text)
    return text


def unframed(text: str) -> list[str]:
    """The lines of a text without the boxes that are drawn on a terminal, and without empty ones."""
    lines = (" ".join(line.translate(FRAME).split()) for line in text.splitlines())
    return [line for line in lines if line]
