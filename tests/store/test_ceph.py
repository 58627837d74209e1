"""Runs in a real S3 server that is not made for tests: the gateway of a one-node Ceph."""

import pytest

from tests.support.ceph_server import ceph_server, missing
from tests.support.store_runs import COMMANDS, StoreRuns, finished, refused

__all__ = ["finished"]  # a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing()),
        reason=f"not installed: {', '.join(missing())} (apt-get install ceph-mon ceph-osd radosgw)",
    ),
]


@pytest.fixture(scope="module")
def server():
    with ceph_server() as environment:
        yield environment


class TestCeph(StoreRuns):
    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_wrong_secret_is_refused(self, command, sweep_file, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-" + "secret-of-the-test")
        line = refused(command, sweep_file())
        assert "the store refuses access (SignatureDoesNotMatch" in line and "check the credentials" in line

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_key_that_nobody_has_is_refused(self, command, sweep_file, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYNOBODY")
        line = refused(command, sweep_file())
        assert "the store refuses access (InvalidAccessKeyId" in line and "check the credentials" in line
