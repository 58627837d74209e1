"""The user's cache folder: fetched and converted models, passed self-checks. A folder in it is whole or not
there. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = "KVSWEEP_CACHE"
"""The environment variable that names the folder; else it is kvsweep's in XDG_CACHE_HOME, or in ~/.cache."""


def cache_folder() -> Path:
    """Where it is, whether or not it is there yet.
    Raises RuntimeError where nothing says it and the user has no home."""
    named = os.environ.get(PLACE)
    if named:
        return Path(os.path.expanduser(named)).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvsweep"


def make_folder(folder: Path, make: Callable[[Path], None], wait: Callable[[], None]) -> bool:
    """Have ``make`` fill a folder beside ``folder`` and give it that name; False where another process has
    made it meanwhile.

    ``make`` gets an empty folder for whatever it needs and leaves ``made`` in it. ``wait`` is called once,
    before waiting for another process that makes the same. Nothing is left where ``make`` raises; what a
    killed process left is removed by the next.

    Raises what ``make`` raises, and OSError where the place cannot be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / f".{folder.name}.lock", wait):
        if _holds_something(folder):
            return False
        scratch = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            make(scratch)
            (scratch / "made").rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return True


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


@contextmanager
def _alone(lock: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Only one process at a time holds the lock;
    its file goes with it, so a file that is no longer there is no lock."""
    import fcntl  # which Windows lacks

    told = False
    while True:
        opened = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                wait()
            told = True
            fcntl.flock(opened, fcntl.LOCK_EX)
        if _is_file(lock, opened):
            break
        os.close(opened)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(opened)


def _is_file(path: Path, opened: int) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False
