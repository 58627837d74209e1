"""Where Ray keeps the sockets of a local run: their paths have a limit, found before anything runs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pipeline.sweepfile.sweep_error import SweepError

SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a unix socket."""
SESSION_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""What Ray puts behind the folder."""
MOST = SOCKET_BYTES - SESSION_BYTES


def ray_folder() -> tuple[str | None, str | None]:
    """The folder to give to Ray, None where its own choice
    does, and a note where it is another than TMPDIR says.

    Raises SweepError where no folder is short enough.
    """
    own = os.environ.get("RAY_TMPDIR")
    chosen = (
        own
        or (os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None)
        or tempfile.gettempdir()
    )
    length = len(os.fsencode(os.path.abspath(chosen)))
    if length <= MOST and (own or _is_writable(chosen)):
        return None, None
    name = "RAY_TMPDIR" if own else "TMPDIR"
    what = (
        f"{name} has a path of {length} bytes, and Ray's sockets take {MOST} at most"
        if length > MOST
        else f"{name} cannot be used"
    )
    if own or not _is_writable("/tmp"):
        raise SweepError([f"{what}; set RAY_TMPDIR to a short folder that you may write to, or use --inline"])
    return "/tmp/ray", f"{what}: Ray keeps its sockets and logs in /tmp/ray"


def _is_writable(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)
