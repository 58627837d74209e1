"""The command kvsweep export: what it says, what it refuses, and that it keeps to this machine."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from tests.analysis.test_tracking import TRACKERS, some_rows
from tests.support.rows import perplexity_row, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What an export sets ends with its test."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "true")
        monkeypatch.delenv(name)


def ask(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command_says_what_it_did(tmp_path):
    run = write_run(str(tmp_path / "run"), some_rows())
    for written, skipped in ((5, 0), (0, 5)):
        done = ask(run, "--to", "mlflow", "--project", "mine", "--store", tmp_path / "new")
        assert done.exit_code == 0, done.output
        assert (
            done.stdout
            == f"MLflow experiment mine in {tmp_path / 'new'}: {written} tracked runs written, {skipped}"
            " skipped (there already)\n"
        )


REFUSED = {
    "none --to mlflow --store new": "none: there is no such directory",
    "run --to mlflow --store http://127.0.0.1:9": "only stores on this machine are written",
    "run --to mlflow --store file": "--store file: is a file; give a directory or sqlite:///FILE",
    "run --to mlflow --store new --project ": "--project '': give a name of printable characters",
    "run --to trackio --store s3://bucket/x": "trackio keeps runs in a local directory; give a path",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_wrong_input_is_refused_and_nothing_written(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("run", {"perplexity": [perplexity_row()]})
    Path("file").touch()
    before = sorted(tmp_path.rglob("*"))
    done = ask(*arguments.split(" "))
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert REFUSED[arguments] in line and done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_with_half_a_part_is_refused_before_the_store_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("run", {"perplexity": [perplexity_row()]})
    (part,) = Path("run/perplexity").glob("unit-0-*.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    done = ask("run", "--to", "mlflow", "--store", "new")
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert "is no readable Parquet file" in line and "`kvsweep run` with the same sweep sets it aside" in line
    assert not Path("new").exists()


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory):
    """The installed packages without the trackers."""
    site = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("trackio", "mlflow")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return site


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_what_to_install(tracker, bare_site, tmp_path):
    write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})
    environment = os.environ | {"PYTHONPATH": f"{bare_site}:{ROOT}"}
    command = [sys.executable, "-S", "-m", "pipeline.cli", "export", "run", "--to", tracker, "--store", "new"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == f"error: --to {tracker}: {tracker} is not installed; pip install 'kvsweep[{tracker}]'\n"
    )
    assert not (tmp_path / "new").exists()


WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.bind" and arguments[1] == ("::1", 0):
        return  # urllib3 looks whether there is IPv6
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "webbrowser.open"):
        print(event, *arguments[1:], file=sys.stderr)
        import os; os._exit(9)
sys.addaudithook(watch)
from pipeline.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_an_export_neither_connects_nor_listens_anywhere(tracker, tmp_path):
    write_run(str(tmp_path / "run"), some_rows())
    left_out = ("CI", "PYTEST_", "HF_HUB_OFFLINE", "MLFLOW_", "DO_NOT_TRACK", "TRACKIO_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "TRACKIO_SPACE_ID": "somebody/space",
        "TRACKIO_BUCKET_ID": "somebody/bucket",
    }
    command = [sys.executable, "-c", WATCHED, "export", "run", "--to", tracker, "--store", "new"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.startswith(("trackio project", "MLflow experiment"))
        and "5 tracked runs written" in done.stdout
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "run"]
