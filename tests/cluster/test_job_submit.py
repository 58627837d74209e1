"""``ray job submit`` to a head that was started as docs/cluster.md says: rows, exit status, log, stop,
token."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import polars as pl
import pytest

from pipeline.driving.run_sweep import BAD_INPUT, DONE, SOME_FAILED
from pipeline.store.lease import LEASE_NAME as LEASE
from tests.support.command import ROOT, kvsweep
from tests.support.held_runs import LONGER, copy_of_project, rows_of, same_rows, until_held
from tests.support.ray_head import DASHBOARD, RayHead

pytestmark = pytest.mark.slow

STRANGERS = {
    "no token": ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "", 401),
    "wrong token": ({"RAY_AUTH_TOKEN": "0" * 64}, "0" * 64, 403),
}
"""What a stranger has in the environment, sends as a token, and gets for it."""


@pytest.fixture
def project(tmp_path) -> Path:
    return copy_of_project(tmp_path)


def submitted(head: RayHead, name: str, *arguments: str | Path, folder: Path) -> tuple[int, str, dict]:
    """A job to its end: the client's exit status, what it printed, and what Ray knows of the job."""
    process = head.submit(name, *arguments, folder=folder)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed, head.job(name)


def test_the_whole_checkout_can_be_sent_and_bad_input_writes_nothing(head, sweep_file, tmp_path):
    status, printed, job = submitted(
        head, "bad", sweep_file(keep_ratios="[1.5]"), "--out", tmp_path / "job", folder=ROOT
    )
    assert status != 0 and (job["status"], job["driver_exit_code"]) == ("FAILED", BAD_INPUT), printed
    assert "error: " in printed and "keep_ratios" in printed and "1.5" in printed
    assert not (tmp_path / "job").exists()


def test_a_job_gives_the_rows_of_a_local_run_its_progress_and_the_reason_of_a_failed_cell(
    head, project, sweep_file, tmp_path
):
    """The failing policy is nowhere but in the job's working directory, so driver and actors run what was
    sent."""
    shutil.copy(sweep_file(policies='[knorm, "users_policy:fails"]'), project / "mine.yaml")
    status, printed, job = submitted(head, "failing", "mine.yaml", "--out", tmp_path / "job", folder=project)
    assert status != 0 and (job["status"], job["driver_exit_code"]) == ("FAILED", SOME_FAILED), printed
    assert "3/5 cells done, 2 failed" in printed and "failed: 2 cells: RuntimeError: no score" in printed
    assert f"\n{tmp_path / 'job' / 'report.html'}\n" in printed
    local = kvsweep(
        "run", "mine.yaml", "--inline", "--threads", "1", "--out", tmp_path / "local", folder=project
    )
    assert local.returncode == SOME_FAILED, local.stderr
    same_rows(tmp_path / "job", tmp_path / "local", 9)
    assert set(pl.read_parquet(tmp_path / "job" / "failures")["message"]) == {"no score"}


def test_a_stopped_job_keeps_what_is_done_and_the_same_command_goes_on(head, project, sweep_file, tmp_path):
    hold, out = tmp_path / "hold", tmp_path / "job"
    shutil.copy(sweep_file(policies='["users_policy:waits"]', generation=LONGER), project / "mine.yaml")
    hold.touch()
    client = head.submit("stopped", "mine.yaml", "--out", out, folder=project)
    until_held(hold, client)
    assert (out / LEASE).exists()
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=20)
    assert head.job("stopped")["status"] == "RUNNING", "Ctrl-C ends the client alone"
    stop = head.client("ray", "job", "stop", "--address", DASHBOARD, "stopped")
    assert "was stopped" in stop.communicate(timeout=20)[0]
    assert head.job("stopped")["status"] == "STOPPED" and head.machine.processes("pipeline.sweep") == []
    assert not (out / LEASE).exists() and "interrupted; what is done is kept" in head.log("stopped")
    kept = {part: part.read_bytes() for part in out.glob("perplexity/*.parquet")}
    assert kept and not list(out.glob("generation/*.parquet"))
    hold.unlink()
    status, printed, job = submitted(head, "resumed", "mine.yaml", "--out", out, folder=project)
    assert (status, job["driver_exit_code"], job["status"]) == (0, DONE, "SUCCEEDED"), printed
    assert {part: part.read_bytes() for part in out.glob("perplexity/*.parquet")} == kept
    assert set(rows_of(out, "generation")["policy"].str.split("@").list.first()) == {
        "dense",
        "users_policy:waits",
    }


def test_an_out_in_the_jobs_working_directory_is_refused(head, project, sweep_file):
    shutil.copy(sweep_file(), project / "mine.yaml")
    together = {"none": (), "relative": ("--out", "results/mine")}
    clients = {name: head.submit(name, "mine.yaml", *out, folder=project) for name, out in together.items()}
    for name, client in clients.items():
        printed, _ = client.communicate(timeout=60)
        assert client.returncode != 0 and head.job(name)["driver_exit_code"] == BAD_INPUT, printed
        assert "thrown away" in printed and "absolute path" in printed


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused(head, stranger, tmp_path):
    variables, token, refusal = STRANGERS[stranger]
    before, mark = head.ask("/api/jobs/"), tmp_path / "mark"
    client = head.client("ray", "job", "submit", "--address", DASHBOARD, "--", "touch", mark, **variables)
    printed, _ = client.communicate(timeout=60)
    assert client.returncode != 0 and "AuthenticationError" in printed
    work = json.dumps({"entrypoint": f"touch {mark}"})
    assert head.ask("/api/jobs/", "POST", token, work)[0] == refusal
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary"):
        assert head.ask(path, token=token)[0] == refusal, path
    assert head.ask("/api/jobs/") == before and before[0] == 200, (
        "with the token it answers, and there is no new job"
    )
    assert not mark.exists()
