"""docs/slurm.sh on a Slurm cluster of two nodes."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from pipeline.driving.run_sweep import INTERRUPTED
from pipeline.store.lease import LEASE_NAME as LEASE
from tests.support.command import ROOT
from tests.support.held_runs import LONGER, copy_of_project, rows_of
from tests.support.private_machine import needs, two_machines
from tests.support.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    needs("slurmctld", "slurmd", "sbatch")
    folder = tmp_path_factory.mktemp("slurm")
    with two_machines(folder) as machines:
        yield SlurmCluster(folder, *machines)


def test_time_that_is_up_keeps_what_is_done_and_the_same_job_goes_on(slurm, sweep_file, tmp_path):
    hold, out, project = tmp_path / "hold", tmp_path / "out", copy_of_project(tmp_path)
    shutil.copy(sweep_file(policies='["users_policy:waits"]', generation=LONGER), project / "mine.yaml")
    options = f"--export=ALL,PYTHONPATH={project},KVSWEEP_VENV={sys.prefix} --output=%j.txt"
    command = f"{options} {ROOT / 'docs' / 'slurm.sh'} mine.yaml --out {out}"
    hold.touch()
    job = slurm.submit(command, project)
    until_held(hold, project, job)
    assert (out / LEASE).exists()
    stranger = slurm.machines[1].here(
        f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64} ray status --address {slurm.head.address}:6379"
    )
    assert stranger.returncode != 0 and "InvalidAuthToken" in stranger.stdout
    slurm.here(f"scancel --batch --signal=TERM {job}")  # what --signal=B:TERM@120 does before the time is up
    assert slurm.end_of(job) == ("FAILED", str(INTERRUPTED))
    said = printed(project, job)
    assert "interrupted; what is done is kept" in said and not (out / LEASE).exists()
    kept = {part: part.read_bytes() for part in out.glob("perplexity/*.parquet")}
    assert kept and not list(out.glob("generation/*.parquet"))
    hold.unlink()
    job = slurm.submit(command, project)
    assert slurm.end_of(job) == ("COMPLETED", "0"), printed(project, job)
    assert printed(project, job).splitlines()[-1] == str(out / "report.html")
    assert {part: part.read_bytes() for part in out.glob("perplexity/*.parquet")} == kept
    assert set(rows_of(out, "generation")["policy"].str.split("@").list.first()) == {
        "dense",
        "users_policy:waits",
    }


def printed(project: Path, job: str) -> str:
    return (project / f"{job}.txt").read_text()


def until_held(hold: Path, project: Path, job: str) -> None:
    deadline = time.monotonic() + 90
    while hold.read_text() != "reached":
        assert time.monotonic() < deadline, printed(project, job)
        time.sleep(0.2)
