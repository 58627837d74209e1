"""``kvsweep run --address``: a cluster is joined with its token, and refused with a reason where that does
not fit."""

from __future__ import annotations

import pytest

from pipeline.driving.run_sweep import BAD_INPUT, DONE
from tests.support.command import ROOT
from tests.support.held_runs import rows_of
from tests.support.private_machine import PrivateMachine, needs

pytestmark = pytest.mark.slow


def run(machine: PrivateMachine, sweep, out, variables: str = ""):
    command = f"kvsweep run {sweep} --address {machine.address}:6379 --out {out}"
    return machine.here(f"export PYTHONPATH={ROOT} {variables}; {command}")


def test_with_the_token_the_sweep_runs_there(head, sweep_file, out):
    done = run(head.machine, sweep_file(), out)
    assert done.returncode == DONE and done.stdout.splitlines()[-1] == str(out / "report.html"), done.stdout
    assert len(rows_of(out, "perplexity")) == 9


@pytest.mark.parametrize(
    "variables", ["HOME=/nowhere", f"RAY_AUTH_TOKEN={'0' * 64}"], ids=["no token", "wrong token"]
)
def test_without_the_token_nothing_is_started(head, sweep_file, out, variables):
    done = run(head.machine, sweep_file(), out, variables)
    assert done.returncode == BAD_INPUT and "Traceback" not in done.stdout, done.stdout
    assert (
        "no Ray cluster can be joined" in done.stdout and "is its token yours" in done.stdout.splitlines()[-1]
    )
    assert not out.exists()


def test_a_cluster_that_asks_for_no_token_is_refused(tmp_path, sweep_file, out):
    needs()
    with PrivateMachine(tmp_path / "open") as machine:
        start = "ray start --head --port=6379 --num-cpus=2 --object-store-memory=200000000"
        assert machine.here(f"RAY_AUTH_MODE=disabled {start}").returncode == 0
        done = run(machine, sweep_file(), out, f"RAY_AUTH_TOKEN={'0' * 64}")
    assert done.returncode == BAD_INPUT and "it asks nobody for a token" in done.stdout, done.stdout
    assert not out.exists()
