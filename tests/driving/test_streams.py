"""Standard streams that are closed, full or no longer read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT

FULL = Path("/dev/full")
KVSWEEP = f"{sys.executable} -m pipeline.cli"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        (">/dev/full", 1, "error: the output cannot be written: No space left on device\n"),
        (">&-", 1, "error: the output cannot be written: it is closed\n"),
        ("| head -1 >/dev/null", 0, ""),
        pytest.param("2>&-", 0, "", marks=pytest.mark.slow),
        pytest.param("<&- 2>/dev/full", 0, "", marks=pytest.mark.slow),
    ],
)
def test_a_plan_that_cannot_be_written_ends_in_one_line_and_not_with_0(
    sweep_file, tmp_path, redirected, status, said
):
    many = ", ".join(f"{n / 1000:g}" for n in range(1, 300))
    done = shell(f"{KVSWEEP} plan {sweep_file(keep_ratios=f'[{many}]')} --all {redirected}", tmp_path)
    assert done.stderr == said
    assert done.returncode == status or (redirected.startswith("|") and done.returncode == 1)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_refusal_is_2_whatever_its_streams_are(tmp_path):
    for redirected in ("2>/dev/full", "2>&-", ">&-", ">/dev/full"):
        assert shell(f"{KVSWEEP} plan gone.yaml {redirected}", tmp_path).returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("redirected", [">/dev/full", ">&-", "2>/dev/full", ">&- 2>&-"])
def test_no_row_and_no_report_is_lost_to_streams(sweep_file, tmp_path, redirected):
    done = shell(
        f"{KVSWEEP} run {sweep_file(keep_ratios='[0.5]')} --inline --threads 1 --out out {redirected}",
        tmp_path,
    )
    assert "Traceback" not in done.stderr and done.returncode == 0
    assert (tmp_path / "out" / "report.html").exists() and list(
        (tmp_path / "out" / "perplexity").glob("*.parquet")
    )
    if "2>" not in redirected:
        assert f"note: stdout cannot be written; {tmp_path}/out/report.html\n" in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_the_last_line_of_a_run_is_said_elsewhere_where_stdout_is_full(tmp_path):
    say = (
        "from pipeline.driving.streams import run_guarded, say_last; run_guarded(lambda:"
        " say_last('report.html'))"
    )
    for redirected in (">/dev/full", ">&-"):
        done = shell(f'{sys.executable} -c "{say}" {redirected}', tmp_path)
        assert (done.returncode, done.stderr) == (0, "note: stdout cannot be written; report.html\n")
    done = shell(f'{sys.executable} -c "{say}"', tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "report.html\n", "")
