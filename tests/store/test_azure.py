"""A run in Azure's blob store: started, resumed, read and reported there, one driver at a time."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.azure_server import azure_server, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing(), reason="azurite is not installed (npm install --global azurite)"),
]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    with azure_server(tmp_path / "azurite") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield


def test_a_run_lies_in_a_container_from_its_start_to_its_report(sweep_file):
    sweep = sweep_file()
    words = ["run", str(sweep), "--inline", "--out", "az://bucket/run"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "az://bucket/run/report.html"
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0 and "0 to do in 0 units" in again.stderr, again.output
    told = CliRunner().invoke(app, ["status", "az://bucket/run"])
    assert told.exit_code == 0 and "3 done, 0 failed, 0 missing" in told.stdout, told.output
    assert RunStore("az://bucket/run").scan("perplexity").collect().height == 9


def test_a_second_driver_is_refused_there_too():
    with (
        Lease(RunStore("az://bucket/run")),
        pytest.raises(SweepError, match="another driver is running"),
        Lease(RunStore("az://bucket/run")),
    ):
        pass


def test_a_container_that_is_not_there_is_refused_in_one_line(sweep_file):
    done = CliRunner().invoke(app, ["run", str(sweep_file()), "--inline", "--out", "az://absent/run"])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --out az://absent/run: "), line
