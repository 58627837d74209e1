"""``driver.json``: who drives a run directory now.

One driver at a time, so that no cell is computed or stored twice.

Made by a put that only the first writer wins, which the store is asked to show first (``exclusion.py``), so
it holds on local disks and object stores alike. A driver that is dead leaves its lease behind; the next one
takes it over. The clocks of two machines may differ, and one may be set back, so a lease that another machine
wrote is only taken for a dead driver's after it was watched for longer than a heartbeat and stayed as it was.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter

from pipeline.store.exclusion import require_exclusion
from pipeline.store.run_store import STORE_ERRORS, RunStore
from pipeline.store.store_errors import RunUnreadableError
from pipeline.sweepfile.sweep_error import SweepError

LEASE_NAME = "driver.json"
BEAT_SECONDS, STALE_SECONDS = 20.0, 90.0
"""A driver says this often that it lives, and counts as dead after a silence of this length."""

WATCH_SECONDS = 1.5 * BEAT_SECONDS
"""How long a lease is watched for a heartbeat where clocks cannot tell whether its driver lives."""

MOST_LEASE_BYTES = 100_000
"""Of a driver.json; real ones have some hundred."""


class LeaseLostError(RuntimeError):
    """Another driver took the run directory over while this one was silent."""


@dataclass(frozen=True)
class Holder:
    """The content of a lease."""

    token: str
    host: str
    machine: str
    """Host, boot and process namespace: only within one do process ids mean the same processes."""
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    process_started: float
    started_at: str
    heartbeat_at: str

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        now, process = _now(), psutil.Process()
        return cls(
            uuid.uuid4().hex, platform.node(), _machine(), process.pid, process.create_time(), now, now
        )

    @classmethod
    def read(cls, content: bytes) -> Holder | None:
        """From a stored lease; None where it is none."""
        try:
            holder = TypeAdapter(cls).validate_json(content, strict=True)
            datetime.datetime.fromisoformat(holder.heartbeat_at)
        except ValueError:  # which what pydantic raises is too
            return None
        return holder

    def content(self) -> bytes:
        """As it is stored."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def silence(self) -> float | None:
        """Seconds since its last heartbeat; None where that cannot be told: no time zone, or a time that has
        not come yet."""
        then = datetime.datetime.fromisoformat(self.heartbeat_at)
        if then.tzinfo is None:
            return None
        seconds = (datetime.datetime.now(datetime.UTC) - then).total_seconds()
        return None if seconds < -STALE_SECONDS else max(0.0, seconds)

    def is_alive(self) -> bool | None:
        """Whether its process is there and was heard of lately;
        None where its own machine would have to be asked."""
        if self.machine == _machine() and self._is_gone():
            return False
        silence = self.silence()
        if silence is not None and silence <= STALE_SECONDS:
            return True
        return None

    def _is_gone(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return (
                process.status() == psutil.STATUS_ZOMBIE
                or abs(process.create_time() - self.process_started) > 2
            )
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        silence = self.silence()
        heard = (
            f"{silence:.0f} s ago"
            if silence is not None
            else f"at {self.heartbeat_at}, which says nothing here"
        )
        return f"host {self.host}, pid {self.pid}, since {self.started_at}, last heard of {heard}"


class Lease:
    """``with Lease(store) as lease``: this process drives the run.

    Raises SweepError where another one does.
    """

    def __init__(
        self, store: RunStore, beat_seconds: float = BEAT_SECONDS, watch_seconds: float = WATCH_SECONDS
    ) -> None:
        self._store, self._beat_seconds, self._watch_seconds = store, beat_seconds, watch_seconds
        self._me = Holder.here()
        self._renewed, self._lost = _clocks(), False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="driver lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease and keep it alive."""
        require_exclusion(self._store)
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back, unless it is another's by now.

        Where the store does not answer it ends by its silence.
        """
        self._stop.set()
        with self._lock, contextlib.suppress(*STORE_ERRORS):
            if self._is_mine(_stored(self._store)):
                self._store.delete(LEASE_NAME)

    def hold(self) -> None:
        """Raises LeaseLostError where another driver has taken over, as after a machine that slept."""
        if any(
            abs(now - then) > STALE_SECONDS / 2 for now, then in zip(_clocks(), self._renewed, strict=True)
        ):
            self._renew()
        if self._lost:
            raise LeaseLostError(f"another driver has taken over {self._store.directory}; this one stops")

    def _acquire(self) -> None:
        for _ in range(5):
            if self._store.put(LEASE_NAME, self._me.content()):
                return

            found = _stored(self._store)
            if self._is_mine(found):  # the put had worked although its answer was lost
                return
            if found is None:
                continue

            holder = Holder.read(found)
            if self._lives(found):
                raise SweepError(
                    [
                        f"{self._store.directory}: another driver is running this sweep "
                        f"({holder or LEASE_NAME}); wait for it, end it, or give another --out. "
                        f"A driver that is dead is replaced {STALE_SECONDS:.0f} s after it was last heard of"
                    ]
                )
            if self._take_over(found):
                who = f"the driver before ({holder})" if holder else f"an unreadable {LEASE_NAME}"
                print(f"note: took over from {who}, which left no end", file=sys.stderr)
                return

            time.sleep(0.2)
        raise SweepError(
            [
                f"{self._store.directory}: another driver is taking over this sweep now; "
                "look with `kvsweep status`"
            ]
        )

    def _lives(self, content: bytes) -> bool:
        """Whether the driver of a lease, or of a claim on one, lives.

        Where clocks cannot tell, the lease is watched.
        """
        holder = Holder.read(content)
        alive = holder.is_alive() if holder else None
        return self._changes() if alive is None else alive

    def _changes(self) -> bool:
        """Whether the lease gets another content while it is watched. One that goes away is nobody's."""
        seen, until = _stored(self._store), time.monotonic() + self._watch_seconds
        where, seconds = self._store.directory, self._watch_seconds
        print(
            f"note: {where} has a driver that may be dead; watching it for {seconds:.0f} s", file=sys.stderr
        )
        while seen is not None and time.monotonic() < until:
            time.sleep(min(1.0, self._watch_seconds / 10))
            found = _stored(self._store)
            if found is not None and found != seen:
                return True
            seen = found
        return False

    def _take_over(self, found: bytes) -> bool:
        """Replace a dead lease; False where another driver is about to or the lease has changed.

        Whoever makes the claim on this very content may replace it, once it has seen that the content still
        stands. A claim whose maker died is claimed in its turn, and stays until the lease is replaced:
        removing it first would let two through.
        """
        claims: list[str] = []
        content = found
        while True:
            claims.append(f"driver-{hashlib.sha256(content).hexdigest()[:12]}-{len(claims)}.claim")
            if self._store.put(claims[-1], self._me.content()):
                break
            other = self._store.get(claims[-1])
            if other is None or self._lives(other):
                return False
            content = other
        stands = _stored(self._store) == found
        if stands:
            self._store.put(LEASE_NAME, self._me.content(), overwrite=True)
        for claim in claims if stands else claims[-1:]:
            with contextlib.suppress(*STORE_ERRORS):  # what is left of it is in nobody's way
                self._store.delete(claim)
        return stands

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            self._renew()

    def _renew(self) -> None:
        """A store that does not answer is asked again at the next beat."""
        with self._lock, contextlib.suppress(*STORE_ERRORS):
            if self._stop.is_set() or self._lost:
                return
            if not self._is_mine(_stored(self._store)):
                self._lost = True
                return
            self._store.put(LEASE_NAME, replace(self._me, heartbeat_at=_now()).content(), overwrite=True)
            self._renewed = _clocks()

    def _is_mine(self, content: bytes | None) -> bool:
        holder = Holder.read(content) if content else None
        return holder is not None and holder.token == self._me.token


def describe_driver(store: RunStore) -> str:
    """One line on whether a run is being driven, and by whom."""
    content = _stored(store)
    if content is None:
        return "not running"

    holder = Holder.read(content)
    alive = holder.is_alive() if holder else None
    if alive:
        return f"running ({holder})"

    who = str(holder) if holder else f"{LEASE_NAME} is unreadable"
    if alive is None and holder and (holder.silence() or 0) <= STALE_SECONDS:
        return (
            f"perhaps running ({who}): the same command watches it for {WATCH_SECONDS:.0f} s and goes on if "
            "it is dead"
        )
    return f"not running; its driver left no end ({who}): the same command goes on"


def _stored(store: RunStore) -> bytes | None:
    """The lease as it lies there; of one that is too large to be one, nothing that can be read."""
    try:
        return store.get(LEASE_NAME, MOST_LEASE_BYTES)
    except RunUnreadableError:
        return b"too large"


def _clocks() -> tuple[float, float]:
    """Two clocks: one stands still while a machine sleeps, the other may be set back."""
    return time.time(), time.monotonic()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine() -> str:
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    return " ".join(parts)
