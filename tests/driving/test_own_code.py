"""Driver and workers run the same code, whatever lies in the directory where kvsweep is started."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.foreign_code import check_nothing_in_the_way
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import ROOT, run_inline
from workers.machine.code_digest import code_digest
from workers.worker import Worker

SCRIPT = "import sys; from kvsweep.command import main; sys.argv[0] = 'kvsweep'; main()"


def console_script(*arguments, folder, path=(), timeout=240):
    """The command as pip's console script runs it: nothing of the current directory is imported."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-P", "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def rows_of(out):
    columns = ["policy", "keep_ratio", "window_index", "cell_id", "nll_sum"]
    return RunStore(str(out)).scan("perplexity").select(columns).sort(columns).collect().rows()


def test_the_digest_follows_every_file_of_the_packages_in_their_folders_too(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    for package in ("pipeline", "workers", "analysis"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("reference", "__pycache__")
        )
    monkeypatch.setattr("workers.machine.code_digest.ROOT", copy)

    def digest():
        code_digest.cache_clear()
        return code_digest()

    found = {digest()}
    for name in (
        "workers/policies/eviction.py",
        "workers/harness/rows.py",
        "pipeline/planning/grid.py",
        "analysis/statistics/pairs.py",
    ):
        with (copy / name).open("a") as file:
            file.write("# changed\n")
        found.add(digest())
    (copy / "workers" / "harness" / "rows.py").rename(copy / "workers" / "harness" / "moved.py")
    found.add(digest())
    assert len(found) == 6
    code_digest.cache_clear()


def test_a_worker_refuses_a_unit_of_a_driver_with_other_code(sweep_file):
    plan = make_plan(load_spec(str(sweep_file())))
    unit = work_unit(plan, plan.units[0])
    assert not Worker(1).run(unit).failures
    result = Worker(1).run(replace(unit, code="0" * 32, code_root="/elsewhere"))
    assert not result.rows and len(result.failures) == len(unit.cells)
    assert {failure.error_type for failure in result.failures} == {"OtherCodeError"}
    message = result.failures[0].message
    assert "/elsewhere (00000000)" in message and str(ROOT) in message and code_digest()[:8] in message


def test_what_a_worker_that_refuses_says_of_the_two_places_reaches_the_user(
    sweep_file, out, monkeypatch, capsys
):
    real = Worker.run
    monkeypatch.setattr(
        Worker,
        "run",
        lambda self, unit, tell=None: replace(real(self, replace(unit, code="0" * 32)), code="1" * 32),
    )
    assert run_inline(sweep_file(), out) == 1
    assert f"OtherCodeError: this worker runs kvsweep's code from {ROOT}" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["", "1" * 32])
def test_a_driver_stores_nothing_of_a_worker_with_other_code(code, sweep_file, out, monkeypatch, capsys):
    """One so old that it does not look at the unit's digest, and gives none of its own."""
    real = Worker.run
    monkeypatch.setattr(Worker, "run", lambda self, unit, tell=None: replace(real(self, unit), code=code))
    assert run_inline(sweep_file(), out) == 1
    assert RunStore(str(out)).scan("perplexity").collect().height == 0
    (told,) = RunStore(str(out)).scan("failures").select("error_type", "message").unique().collect().rows()
    assert (
        told[0] == "OtherCodeError"
        and code_digest()[:8] in told[1]
        and (code[:8] or "an older version") in told[1]
    )


@pytest.mark.parametrize("name", ["pipeline", "workers", "analysis"])
@pytest.mark.parametrize("kind", ["module", "package"])
def test_files_on_the_path_that_have_a_packages_name_are_named(name, kind, tmp_path):
    file = tmp_path / f"{name}.py" if kind == "module" else tmp_path / name / "__init__.py"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    done = console_script("plan", "ucurve", folder=tmp_path, path=[tmp_path])
    assert done.returncode == 2 and done.stdout == ""
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: ") and str(file) in message and "PYTHONPATH" in message


def test_a_checkout_behind_a_link_is_no_obstacle(tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "link")}
    command = [sys.executable, "-P", "-c", SCRIPT, "plan", "ucurve", "--no-measure"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_in_the_way_is_no_obstacle(tmp_path):
    (tmp_path / "workers.py").touch()
    done = console_script("plan", "ucurve", "--no-measure", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_cluster_is_not_joined_from_a_folder_with_another_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workers").mkdir()
    check_nothing_in_the_way()  # a folder alone is no package
    (tmp_path / "workers" / "__init__.py").touch()
    with pytest.raises(SweepError, match=r"workers/__init__\.py has the name of a package of kvsweep's"):
        check_nothing_in_the_way()
    monkeypatch.chdir(ROOT)
    check_nothing_in_the_way()


CHANGED = (
    "def knorm(view: CacheView) -> Tensor:\n    return -_knorm(view)\n\n\ndef _knorm(view: CacheView) ->"
    " Tensor:"
)
POLICY = (
    "from pathlib import Path\n\nassert Path('beside.txt').exists()\n\n\ndef newest(view):\n    return"
    " view.positions.float()\n"
)


@pytest.mark.slow
def test_another_workers_and_other_modules_beside_a_policy_of_ones_own_change_no_row(
    sweep_file, tmp_path, monkeypatch
):
    """In the current directory: a changed copy of ``workers``, and files named like modules that everything
    imports."""
    folder, sweep = tmp_path / "project", sweep_file(policies='[knorm, "my_policy:newest"]')
    shutil.copytree(ROOT / "workers", folder / "workers", ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / "workers" / "policies" / "eviction.py"
    changed.write_text(changed.read_text().replace("def knorm(view: CacheView) -> Tensor:", CHANGED, 1))
    assert "_knorm" in changed.read_text()
    (folder / "my_policy.py").write_text(POLICY)
    for name in ("json.py", "random.py", "polars.py", "pipeline.py", "beside.txt"):
        (folder / name).touch()

    done = console_script("run", sweep, "--out", tmp_path / "ray", folder=folder)
    assert done.returncode == 0, done.stderr
    expected = tmp_path / "inline"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_policy.py").write_text(POLICY)
    (tmp_path / "beside.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert run_inline(sweep, expected) == 0
    assert rows_of(tmp_path / "ray") == rows_of(expected)
    assert json.loads((tmp_path / "ray" / "run.json").read_text())["code_digest"] == code_digest()
    assert Path.cwd() == tmp_path
