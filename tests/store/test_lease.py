"""Two drivers on one run directory: the second refuses and writes nothing; a dead one is replaced."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import obstore
import pytest

from pipeline.driving.run_sweep import BAD_INPUT, DONE, INTERRUPTED
from pipeline.store.lease import LEASE_NAME, STALE_SECONDS, Holder, Lease, LeaseLostError, describe_driver
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import ROOT, kvsweep, run_inline
from tests.support.s3_server import s3_server, settings

pytestmark = pytest.mark.slow

DRIVER = """\
import sys, time
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore
with Lease(RunStore(sys.argv[1], create=True), beat_seconds=0.2):
    print("driving", flush=True)
    sys.stdin.readline()
"""
RACER = """\
import sys, time
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
store = RunStore(sys.argv[1])
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
try:
    with Lease(store):
        print("driving", flush=True)
        sys.stdin.readline()
except SweepError:
    print("refused", flush=True)
"""


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(str(tmp_path / "run"), create=True)


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def other_driver(store: RunStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    with start(DRIVER, store.directory) as process:
        try:
            assert process.stdout and process.stdout.readline() == "driving\n"
            yield process
        finally:
            process.kill()


def files(folder: str | Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def objects(store: RunStore) -> list[str]:
    """Names of all that is stored."""
    return [meta["path"] for batch in obstore.list(store.store) for meta in batch]


def holder(store: RunStore) -> Holder:
    found = Holder.read(store.get(LEASE_NAME) or b"")
    assert found
    return found


def leave_lease(store: RunStore, **changes: object) -> None:
    """The lease of a driver that ended without a word."""
    store.put(LEASE_NAME, replace(Holder.here(), token="another", **changes).content(), overwrite=True)


def ago(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat(
        timespec="seconds"
    )


def test_a_second_driver_ends_with_2_one_line_and_nothing_written(store, sweep_file):
    with other_driver(store) as process:
        before = {
            name: content for name, content in files(store.directory).items() if not name.endswith(LEASE_NAME)
        }
        done = kvsweep(
            "run", sweep_file(), "--inline", "--out", store.directory, folder=Path(store.directory).parent
        )
        assert done.returncode == BAD_INPUT and done.stdout == ""
        (line,) = done.stderr.splitlines()
        for part in (
            "error: ",
            store.directory,
            f"pid {process.pid}",
            os.uname().nodename,
            "last heard of",
            "wait for it",
        ):
            assert part in line
        assert before == {} == {n: c for n, c in files(store.directory).items() if not n.endswith(LEASE_NAME)}


def test_status_tells_that_a_driver_runs_and_that_it_died(store, sweep_file, tmp_path):
    assert run_inline(sweep_file(), Path(store.directory)) == DONE
    with other_driver(store) as process:
        assert (
            f"running (host {os.uname().nodename}, pid {process.pid}"
            in kvsweep("status", store.directory, folder=tmp_path).stdout
        )
    lines = kvsweep("status", store.directory, folder=tmp_path).stdout.splitlines()
    assert (
        lines[1].startswith("not running; its driver left no end") and "the same command goes on" in lines[1]
    )


def test_a_driver_that_ends_leaves_no_lease(store):
    with other_driver(store) as process:
        process.communicate("end\n", timeout=30)
        assert process.returncode == 0
        assert files(store.directory) == {}


def test_a_killed_driver_is_replaced_at_once_with_a_note(store, sweep_file, capsys):
    with other_driver(store) as process:
        process.send_signal(signal.SIGKILL)
        time.sleep(0.2)  # it is a zombie until somebody waits for it, and no driver any more
        assert run_inline(sweep_file(), Path(store.directory)) == DONE
    printed = capsys.readouterr().err
    assert f"note: took over from the driver before (host {os.uname().nodename}, pid {process.pid}" in printed
    assert not (Path(store.directory) / LEASE_NAME).exists()


def test_a_driver_elsewhere_is_refused_while_it_was_heard_of(store):
    leave_lease(store, host="far", machine="far", pid=1, heartbeat_at=ago(STALE_SECONDS - 5))
    with pytest.raises(SweepError, match=r"host far, pid 1, .*last heard of 8\d s ago"), Lease(store):
        pass


UNTOLD = {
    "long silent": lambda: ago(STALE_SECONDS + 5),
    "dated in the future": lambda: "2100-01-01T00:00:00+00:00",
    "without a time zone": lambda: ago(0).removesuffix("+00:00"),
}
"""Heartbeats by which nobody can tell whether a driver on another machine, with another clock, lives."""


@pytest.mark.parametrize("heartbeat", UNTOLD.values(), ids=UNTOLD)
def test_a_driver_elsewhere_is_watched_and_replaced_where_it_says_nothing(heartbeat, store, capsys):
    leave_lease(store, host="far", machine="far", pid=1, heartbeat_at=heartbeat())
    with Lease(store, watch_seconds=0.3):
        assert holder(store).pid == os.getpid()
    assert files(store.directory) == {}
    assert "may be dead; watching it for" in capsys.readouterr().err


@pytest.mark.parametrize("heartbeat", UNTOLD.values(), ids=UNTOLD)
def test_a_driver_elsewhere_that_beats_is_never_replaced_whatever_its_clock_says(heartbeat, store):
    beat, ended = heartbeat(), threading.Event()

    def live() -> None:
        number = 0
        while not ended.wait(0.1):
            number += 1
            leave_lease(store, host="far", machine="far", pid=number, heartbeat_at=beat)

    leave_lease(store, host="far", machine="far", pid=1, heartbeat_at=beat)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(SweepError, match="another driver is running this sweep"),
            Lease(store, watch_seconds=5),
        ):
            pass
    finally:
        ended.set()
        thread.join()
    assert holder(store).host == "far"


@pytest.mark.parametrize("heartbeat", list(UNTOLD.values())[1:], ids=list(UNTOLD)[1:])
def test_a_dead_driver_of_this_machine_is_replaced_at_once_whatever_its_clock_says(heartbeat, store, capsys):
    leave_lease(store, process_started=1.0, heartbeat_at=heartbeat())
    with Lease(store):
        assert holder(store).token != "another"
    assert "watching" not in capsys.readouterr().err


BROKEN = [b" " * 200_000, b"", b"{}", b"[1]", b"null", b'{"pid": 1}', b"\xff", b"[" * 50_000, b"1" * 200_000]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_an_unreadable_lease_is_watched_and_replaced_with_a_note(store, content, capsys):
    store.put(LEASE_NAME, content)
    assert "unreadable" in describe_driver(store)
    with Lease(store, watch_seconds=0.2):
        assert holder(store).pid == os.getpid()
    assert f"took over from an unreadable {LEASE_NAME}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"pid": 10**30}, {"pid": -1}, {"pid": True}, {"host": 3}, {"heartbeat_at": "noon"}], ids=str
)
def test_a_lease_with_values_that_cannot_be_is_unreadable(change):
    assert Holder.read(json.dumps(json.loads(Holder.here().content()) | change).encode()) is None


def test_a_process_that_got_the_number_of_a_dead_driver_is_not_taken_for_it(store):
    leave_lease(store, process_started=1.0)
    with Lease(store):
        assert holder(store).token != "another"


def test_a_lease_says_again_and_again_that_it_lives(store):
    with Lease(store, beat_seconds=0.05):
        first = holder(store).heartbeat_at
        deadline = time.monotonic() + 10
        while holder(store).heartbeat_at == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert holder(store).heartbeat_at > first and holder(store).started_at == first


@pytest.mark.parametrize("content", [None, Holder.here().content()], ids=["gone", "another's"])
def test_a_driver_whose_lease_was_taken_stops_before_it_stores_and_leaves_the_new_one_alone(store, content):
    with Lease(store, beat_seconds=0.05) as lease:
        lease.hold()
        if content is None:
            store.delete(LEASE_NAME)
        else:
            store.put(LEASE_NAME, content, overwrite=True)
        time.sleep(0.5)
        with pytest.raises(LeaseLostError, match="another driver has taken over"):
            lease.hold()
    assert store.get(LEASE_NAME) == content


@pytest.mark.parametrize("change", [STALE_SECONDS, -STALE_SECONDS], ids=["slept", "clock set back"])
def test_a_machine_that_slept_or_whose_clock_was_set_back_looks_before_it_stores(change, store, monkeypatch):
    with Lease(store) as lease:
        store.put(LEASE_NAME, Holder.here().content(), overwrite=True)
        lease.hold()
        awake = time.time() + change
        monkeypatch.setattr("pipeline.store.lease.time.time", lambda: awake)
        with pytest.raises(LeaseLostError):
            lease.hold()


def test_a_run_that_lost_its_lease_is_interrupted_and_stores_nothing_more(
    sweep_file, out, monkeypatch, capsys
):
    def lost(self: Lease) -> None:
        raise LeaseLostError("another driver has taken over")

    monkeypatch.setattr(Lease, "hold", lost)
    assert run_inline(sweep_file(), out) == INTERRUPTED
    assert "error: another driver has taken over" in capsys.readouterr().err
    assert {Path(name).name for name in files(out)} == {"run.json", "cells.parquet", "log.jsonl"}


def test_a_directory_in_which_a_run_died_before_its_first_word_is_taken(store, sweep_file):
    leave_lease(store, process_started=1.0)
    assert run_inline(sweep_file(), Path(store.directory)) == DONE


@pytest.fixture(params=["local", "s3"])
def anywhere(request, tmp_path, monkeypatch) -> Iterator[RunStore]:
    """A run directory here and one in an object store."""
    if request.param == "local":
        yield RunStore(str(tmp_path / "run"), create=True)
        return
    with s3_server() as address:
        for name, value in settings(address).items():
            monkeypatch.setenv(name, value)
        yield RunStore("s3://bucket/run")


@pytest.mark.parametrize("lease", ["none", "dead", "claimed by a dead one"])
def test_of_many_drivers_that_start_together_one_drives(anywhere, lease, request):
    store = anywhere
    if lease != "none":
        leave_lease(store, process_started=1.0)
    if lease == "claimed by a dead one":
        claim = f"driver-{hashlib.sha256(store.get(LEASE_NAME) or b'').hexdigest()[:12]}-0.claim"
        store.put(claim, store.get(LEASE_NAME) or b"")
    begin = str(time.time() + 4)
    racers = [start(RACER, store.directory, begin) for _ in range(5)]
    request.addfinalizer(lambda: [racer.kill() for racer in racers])
    said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    assert sorted(said) == ["driving"] + ["refused"] * 4
    assert holder(store).pid == racers[said.index("driving")].pid
    for racer in racers:
        racer.communicate("end\n" if racer.poll() is None else None, timeout=60)
    assert objects(store) == []


def test_the_lease_is_readable_json_for_people(store):
    with Lease(store):
        content = json.loads(store.get(LEASE_NAME) or b"")
    assert {"host", "pid", "started_at", "heartbeat_at"} <= content.keys()
