"""A head that is gone is noticed without Ray, a Ray that hangs is ended, and signals end a run as Ctrl-C
does."""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from pipeline.cluster import cluster_head
from pipeline.cluster.cluster_head import ClusterLostError, HeadWatch, at_most, prepare_environment
from pipeline.driving.interrupts import interruptible


def test_a_head_that_listens_answers_and_one_that_is_gone_is_lost_after_its_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = HeadWatch(f"127.0.0.1:{server.getsockname()[1]}")
        assert watch.answers()
    assert not watch.answers(), "not yet: it may be restarted"
    monkeypatch.setattr(cluster_head, "GONE_SECONDS", 0.0)
    time.sleep(0.01)
    with pytest.raises(ClusterLostError, match="has not answered"):
        watch.answers()


@pytest.fixture
def raylet(tmp_path):
    """A process of this one's that is called as Ray's are."""
    program = tmp_path / "raylet"
    shutil.copy(shutil.which("sleep") or pytest.skip("there is no sleep here"), program)
    with subprocess.Popen([program, "60"]) as process:
        yield process
        process.kill()


def test_a_ray_of_this_process_that_takes_too_long_is_killed(raylet):
    with at_most(0.1):
        assert raylet.wait(20) == -signal.SIGKILL


def test_one_that_is_in_time_is_left_alone(raylet):
    with at_most(0.2):
        pass
    time.sleep(0.4)
    assert raylet.poll() is None


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_block_as_ctrl_c_does_and_handlers_come_back(kind):
    before = signal.getsignal(kind)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(kind)
    assert signal.getsignal(kind) is before


def test_what_rays_own_handler_raises_is_taken_for_an_interrupt_and_other_exits_are_not():
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise SystemExit(signal.SIGTERM)
    with pytest.raises(SystemExit), interruptible():
        raise SystemExit(2)


def test_the_token_is_on_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_environment("local")
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    del os.environ["RAY_AUTH_TOKEN"]
    prepare_environment("auto")
    assert "RAY_AUTH_TOKEN" not in os.environ, "a cluster's token is not made up"
