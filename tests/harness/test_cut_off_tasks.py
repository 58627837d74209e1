"""A task of the harness that is cut off goes on from its last answers, to the rows of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

pytest.importorskip("lm_eval")

from pipeline.driving.compaction import compact
from pipeline.driving.run_sweep import DONE, INTERRUPTED, SOME_FAILED
from pipeline.store.answer_files import AnswerFiles
from pipeline.store.run_store import RunStore
from tests.harness.local_tasks import QUESTIONS, write_tasks
from tests.support.command import ROOT, run_inline
from tests.support.s3_server import s3_server, settings
from workers.harness.rows import Rows
from workers.messages.kept_answers import KeptAnswers
from workers.messages.telling import Telling
from workers.messages.work import WorkUnit
from workers.worker import Worker


def tell_at_once(patch: pytest.MonkeyPatch) -> list[int]:
    """Everything is told as soon as it is there, no report is written; returns how many rows go on from
    contexts, in order."""
    patch.setattr("analysis.report.make_report", lambda directories, audit: "report.html")
    patch.setattr("workers.messages.telling.ROWS_SECONDS", 0.0)
    patch.setattr("workers.messages.telling.SHARE_SECONDS", 0.0)
    counts: list[int] = []
    start = Rows.__init__

    def counted(self, contexts, places):
        counts.append(len(places))
        start(self, contexts, places)

    patch.setattr(Rows, "__init__", counted)
    return counts


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Continuations and texts that went on from contexts in this test, batch by batch."""
    return tell_at_once(monkeypatch)


def rows(out: Path | str) -> pl.DataFrame:
    frame = RunStore(str(out)).scan("tasks").drop("run_id").collect()
    return frame.sort("cell_id", "metric", "filter", "doc_index", nulls_last=False)


def log(out: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def undisturbed(folder, tiny_model_dir, tmp_path_factory):
    """By task: a sweep of it, dense and pruned; a run of that; and what it ``made``."""
    found: dict[str, tuple[Path, Path, list[int]]] = {}
    for task in ("kv_choice", "kv_text"):
        place = tmp_path_factory.mktemp(task)
        keys = {
            "name": "tiny",
            "models": [str(tiny_model_dir)],
            "devices": ["cpu"],
            "keep_ratios": [0.5],
            "prune_after": [16],
            "lm_eval": {"tasks": [task], "include_path": str(folder)},
        }
        (place / "sweep.yaml").write_text(json.dumps(keys))
        with pytest.MonkeyPatch.context() as patch:
            made = tell_at_once(patch)
            assert run_inline(place / "sweep.yaml", place / "whole") == DONE
        found[task] = place / "sweep.yaml", place / "whole", made
    return found


@pytest.fixture
def asked(monkeypatch) -> list[WorkUnit]:
    """The units that workers were given, in order."""
    units: list[WorkUnit] = []
    run = Worker.run
    monkeypatch.setattr(
        Worker, "run", lambda self, unit, tell=None: units.append(unit) or run(self, unit, tell)
    )
    return units


def stopping(patch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """Raise the error once so many batches were told of."""
    answered, count = Telling.answered, []

    def stopped(self: Telling, answers: KeptAnswers) -> None:
        answered(self, answers)
        count.append(1)
        if len(count) == after:
            raise error

    patch.setattr(Telling, "answered", stopped)


@pytest.mark.parametrize(
    ("task", "stop"), [("kv_choice", 5), pytest.param("kv_text", 1, marks=pytest.mark.slow)]
)
def test_a_task_that_is_cut_off_computes_the_rest_alone(
    task, stop, undisturbed, out, monkeypatch, asked, made
):
    """Of two cells with three contexts of different lengths each."""
    sweep, whole, all_made = undisturbed[task]
    with monkeypatch.context() as patch:
        stopping(patch, stop, KeyboardInterrupt())
        assert run_inline(sweep, out) == INTERRUPTED
    assert made == all_made[:stop] and "answers" in names(out)
    assert all(not unit.answers for unit in asked)

    made.clear()
    asked.clear()
    assert run_inline(sweep, out) == DONE
    assert made == all_made[stop:], "what is stored is not computed again"
    assert [len(unit.answers) for unit in asked if unit.answers] == [(stop - 1) % 3 + 1]
    (known,) = log(out, "known")
    assert known["answers"] == sum(all_made[stop - (stop - 1) % 3 - 1 : stop])
    assert rows(out).equals(rows(whole)) and rows(out).height > 6
    assert names(out) == names(whole)


@pytest.mark.slow
def test_in_an_object_store_too(undisturbed, monkeypatch, made):
    sweep, whole, all_made = undisturbed["kv_choice"]
    with s3_server() as address:
        for name, value in settings(address).items():
            monkeypatch.setenv(name, value)
        with monkeypatch.context() as patch:
            stopping(patch, 5, KeyboardInterrupt())
            assert run_inline(sweep, "s3://bucket/run") == INTERRUPTED
        store = RunStore("s3://bucket/run")
        assert len(store.names("answers", ".jsonl")) == 2
        made.clear()
        assert run_inline(sweep, "s3://bucket/run") == DONE
        assert made == all_made[5:] and store.names("answers", ".jsonl") == []
        assert rows("s3://bucket/run").equals(rows(whole))


@pytest.mark.slow
def test_a_cell_that_failed_by_itself_goes_on_from_there_with_retry_failed(
    undisturbed, out, monkeypatch, made
):
    sweep, whole, all_made = undisturbed["kv_choice"]
    with monkeypatch.context() as patch:
        stopping(patch, 5, ArithmeticError("made up"))
        assert run_inline(sweep, out) == SOME_FAILED
    made.clear()
    assert run_inline(sweep, out) == SOME_FAILED and made == []
    assert run_inline(sweep, out, retry_failed=True) == DONE
    assert made == all_made[5:] and rows(out).equals(rows(whole)) and "answers" not in names(out)


@pytest.mark.slow
def test_answers_of_a_driver_that_died_before_it_deleted_them_are_deleted_at_the_next_start(
    undisturbed, out, made
):
    sweep, whole, _ = undisturbed["kv_choice"]
    shutil.copytree(whole, out)
    before, cell = names(out), rows(out)["cell_id"][0]
    for mend in (lambda: run_inline(sweep, out), lambda: compact(RunStore(str(out)))):
        AnswerFiles(RunStore(str(out))).add([KeptAnswers(cell, "0" * 32, [])])
        assert names(out) == before | {"answers"}
        mend()
        assert names(out) == before and made == []


@pytest.mark.slow
def test_answers_that_are_broken_or_of_others_are_left_aside(undisturbed, out, monkeypatch, made):
    sweep, whole, all_made = undisturbed["kv_choice"]
    with monkeypatch.context() as patch:
        stopping(patch, 3, KeyboardInterrupt())
        assert run_inline(sweep, out) == INTERRUPTED
    first, second, third = sorted((out / "answers").iterdir())
    first.write_bytes(first.read_bytes()[:-5])
    second.write_bytes(second.read_bytes().replace(b"e", b"\xff"))
    third.rename(third.with_name("x" * 8 + third.name[8:]))
    made.clear()
    assert run_inline(sweep, out) == DONE
    assert made == all_made and rows(out).equals(rows(whole))


def test_answers_of_other_code_are_left_aside(undisturbed, out, monkeypatch, made):
    """They stand in one row with the others, where nothing could tell them apart."""
    sweep, whole, all_made = undisturbed["kv_choice"]
    with monkeypatch.context() as patch:
        stopping(patch, 3, KeyboardInterrupt())
        patch.setattr("workers.harness.unit_rows.code_digest", lambda: "another")
        assert run_inline(sweep, out) == INTERRUPTED
    made.clear()
    assert run_inline(sweep, out) == DONE
    assert made == all_made and rows(out).equals(rows(whole))


LONG = [
    {"text": QUESTIONS[0]["text"] + " and on" * 2 + "." * i, "choices": ["ships", "a lamp"], "answer": i % 2}
    for i in range(60)
]
"""Contexts of sixty lengths, so that each is a batch of its own."""


class Slow:
    """A sweep of a task that takes a minute and a half while the file ``slow`` lies beside its policy."""

    def __init__(self, place: Path, model: Path) -> None:
        self.place, self.out = place, place / "out"
        (place / "tasks").mkdir()
        write_tasks(place / "tasks", LONG)
        shutil.copy(Path(__file__).parent / "slow_policy.py", place / "slow_policy.py")
        keys = {
            "name": "slow",
            "models": [str(model)],
            "devices": ["cpu"],
            "policies": ["slow_policy:oldest"],
            "keep_ratios": [0.5],
            "prune_after": [64],
            "schedules": ["prefill_once"],
            "lm_eval": {"tasks": ["kv_choice"], "include_path": str(place / "tasks")},
        }
        (place / "sweep.yaml").write_text(json.dumps(keys))

    def start(self, out: Path) -> subprocess.Popen[str]:
        """The command, as a user gives it."""
        command = [str(Path(sys.executable).parent / "kvsweep"), "run", "sweep.yaml", "--out", str(out)]
        own = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(self.place / "home")}
        return subprocess.Popen(
            command, cwd=self.place, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def calls(self) -> Counter[int]:
        """How often each process called the policy."""
        file = self.place / "calls"
        return Counter(int(line) for line in file.read_text().splitlines()) if file.exists() else Counter()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["worker", "driver"])
def test_a_kill_in_the_middle_of_a_task_costs_its_last_seconds_alone(
    who, tmp_path, tiny_model_dir, ray_folder
):
    sweep = Slow(tmp_path, tiny_model_dir)
    whole, out = tmp_path / "whole", tmp_path / "out"
    undisturbed = sweep.start(whole)
    assert undisturbed.communicate(timeout=200)[0] and undisturbed.returncode == DONE
    ((_, all_calls),) = sweep.calls().items()

    (tmp_path / "calls").unlink()
    (tmp_path / "slow").touch()
    run = sweep.start(out)
    until = time.monotonic() + 120
    while not list(out.glob("answers/*.jsonl")):
        assert run.poll() is None and time.monotonic() < until, run.stdout and run.stdout.read()
        time.sleep(0.1)
    (tmp_path / "slow").unlink()
    ((worker, first_calls),) = sweep.calls().items()
    os.kill(worker if who == "worker" else run.pid, signal.SIGKILL)
    said = run.communicate(timeout=200)[0]
    if who == "driver":
        assert run.returncode == -signal.SIGKILL and rows(out)["policy"].unique().to_list() == ["dense"]
        run = sweep.start(out)
        said = run.communicate(timeout=200)[0]
    assert run.returncode == DONE, said

    calls = sweep.calls()
    second_calls = calls.total() - calls[worker]
    (known,) = log(out, "known")
    assert len(log(out, "retry")) == (who == "worker")
    assert 0 < second_calls == all_calls - known["answers"] < all_calls, (
        "one call for each layer, as there are choices"
    )
    assert known["answers"] <= first_calls < all_calls
    assert rows(out).equals(rows(whole)) and rows(out).height > 2 * len(LONG)
    assert names(out) == names(whole)
