"""What a worker tells while its unit goes on: every row once, the share of its work, and nothing that it was
not asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.cluster.inline import InlineExecutor
from pipeline.driving.run_sweep import DONE, INTERRUPTED
from pipeline.store.run_store import RunStore
from tests.driving.test_resume import assert_same_rows
from tests.driving.test_unit import NOWHERE, perplexity_unit
from tests.retrieval.test_answers import questions
from tests.support.command import run_inline
from tests.support.ready import CPU as NEED
from tests.support.tiny import tiny_model
from workers.messages.telling import News, Telling
from workers.messages.work import GenerationWork, PerplexityWork, RetrievalWork, UnitCell, WorkUnit
from workers.perplexity.evaluation import evaluate
from workers.perplexity.watch import Watch
from workers.policies.settings import PruneSettings
from workers.unit import run_unit
from workers.worker import Worker

CPU = torch.device("cpu")
CELLS = [
    PruneSettings("dense"),
    PruneSettings("knorm", 0.5, 8),
    PruneSettings("h2o", 0.5, 8),
    PruneSettings("knorm", 0.9, 30),
]


@pytest.fixture
def at_once(monkeypatch):
    """Everything is told as soon as it is there."""
    monkeypatch.setattr("workers.messages.telling.ROWS_SECONDS", 0.0)
    monkeypatch.setattr("workers.messages.telling.SHARE_SECONDS", 0.0)


def of_cells(task: str, work: Any) -> WorkUnit:
    return WorkUnit(
        "u", task, NOWHERE, "cpu", "float32", tuple(UnitCell(f"c{i}", c) for i, c in enumerate(CELLS)), work
    )


UNITS = {
    "perplexity": perplexity_unit(CELLS, rows=4),
    "retrieval": of_cells("retrieval", RetrievalWork(questions(), False)),
    "generation": of_cells("generation", GenerationWork((tuple(range(1, 20)),), 4, 5, 5, 1.0, 1, 0)),
}


def perplexity_tokens() -> np.ndarray:
    work = UNITS["perplexity"].work
    assert isinstance(work, PerplexityWork)
    return work.tokens


def told(unit: WorkUnit) -> tuple[list[News], list[dict[str, Any]]]:
    """All news of a unit and the rows of its result."""
    news: list[News] = []
    return news, run_unit(unit, tiny_model("llama"), CPU, None, news.append).rows


def by_key(rows: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    names = ("cell_id", "window_index", "depth", "question_index", "kind", "control", "repeat")
    found = {tuple(row.get(name) for name in names): row for row in rows}
    assert len(found) == len(rows), "each row once"
    return found


def test_rows_are_told_soon_at_first_and_then_at_intervals(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("workers.messages.telling.time.monotonic", lambda: clock[0])
    news: list[News] = []
    telling = Telling(news.append)
    for second in range(60):
        clock[0] = float(second)
        telling.give([{"cell_id": "c", "second": second}])
    assert [each.seconds for each in news if each.rows] == [8.0, 28.0, 48.0]
    assert [row["second"] for each in news for row in each.rows] == list(range(49))


@pytest.mark.parametrize(
    "task", ["perplexity", "retrieval", pytest.param("generation", marks=pytest.mark.slow)]
)
def test_every_row_is_told_once_and_the_share_grows_to_the_whole(task, at_once):
    whole = by_key(run_unit(UNITS[task], tiny_model("llama"), CPU).rows)
    news, left = told(UNITS[task])
    given = by_key([row for each in news for row in each.rows] + left)
    assert given.keys() == whole.keys()
    assert task == "generation" or len([each for each in news if each.rows]) >= len(CELLS), "as cells end"
    shares = [each.share for each in news]
    assert shares == sorted(shares) and len(set(shares)) >= len(CELLS) and shares[-1] == 0.99
    assert {each.doing for each in news} >= {"dense", "knorm 0.5", "h2o 0.5"}
    for key, row in given.items():
        for name, value in row.items():
            if name not in ("seconds", "unit_id") and task != "generation":
                assert np.array_equal(value, whole[key][name], equal_nan=isinstance(value, float)), name


def test_a_short_unit_tells_no_rows_before_its_end():
    news, rows = told(UNITS["perplexity"])
    assert not any(each.rows for each in news) and len(rows) == 16


@pytest.mark.parametrize("task", ["perplexity", "retrieval"])
def test_what_serves_complete_cells_alone_is_left_out_and_the_others_keep_their_bits(task, monkeypatch):
    unit = UNITS[task]
    name = [cell.cell_id for cell in unit.cells]
    whole = by_key(run_unit(unit, tiny_model("llama"), CPU).rows)
    worked: list[tuple[float, str]] = []
    monkeypatch.setattr(Telling, "worked", lambda self, work, doing="": worked.append((work, doing)))
    rows = by_key(
        run_unit(replace(unit, complete=frozenset({name[0], name[2]})), tiny_model("llama"), CPU).rows
    )
    assert "h2o 0.5" not in {doing for _, doing in worked}
    assert {key[0] for key in rows} >= {name[1], name[3]} and name[2] not in {key[0] for key in rows}
    for key, row in rows.items():
        for column in ("nll", "answer_nll", "answer"):
            assert np.array_equal(np.asarray(row.get(column)), np.asarray(whole[key].get(column)))


def test_cells_that_are_not_wanted_are_computed_where_they_share_passes_and_only_there():
    tokens, passes = np.asarray(perplexity_tokens(), dtype=np.int64), []
    watch = Watch(worked=lambda count, cell: passes.append(cell))
    _, outcomes = evaluate(tiny_model("llama"), torch.from_numpy(tokens), CELLS, [0, 1, 2, 3], {1}, watch)
    assert outcomes[1] is not None and outcomes[3] is not None and outcomes[2] is None
    assert 2 not in passes


def test_what_a_failing_cell_gave_and_nobody_heard_of_is_forgotten():
    telling = Telling(None)
    telling.give([{"cell_id": "a"}, {"cell_id": "b"}])
    telling.forget("a")
    assert telling.rows == [{"cell_id": "b"}]


def test_a_full_disk_while_a_unit_goes_on_is_raised_after_it_and_is_no_failure_of_a_cell(monkeypatch):
    heard: list[str] = []

    def run(self: Worker, unit: WorkUnit, tell: Any) -> Any:
        for _ in range(3):
            tell(News([], "", 0.5, "x", 1.0))
        return run_unit(unit, tiny_model("llama"), CPU)

    def hear(unit_id: str, news: News) -> None:
        heard.append(unit_id)
        raise OSError("no space left on device")

    monkeypatch.setattr(Worker, "run", run)
    executor = InlineExecutor(1)
    executor.hear = hear
    executor.submit(UNITS["perplexity"], NEED, 1.0)
    with pytest.raises(OSError, match="no space left"):
        executor.wait(1.0)
    assert heard == ["u"], "the store is not tried again and again"


SWEEP = {
    "policies": "[knorm, h2o]", "keep_ratios": "[0.9, 0.5]", "prune_after": "[8, 20]",
    "perplexity": "{window: 48, stride: 48, windows: 6}",
    "retrieval": "{kinds: [passkey], context_tokens: [240], depths: [0.1, 0.5], questions: 3}",
}  # fmt: skip


@pytest.mark.parametrize(
    "stop", [2, 13, pytest.param(5, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.slow)]
)
def test_a_unit_that_is_cut_off_keeps_what_it_told_and_goes_on_from_there(
    stop, sweep_file, tmp_path, monkeypatch, at_once
):
    """Stopped at a piece of news that brings rows; the sweep taken up again asks for nothing that is
    stored."""
    sweep, whole, out = sweep_file(**SWEEP), tmp_path / "whole", tmp_path / "out"
    assert run_inline(sweep, whole) == DONE
    tell, with_rows = Telling._tell_in_time, []

    def stopped(self: Telling) -> None:
        if self.rows:
            with_rows.append(1)
        tell(self)
        if len(with_rows) == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Telling, "_tell_in_time", stopped)
        assert run_inline(sweep, out) == INTERRUPTED
    stored = {
        task: RunStore(str(out)).scan(task).select("cell_id").collect()["cell_id"]
        for task in ("perplexity", "retrieval")
    }
    assert sum(map(len, stored.values())) > 0
    asked: list[WorkUnit] = []
    run = Worker.run
    monkeypatch.setattr(
        Worker, "run", lambda self, unit, tell=None: asked.append(unit) or run(self, unit, tell)
    )
    assert run_inline(sweep, out) == DONE
    assert any(unit.complete for unit in asked), "what is stored is not asked for again"
    assert_same_rows(out, whole)
    for task in ("perplexity", "retrieval"):
        frame = RunStore(str(out)).scan(task).collect()
        keys = ["cell_id", "window_index"] if task == "perplexity" else ["cell_id", "depth", "question_index"]
        assert frame.select(pl.struct(keys).is_duplicated().any()).item() is False
