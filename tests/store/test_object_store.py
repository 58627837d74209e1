"""Runs in an object store: a real S3 server over HTTP, from the command to the report, and every way in which
it can be lost."""

import pytest

from tests.support import s3_server
from tests.support.store_runs import COMMANDS, StoreRuns, finished, refused

__all__ = ["finished"]  # a fixture


@pytest.fixture(scope="module")
def address():
    with s3_server.s3_server() as found:
        yield found


@pytest.fixture(scope="module")
def server(address):
    return s3_server.settings(address)


class TestMoto(StoreRuns):
    @pytest.mark.parametrize("command", COMMANDS)
    def test_wrong_credentials_are_refused(self, command, sweep_file, address):
        s3_server.ask(address, "/moto-api/reset-auth", "POST", b"0")
        try:
            line = refused(command, sweep_file())
        finally:
            s3_server.ask(address, "/moto-api/reset-auth", "POST", b"inf")
        assert (
            "the store refuses access (InvalidAccessKeyId The AWS Access Key Id you provided does not exist"
            in line
        )
        assert "check the credentials" in line

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["run", "status"])
    def test_an_endpoint_where_nothing_listens_is_refused(self, command, sweep_file, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.closed_port())
        assert (
            "the store cannot be reached, asked 11 times; check the endpoint (such as AWS_ENDPOINT_URL)"
            in refused(command, sweep_file())
        )

    def test_plain_http_that_was_not_allowed_is_refused(self, sweep_file, monkeypatch):
        monkeypatch.delenv("AWS_ALLOW_HTTP")
        assert "plain http needs AWS_ALLOW_HTTP=true" in refused("status", sweep_file())
