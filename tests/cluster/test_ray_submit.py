"""``ray up``, ``ray submit`` and ``ray down`` with the commands of ray_cluster.yaml, over ssh, on a head and
a worker."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from pipeline.driving.run_sweep import DONE
from pipeline.store.lease import LEASE_NAME as LEASE
from tests.support.command import run_inline
from tests.support.held_runs import LONGER, POLICIES, rows_of, same_rows, until_held
from tests.support.private_machine import needs, two_machines
from tests.support.ssh_cluster import SshCluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Up for the whole module; taken down at its end, which leaves nothing of Ray on the head."""
    needs("sshd", "ssh", "rsync")
    folder = tmp_path_factory.mktemp("cluster")
    with two_machines(folder) as (head, worker):
        cluster = SshCluster(folder, head, worker)
        cluster.up()
        yield cluster
        status, printed = cluster.ray("down", "-y")
        assert status == 0, printed
        assert head.processes("ray") == []


@pytest.fixture
def uploaded(cluster, sweep_file):
    """``uploaded(key="YAML", ...)``: a sweep file in the home directory of the head, where a driver starts;
    and here."""

    def upload(**changes: str) -> Path:
        file = sweep_file(**changes)
        status, printed = cluster.ray("rsync-up", file, "~/mine.yaml")
        assert status == 0, printed
        return file

    return upload


def driver_ends(cluster: SshCluster) -> None:
    deadline = time.monotonic() + 20
    while cluster.head.processes("sweep.py mine.yaml"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_checkout_and_the_token_are_on_every_node_and_no_more(cluster):
    for machine in cluster.machines:
        assert (machine.home / "kvsweep" / "pipeline" / "sweep.py").exists()
        assert list((machine.home / "kvsweep").rglob("left_out")) == []
        token = machine.home / ".ray" / "auth_token"
        assert token.read_text() == cluster.token and token.stat().st_mode & 0o777 == 0o600


def test_the_worker_gives_the_rows_of_a_local_run(cluster, uploaded, tmp_path):
    sweep = uploaded()
    status, printed = cluster.ray("submit", "pipeline/sweep.py", "mine.yaml", "--out", tmp_path / "cluster")
    assert status == 0, printed
    assert re.search(r"│ +3 │ +3 │ +0 │", printed), (
        "the table of cells, done, failed: ray submit makes a terminal"
    )
    assert f"{tmp_path / 'cluster' / 'report.html'}" in printed
    assert run_inline(sweep, tmp_path / "local") == DONE
    same_rows(tmp_path / "cluster", tmp_path / "local", 9)
    assert not (tmp_path / "cluster" / LEASE).exists()


def test_bad_input_is_shown_and_writes_nothing(cluster, uploaded, tmp_path):
    uploaded(keep_ratios="[1.5]")
    status, printed = cluster.ray("submit", "pipeline/sweep.py", "mine.yaml", "--out", tmp_path / "bad")
    assert status != 0 and "keep_ratios" in printed and "1.5" in printed
    assert not (tmp_path / "bad").exists()


def test_a_gpu_unit_goes_to_the_node_with_a_gpu(cluster, uploaded, tmp_path):
    """Ray is told of a GPU that is not there: the unit gets its place, and fails there."""
    uploaded(devices="[cuda]")
    status, printed = cluster.ray("submit", "pipeline/sweep.py", "mine.yaml", "--out", tmp_path / "gpu")
    assert status != 0, printed
    failures = pl.read_parquet(tmp_path / "gpu" / "failures")
    assert len(failures) == 3 and "NoCapacity" not in set(failures["error_type"])
    assert failures["node"].str.starts_with("worker:").all()


def test_strangers_are_refused(cluster, tmp_path):
    ask = ("ray", "status", "--address", f"{cluster.head.address}:6379")
    for token, refused in (("0" * 64, True), (cluster.token, False)):
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        client = cluster.head.client(*ask, home=cluster.home, folder=tmp_path, **own)
        printed, _ = client.communicate(timeout=60)
        assert ("InvalidAuthToken" in printed, client.returncode != 0, "timing" in printed) == (
            refused,
            refused,
            not refused,
        ), printed


def at_a_terminal(cluster: SshCluster, command: tuple, hold: Path) -> tuple[int, str]:
    """Ctrl-C on the keyboard, in the middle of the run: exit status and what was printed."""
    keyboard, terminal = os.openpty()
    client = cluster.start(*command, stdin=terminal)
    until_held(hold, client)
    os.write(keyboard, b"\x03")
    printed, _ = client.communicate(timeout=30)
    return client.returncode, printed


def without_a_terminal(cluster: SshCluster, command: tuple, hold: Path) -> tuple[int, str]:
    """An interrupted client without a terminal, whose driver hears no more than that the line is cut."""
    client = cluster.start(*command)
    until_held(hold, client)
    client.send_signal(signal.SIGINT)
    printed, _ = client.communicate(timeout=30)
    return client.returncode, printed


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(cluster, uploaded, tmp_path):
    hold, out = tmp_path / "hold", tmp_path / "out"
    uploaded(policies='["users_policy:waits"]', generation=LONGER)
    for machine in cluster.machines:  # as if it had been in the checkout when the cluster was started
        (machine.home / "kvsweep" / "users_policy.py").write_text(POLICIES.format(hold=str(hold)))
    submit = ("submit", "pipeline/sweep.py", "mine.yaml", "--out", out)
    hold.touch()
    status, printed = at_a_terminal(cluster, submit, hold)
    assert status != 0 and "interrupted; what is done is kept" in printed
    driver_ends(cluster)
    assert not (out / LEASE).exists()
    kept = {part: part.read_bytes() for part in out.glob("perplexity/*.parquet")}
    assert kept and not list(out.glob("generation/*.parquet"))
    hold.write_text("")
    status, _ = without_a_terminal(cluster, submit, hold)
    assert status != 0
    driver_ends(cluster)
    hold.unlink()
    status, printed = cluster.ray(*submit)
    assert status == 0 and re.search(r"5 cells, 2 to do in \d+ units", printed), printed
    assert {part: part.read_bytes() for part in out.glob("perplexity/*.parquet")} == kept
    assert set(rows_of(out, "generation")["policy"].str.split("@").list.first()) == {
        "dense",
        "users_policy:waits",
    }
