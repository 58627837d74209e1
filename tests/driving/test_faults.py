"""What goes wrong inside a run, as its user meets it: the command in a process, real faults, then the same
command again."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.driving.run_sweep import BAD_INPUT, DONE, INTERRUPTED, SOME_FAILED
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.run_store import RunStore
from pipeline.tasks.perplexity import windows_of
from tests.support.command import ROOT, run_inline
from tests.support.limited import SmallDisk, small_memory
from tests.support.s3_server import closed_port, settings

FROM_OUTSIDE = {"quits": 18, "sleeps": 20, "grows": 22}
"""Policies that end their worker, and the threshold that only they have: cells of one threshold make a
unit."""
OF_ITSELF = {"asks_too_much": 24}
TIMEOUT = 15


def stored(out: Path, task: str = "perplexity") -> pl.DataFrame:
    return RunStore(str(out)).scan(task).collect()


def keys(out: Path) -> Counter:
    return Counter(stored(out).select("cell_id", "window_index").iter_rows())


def planned(sweep: Path) -> Counter:
    plan = make_plan(load_spec(str(sweep)))
    return Counter(
        (cell.cell_id, w.index) for cell in plan.grid.cells for w in windows_of(cell, plan.resolved)
    )


def status(directory: Path | str) -> Result:
    """``kvsweep status`` in this process."""
    done = CliRunner().invoke(app, ["status", str(directory)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def log(out: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def bad_models(tiny_model_dir: Path, folder: Path) -> dict[str, Path]:
    """One whose files lack a weight, one with a NaN in its weights, and the good one."""
    found = {"good": folder / "good", "nan": folder / "nan", "lacking": folder / "lacking"}
    for path in found.values():
        shutil.copytree(tiny_model_dir, path)
    weights = load_file(found["nan"] / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, found["nan"] / "model.safetensors", {"format": "pt"})
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, found["lacking"] / "model.safetensors", {"format": "pt"})
    return found


class Faulty:
    """A sweep of three models and the policies of ``tests/support/faulty_policies.py``, and what its run
    says."""

    def __init__(self, folder: Path, models: dict[str, Path], text: Path) -> None:
        self.folder, self.models, self.out, self.sweep = folder, models, folder / "out", folder / "sweep.yaml"
        shutil.copy(ROOT / "tests" / "support" / "faulty_policies.py", folder / "own_faults.py")
        thresholds = {"knorm": 16} | {
            f"own_faults:{name}": at for name, at in (FROM_OUTSIDE | OF_ITSELF).items()
        }
        keys = {
            "name": "faulty",
            "models": [str(path) for path in models.values()],
            "datasets": [f"text:{text}"],
            "devices": ["cpu"],
            "policies": list(thresholds),
            "prune_after": list(thresholds.values()),
            "keep_ratios": [round(0.30 + 0.05 * i, 2) for i in range(13)],
            "exclude": [
                {"policies": [name], "prune_after": [at for at in thresholds.values() if at != own]}
                for name, own in thresholds.items()
            ],
            "perplexity": {"window": 64, "stride": 64, "windows": 3},
        }
        self.sweep.write_text(json.dumps(keys))

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """The command as a user gives it who has no token yet."""
        command = [
            str(Path(sys.executable).parent / "kvsweep"),
            "run",
            self.sweep.name,
            "--out",
            "out",
            *options,
        ]
        own = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"} | {
            "HOME": str(self.folder / "home")
        }
        return subprocess.run(
            command, cwd=self.folder, env=own, capture_output=True, text=True, timeout=240, check=False
        )


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, tiny_model_dir, text_file, ray_folder):
    """All faults in one run: what it printed, and its failures; then everything is repaired."""
    folder = tmp_path_factory.mktemp("faulty")
    sweep = Faulty(folder, bad_models(tiny_model_dir, folder), text_file)
    with small_memory(2**30) as group:
        (folder / "faults").write_text(str(group))
        done = sweep.run("--unit-timeout", str(TIMEOUT))
    (folder / "faults").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield sweep, done, stored(sweep.out, "failures")


@pytest.mark.slow
class TestFaultsOfUnits:
    """In the order in which they stand: the first tests look at a run with all faults, the last repair
    them."""

    def test_the_run_ends_with_1_its_report_and_a_line_for_each_reason(self, faulty):
        sweep, done, failures = faulty
        assert done.returncode == SOME_FAILED, done.stderr
        assert done.stdout.splitlines()[-1] == str(sweep.out / "report.html")
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
        reasons = failures.select("error_type", "message").unique()
        assert len(lines) == len(reasons) == 6, lines
        assert all(len(line) < 450 for line in lines), lines
        assert not (sweep.folder / "home").exists(), "a token for one run is not kept"

    def test_the_cells_beside_are_done(self, faulty):
        sweep, _, failures = faulty
        wanted = Counter(
            {key: n for key, n in planned(sweep.sweep).items() if key[0] not in set(failures["cell_id"])}
        )
        assert keys(sweep.out) == wanted
        good = stored(sweep.out).filter(pl.col("model") == str(sweep.models["good"]))
        assert Counter(good["policy"]) == {"dense": 3, "knorm": 13 * 3}
        assert failures.group_by("cell_id").len()["len"].max() == 1

    @pytest.mark.parametrize(
        ("policy", "kind", "said"),
        [
            ("quits", "ActorDiedError", "The actor died unexpectedly before finishing this task"),
            ("grows", "ActorDiedError", "The actor died unexpectedly before finishing this task"),
            (
                "sleeps",
                "UnitTimeoutError",
                f"did not end within {TIMEOUT} s: too slow, or its process or node hangs",
            ),
        ],
    )
    def test_a_unit_that_ends_its_worker_is_given_up_after_two_tries(self, faulty, policy, kind, said):
        sweep, _, failures = faulty
        mine = failures.filter(
            pl.col("policy").str.starts_with(f"own_faults:{policy}@"),
            pl.col("model") == str(sweep.models["good"]),
        )
        assert mine.height == 13 and set(mine["error_type"]) == {kind} and set(mine["attempts"]) == {2}
        assert all(message.startswith(said) for message in mine["message"]), mine["message"][0]
        assert set(mine["traceback"]) == {""} and set(mine["node"]) == {platform.node()}
        units = {line["unit_id"] for line in log(sweep.out, "retry") if line["error_type"] == kind}
        assert len(units) == (1 if kind == "UnitTimeoutError" else 2)
        assert {(line["strike"], line["starts"], line["node"]) for line in log(sweep.out, "retry")} == {
            (True, 1, platform.node())
        }

    def test_what_the_allocator_refuses_is_a_failure_of_its_cells_and_not_tried_again(self, faulty):
        sweep, _, failures = faulty
        mine = failures.filter(
            pl.col("policy").str.starts_with("own_faults:asks"), pl.col("model") == str(sweep.models["good"])
        )
        assert (
            mine.height == 13 and set(mine["error_type"]) == {"RuntimeError"} and set(mine["attempts"]) == {1}
        )
        assert "can't allocate memory" in mine["message"][0] and "in asks_too_much" in mine["traceback"][0]

    @pytest.mark.parametrize(
        ("model", "kind", "said"),
        [
            ("nan", "FloatingPointError", "the model gave NaN or infinite logits"),
            ("lacking", "ModelError", "cannot be loaded: its files lack 1 of the weights"),
        ],
    )
    def test_a_model_that_cannot_be_used_fails_all_its_cells_with_its_reason(self, faulty, model, kind, said):
        sweep, _, failures = faulty
        mine = failures.filter(pl.col("model") == str(sweep.models[model]))
        assert mine["cell_id"].n_unique() == mine.height == 13 * 5 + 1
        assert set(mine["error_type"]) == {kind} and set(mine["attempts"]) == {1}
        assert all(said in message for message in mine["message"]), mine["message"][0]
        assert all("Traceback" in trace for trace in mine["traceback"]) and all(mine["node"])

    def test_the_same_command_runs_what_was_ended_from_outside_and_leaves_what_failed_by_itself(self, faulty):
        sweep, _, _ = faulty
        before = keys(sweep.out)
        done = sweep.run()
        assert done.returncode == SOME_FAILED, done.stderr
        left = 2 * (13 * 5 + 1) + 13
        assert (
            f"{3 * (13 * 5 + 1)} cells, {13 * 3} to do in 3 units, {left} failed before and are left ->"
            in done.stderr
        )
        assert (
            "failed before: 13 cells: RuntimeError: " in done.stderr
            and "--retry-failed runs them again" in done.stderr
        )
        assert len(keys(sweep.out)) == len(before) + 13 * 3 * 3 and set(keys(sweep.out).values()) == {1}

    def test_once_the_models_are_repaired_everything_is_done(self, faulty):
        """Repaired files are another model: its cells are new, and the failures of the old one are nobody's
        any more."""
        sweep, _, _ = faulty
        for name in ("nan", "lacking"):
            shutil.copy(sweep.models["good"] / "model.safetensors", sweep.models[name] / "model.safetensors")
        done = sweep.run("--inline", "--threads", "1", "--retry-failed")
        assert done.returncode == DONE, done.stderr
        assert keys(sweep.out) == planned(sweep.sweep)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_the_same_command_completes_it(sweep_file, tmp_path):
    ratios = str([n / 100 for n in range(30, 90)])
    sweep = sweep_file(keep_ratios=ratios, prune_after="[16, 24]", policies="[knorm, random]")
    with SmallDisk(tmp_path / "disk", 4_000_000) as disk:
        command = [
            *disk.enter,
            sys.executable,
            "-m",
            "pipeline.cli",
            "run",
            str(sweep),
            "--inline",
            "--threads",
            "1",
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}

        def run() -> tuple[subprocess.CompletedProcess[str], Path]:
            """What it said, and a copy of what it left."""
            done = subprocess.run(
                [*command, "--out", "disk/out"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert "Traceback" not in done.stderr
            copy = tmp_path / f"copy-{time.monotonic_ns()}"
            shutil.copytree(disk.path / "out", copy)
            return done, copy

        ballast = disk.fill(leave=150_000)
        done, copy = run()
        assert done.returncode == INTERRUPTED, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line and line.endswith(
            "what is done is kept, the same command goes on from there"
        )
        assert done.stdout == ""
        files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
        assert not any("#" in name or name.startswith("driver") for name in files), files
        before = keys(copy)
        assert 0 < len(before) < len(planned(sweep)) and set(before.values()) == {1}, (
            "full in the middle of the run"
        )
        done, copy = run()
        assert done.returncode in (INTERRUPTED, BAD_INPUT), "still full"
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1, (
            done.stderr
        )
        ballast.unlink()
        done, copy = run()
        assert done.returncode == DONE, done.stderr
        assert keys(copy) == planned(sweep)
    assert not list((tmp_path / "disk").iterdir()), "the disk is gone"


DAMAGES = {
    "empty": lambda part: b"",
    "cut short": lambda part: part[: len(part) // 2],
    "other bytes": lambda part: b"<html>not found</html>" * 20,
    "zeros after a crash": lambda part: b"\0" * len(part),
}


@pytest.mark.parametrize(
    "damage", [name if name == "empty" else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES]
)
def test_a_part_that_cannot_be_read_is_set_aside_and_its_cells_run_again(
    damage, sweep_file, out, tmp_path, capsys
):
    sweep = sweep_file(datasets=None)
    (tmp_path / "second.txt").write_text(" ".join(str(n) for n in range(2000)))
    text = (
        sweep.read_text() + f'datasets: ["text:{tmp_path / "second.txt"}", "text:{tmp_path / "first.txt"}"]\n'
    )
    (tmp_path / "first.txt").write_text(" ".join(str(n) for n in range(5000, 7000)))
    sweep.write_text(text)
    assert run_inline(sweep, out) == DONE
    whole = keys(out)
    damaged, other = sorted((out / "perplexity").glob("*.parquet"))
    damaged.write_bytes(content := DAMAGES[damage](damaged.read_bytes()))
    kept = other.read_bytes()
    told = status(out)
    assert told.exit_code == BAD_INPUT and told.stdout == ""
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"error: {out}/perplexity/{damaged.name}: is no ") and "sets it aside" in line
    capsys.readouterr()
    assert run_inline(sweep, out) == DONE
    said = capsys.readouterr().err
    name = f"perplexity/{damaged.name}"
    (warned,) = [line for line in said.splitlines() if line.startswith(f"warning: {name} is no ")]
    assert warned.endswith("; set aside, its cells run again")
    assert "3 to do in 1 units" in said
    assert (out / f"{name}.unreadable").read_bytes() == content and other.read_bytes() == kept
    assert keys(out) == whole == planned(sweep)
    assert status(out).exit_code == DONE


@pytest.mark.slow
def test_status_of_a_store_that_is_not_there_is_one_line_within_seconds(monkeypatch):
    for name, value in settings(closed_port()).items():
        monkeypatch.setenv(name, value)
    done = status("s3://bucket/run")
    assert done.exit_code == BAD_INPUT and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("error: s3://bucket/run: the store cannot be reached")
        and "check the endpoint" in line
    )


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202e\x9b1m\r\nsecond line"


def test_control_characters_of_a_failure_never_reach_the_terminal(
    sweep_file, out, tmp_path, monkeypatch, capsys
):
    """Messages come from models, policies and stores of others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hostile_policy.py").write_text(f"def shouts(view):\n    raise RuntimeError({HOSTILE!r})\n")
    sweep = sweep_file(policies='["hostile_policy:shouts"]')
    printed = []
    for _ in range(2):  # told as what failed, and as what failed before
        assert run_inline(sweep, out) == SOME_FAILED
        printed.append(capsys.readouterr().err)
    printed.append(status(out).stdout)
    for text in printed:
        assert "red" in text and text.replace("\n", "").isprintable(), text.encode("unicode_escape")
        assert not any(line.startswith("second line") for line in text.splitlines())
    assert set(stored(out, "failures")["message"]) == {HOSTILE}, (
        "kept as it came, for whoever looks for the cause"
    )
