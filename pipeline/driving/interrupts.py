"""SIGTERM (``ray job stop``) and SIGHUP (a lost connection) end a run as Ctrl-C does, whatever it is
doing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

KINDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


def as_ctrl_c() -> None:
    """Handle these signals from now on.

    To be called again after ray.init, which puts its own handlers in their place.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for kind in KINDS:
            signal.signal(kind, interrupt)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Handle them for a while, then put back what was there.

    Ray's own handler, which stands for a moment, ends alike.
    """
    previous = {kind: signal.getsignal(kind) for kind in KINDS}
    as_ctrl_c()

    try:
        yield
    except SystemExit as error:
        if error.code in KINDS:
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for kind, handler in previous.items():
                signal.signal(kind, handler)
