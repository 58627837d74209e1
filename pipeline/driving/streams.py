"""Standard streams that are closed, full or no longer read: no traceback, and an exit status that says what
was not written."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

NOT_WRITTEN = 1
"""The command's own output could not be written, as by any tool that fails."""
UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT, errno.EFBIG)


def plain(text: str) -> str:
    """Text from stored files without the control characters that would steer a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


class _Quiet:
    """stderr to which nothing may be writable: what it would say of a run must not end the run."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_guarded(command: Callable[[], Any]) -> NoReturn:
    """Run a command to its end and exit with its status, or
    with NOT_WRITTEN where its output could not be written."""
    closed = _open_closed()
    sys.stderr = _Quiet(sys.stderr)
    status: Any = 0

    try:
        try:
            status = command()
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()
        if 1 in closed and _writes_to_stdout():
            raise OSError(errno.EBADF, "it is closed")
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        if error.errno != errno.EPIPE:  # whoever reads no further, as `head` does, needs no word
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        status = status or NOT_WRITTEN

    _forget_stdout()
    sys.exit(status)


def say_last(line: str) -> None:
    """The last line of a run on stdout. What was run is kept whether it can be written or not."""
    try:
        if isinstance(sys.stdout, _Counting):
            raise OSError(errno.EBADF, "it is closed")
        print(line, flush=True)
    except (OSError, ValueError):
        print(f"note: stdout cannot be written; {line}", file=sys.stderr)
        _forget_stdout()


class _Counting:
    """stdout that was closed from the start: takes everything and knows whether it was given anything."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.given = stream, False

    def write(self, text: str) -> int:
        """Take it."""
        self.given = True
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed() -> set[int]:
    """Give closed standard streams a place that takes everything, or the next file that is opened would
    become one of them."""
    closed = set()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            closed.add(number)

    # Both are held until the process ends.
    if sys.stdout is None or 1 in closed:
        sys.stdout = _Counting(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if sys.stderr is None or 2 in closed:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return closed


def _writes_to_stdout() -> bool:
    return isinstance(sys.stdout, _Counting) and sys.stdout.given


def _forget_stdout() -> None:
    """What is left in a buffer that cannot be written would
    be tried again, and complained about, as Python ends."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
