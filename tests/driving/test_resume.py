"""A run that was disturbed and taken up again has the rows of one that was not, bit for bit, each once."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from analysis.load import load
from pipeline.cluster.schedule import Fault, gave_up
from pipeline.driving.run_sweep import DONE, INTERRUPTED, SOME_FAILED
from pipeline.store.lease import LEASE_NAME
from pipeline.store.run_store import RunStore
from pipeline.store.schema import ROW_KEYS
from tests.support.command import run_inline
from workers.messages.telling import Tell
from workers.messages.work import UnitResult, WorkUnit
from workers.worker import Worker

TABLES = ("perplexity", "retrieval")
SWEEP = """\
name: tiny
models: [{model}]
datasets: ['text:{text}']
devices: [cpu]
policies: [knorm, random]
keep_ratios: {ratios}
prune_after: [8, 16, 24]
perplexity: {{window: 64, stride: 48, windows: 20}}
retrieval:
  {{kinds: [passkey, needle], context_tokens: [236, 240], depths: [0.5], questions: 1, prune_after: [8, 16]}}
"""
FEWER, ALL = "[0.9, 0.5]", "[0.9, 0.7, 0.5, 0.4]"


@pytest.fixture(scope="module")
def write_sweep(tmp_path_factory, tiny_model_dir, text_file):
    """Ratios -> a sweep file whose perplexity takes four units and whose retrieval takes four, one for each
    kind and length."""

    def write(ratios: str = ALL) -> Path:
        file = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
        file.write_text(SWEEP.format(model=tiny_model_dir, text=text_file, ratios=ratios))
        return file

    return write


def company_matters(patch: pytest.MonkeyPatch) -> None:
    """Rows depend a little on what else is in their unit, as the last bits of larger models do; no report is
    written."""
    run = Worker.run

    def in_company(self: Worker, unit: WorkUnit, tell: Tell | None = None) -> UnitResult:
        result = run(self, unit, tell)
        names = " ".join(cell.cell_id for cell in unit.cells)
        trace = int(hashlib.sha256(names.encode()).hexdigest()[:6], 16) * 1e-12
        for row in result.rows:
            for name in ("nll_sum", "answer_position_retained"):
                if name in row:
                    row[name] += trace
        return result

    patch.setattr(Worker, "run", in_company)
    patch.setattr("analysis.report.make_report", lambda directories, audit: "report.html")


@pytest.fixture(autouse=True)
def _company_matters(monkeypatch):
    company_matters(monkeypatch)


@pytest.fixture
def ran(monkeypatch) -> list[WorkUnit]:
    """The units that workers were given, in order."""
    units: list[WorkUnit] = []
    run = Worker.run
    monkeypatch.setattr(
        Worker, "run", lambda self, unit, tell=None: units.append(unit) or run(self, unit, tell)
    )
    return units


@pytest.fixture(scope="module")
def undisturbed(write_sweep, tmp_path_factory):
    """A run of the whole grid that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        company_matters(patch)
        assert run_inline(write_sweep(), folder) == DONE
    return folder


def parts(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.glob("*/*.parquet")}


def rows(out: Path, task: str) -> pl.DataFrame:
    """What was computed, in an order that does not depend on the parts."""
    frame = RunStore(str(out)).scan(task).collect().drop("run_id", "seconds", strict=False)
    return frame.sort("cell_id", *ROW_KEYS[task])


def assert_same_rows(out: Path, wanted: Path) -> None:
    for task in TABLES:
        assert rows(out, task).equals(rows(wanted, task)), task


def damage(out: Path, rng: random.Random) -> dict[str, bytes]:
    """Deletes a part for sure and others perhaps, takes cells or rows out of some; returns all that are
    left."""
    files = sorted(out.glob("*/*.parquet"))
    rng.shuffle(files)
    for place, file in enumerate(files):
        kind = "delete" if place == 0 else rng.choice(["delete", "cells", "rows", "keep", "keep"])
        frame = pl.read_parquet(file)
        if kind == "delete":
            file.unlink()
        elif kind == "cells":
            cells = frame["cell_id"].unique(maintain_order=True).to_list()
            frame.filter(pl.col("cell_id").is_in(rng.sample(cells, max(1, len(cells) // 2)))).write_parquet(
                file
            )
        elif kind == "rows":
            frame[sorted(rng.sample(range(len(frame)), max(1, len(frame) // 2)))].write_parquet(file)
    return parts(out)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))]
)
def test_whatever_is_lost_a_resume_gives_the_rows_of_an_undisturbed_run_each_once(
    seed, undisturbed, write_sweep, out, capsys
):
    shutil.copytree(undisturbed, out)
    kept = damage(out, random.Random(seed))
    lost = {
        cell
        for task in TABLES
        for (cell, *_), _ in (Counter(keys(undisturbed, task)) - Counter(keys(out, task))).items()
    }
    assert run_inline(write_sweep(), out) == DONE
    printed = capsys.readouterr().err
    assert f"cells, {len(lost)} to do in " in printed
    assert f"{len(lost)}/{len(lost)} cells done, 0 failed, 0 units running" in printed.splitlines()[-1]
    assert_same_rows(out, undisturbed)
    assert kept.items() <= parts(out).items(), "no part that was there is changed"


def keys(out: Path, task: str) -> list[tuple]:
    return list(RunStore(str(out)).scan(task).select("cell_id", *ROW_KEYS[task]).collect().iter_rows())


@pytest.mark.parametrize("units", [3, *(pytest.param(units, marks=pytest.mark.slow) for units in (0, 1, 5))])
def test_an_interrupted_run_goes_on_to_the_same_rows(units, undisturbed, write_sweep, out, monkeypatch):
    run, left = Worker.run, iter(range(units))

    def interrupted(self: Worker, unit: WorkUnit, tell: Tell | None = None) -> UnitResult:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, unit, tell)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", interrupted)
        assert run_inline(write_sweep(), out) == INTERRUPTED
    before = parts(out)
    assert len(before) == units and not (out / LEASE_NAME).exists()
    assert run_inline(write_sweep(), out) == DONE
    assert_same_rows(out, undisturbed)
    assert before.items() <= parts(out).items()


def test_a_grown_grid_runs_only_units_with_something_new_and_leaves_old_rows_as_they_are(
    undisturbed, write_sweep, out, ran
):
    assert run_inline(write_sweep(FEWER), out) == DONE
    before, ran[:] = parts(out), []
    old = {task: {key[0] for key in keys(out, task)} for task in TABLES}
    assert run_inline(write_sweep(), out) == DONE
    assert all({cell.cell_id for cell in unit.cells} - old[unit.task] for unit in ran)
    assert any({cell.cell_id for cell in unit.cells} & old[unit.task] for unit in ran), (
        "some have old cells for company"
    )
    assert before.items() <= parts(out).items()
    for task in TABLES:
        assert Counter(keys(out, task)) == Counter(keys(undisturbed, task)), "each row once"
        new = ~pl.col("cell_id").is_in(old[task])
        assert rows(out, task).filter(new).equals(rows(undisturbed, task).filter(new)), (
            "as in an undisturbed run"
        )


def test_more_windows_leave_those_that_were_done_as_they_are(write_sweep, tmp_path, out):
    sweep, fewer = write_sweep(FEWER), tmp_path / "fewer.yaml"
    fewer.write_text(sweep.read_text().replace("windows: 20", "windows: 18"))
    assert run_inline(fewer, out) == DONE
    before = parts(out)
    assert run_inline(sweep, out) == DONE
    assert before.items() <= parts(out).items()
    assert set(Counter(keys(out, "perplexity")).values()) == {1}


def test_the_end_of_a_unit_from_outside_is_no_failure_of_cells_that_were_complete(
    undisturbed, write_sweep, out, monkeypatch, capsys
):
    shutil.copytree(undisturbed, out)
    file = sorted(out.glob("perplexity/*.parquet"))[0]
    frame = pl.read_parquet(file)
    lost = frame["cell_id"][0]
    frame.filter(pl.col("cell_id") != lost).write_parquet(file)
    with monkeypatch.context() as patch:
        dead = lambda self, unit, tell=None: gave_up(unit.cells, Fault("ActorDiedError", "gone"))  # noqa: E731
        patch.setattr(Worker, "run", dead)
        assert run_inline(write_sweep(), out) == SOME_FAILED
    assert "failed: 1 cells: ActorDiedError: gone" in capsys.readouterr().err
    assert RunStore(str(out)).scan("failures").collect()["cell_id"].to_list() == [lost]
    assert run_inline(write_sweep(), out) == DONE, "what ended from outside is tried again unasked"
    assert_same_rows(out, undisturbed)


@pytest.mark.slow
def test_timed_cells_of_which_any_is_lost_are_all_measured_anew(sweep_file, out):
    task = "{prompt_tokens: [32], new_tokens: 4, repeats: 5, max_repeats: 5, warmup: 0}"
    sweep = sweep_file(perplexity=None, generation=task)
    assert run_inline(sweep, out) == DONE
    (file,) = out.glob("generation/*.parquet")
    frame = pl.read_parquet(file)
    frame.filter(pl.col("policy") == "dense").write_parquet(file)
    before = parts(out)
    assert run_inline(sweep, out) == DONE
    (name,) = parts(out).keys() - before.keys()
    assert (
        name.startswith(f"generation/{file.stem.rsplit('-', 1)[0]}-") and before.items() <= parts(out).items()
    )
    again = pl.read_parquet(out / name)
    assert again.height == frame.height and set(again["cell_id"]) == set(frame["cell_id"])
    (first,), (second,) = set(frame["run_id"]), set(again["run_id"])
    assert second.startswith(f"{first}-"), (
        "a measurement of its own: its rounds are not paired with those of the first"
    )
    speeds = load([str(out)]).rows("generation").collect()
    dense = frame.filter(pl.col("policy") == "dense")
    assert speeds.height == frame.height + dense.height
