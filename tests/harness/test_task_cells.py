"""Tasks of lm-evaluation-harness as cells of a sweep: planned, run, stored, resumed, refused."""

import polars as pl
import pytest

pytest.importorskip("lm_eval")

from pipeline.commands.run_status import status_lines
from pipeline.driving.run_sweep import DONE, SOME_FAILED
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.harness.local_tasks import QUESTIONS, write_tasks
from tests.support.command import kvsweep, run_inline
from tests.support.leaks import nothing_stays
from workers.messages.work import HarnessWork
from workers.worker import Worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def task_sweep(sweep_file, folder):
    """``task_sweep("task, ...", key="YAML", ...)``: a sweep of these tasks alone."""

    def write(tasks="kv_choice", limit="null", **changes):
        block = f"{{tasks: [{tasks}], include_path: {folder}, limit: {limit}}}"
        return sweep_file(**{"perplexity": None, "datasets": None, "lm_eval": block, **changes})

    return write


def rows(out) -> pl.DataFrame:
    return RunStore(str(out)).scan("tasks").collect()


def test_each_task_makes_cells_of_its_own_whatever_the_datasets(task_sweep, text_file):
    plan = make_plan(load_spec(str(task_sweep("kv_choice, kv_text", datasets=f'["text:{text_file}"]'))))
    assert [(cell.dataset, cell.policy, cell.keep_ratio) for cell in plan.grid.cells] == [
        (task, *setting)
        for task in ("kv_choice", "kv_text")
        for setting in (("dense", 1.0), ("knorm", 0.9), ("knorm", 0.5))
    ]
    assert len({cell.dataset_fingerprint for cell in plan.grid.cells}) == 2 and len(plan.units) == 6


def test_a_folder_of_tasks_in_the_home_directory_reaches_the_workers_as_its_path(
    sweep_file, folder, monkeypatch
):
    monkeypatch.setenv("HOME", str(folder.parent))
    block = f"{{tasks: [kv_choice], include_path: ~/{folder.name}}}"
    plan = make_plan(load_spec(str(sweep_file(perplexity=None, datasets=None, lm_eval=block))))
    work = work_unit(plan, plan.units[0]).work
    assert isinstance(work, HarnessWork) and work.include_path == str(folder)


def test_another_definition_makes_other_cells(task_sweep, folder):
    def ids():
        return [cell.cell_id for cell in make_plan(load_spec(str(task_sweep()))).grid.cells]

    before, file = ids(), folder / "data.jsonl"
    content = file.read_text()
    try:
        file.write_text(content + content)
        assert not set(before) & set(ids())
    finally:
        file.write_text(content)
    assert ids() == before


def test_a_task_leaves_no_tensor_behind(task_sweep, monkeypatch):
    plan = make_plan(load_spec(str(task_sweep("kv_choice", limit=2, policies="[h2o]", keep_ratios="[0.5]"))))
    units, worker = [work_unit(plan, unit) for unit in plan.units], Worker(1)
    worker.run(units[0])
    with nothing_stays(monkeypatch):
        for unit in units:
            assert not worker.run(unit).failures


def test_a_sweep_of_tasks_runs_stores_the_harness_figures_and_is_not_run_again(task_sweep, out):
    sweep = task_sweep("kv_choice, kv_text", limit=2, keep_ratios="[0.5]")
    assert run_inline(sweep, out) == DONE
    found = rows(out)
    figures = found.filter(pl.col("doc_index").is_null())
    assert {(row["task_name"], row["metric"]) for row in figures.to_dicts()} >= {
        ("kv_choice", "acc"),
        ("kv_text", "exact_match"),
    }
    assert figures["documents"].unique().to_list() == [2] < [len(QUESTIONS)]
    events = {row["policy"]: row["prune_events"] for row in figures.to_dicts()}
    assert events["dense"] == 0 < events["knorm"]
    for row in figures.to_dicts():
        assert (0 < row["tokens_predicted_pruned"] < row["tokens_predicted"]) == (row["policy"] == "knorm")
    for row in figures.filter(pl.col("metric") == "acc").to_dicts():
        own = found.filter(
            pl.col("doc_index").is_not_null(), pl.col("metric") == "acc", pl.col("cell_id") == row["cell_id"]
        )
        assert own.height == 2 and own["value"].mean() == pytest.approx(row["value"])
    parts = {part: part.read_bytes() for part in out.glob("tasks/*.parquet")}
    assert run_inline(sweep, out) == DONE
    assert {part: part.read_bytes() for part in out.glob("tasks/*.parquet")} == parts and len(parts) == 4
    assert "tasks: 4 cells planned, 4 done, 0 failed, 0 missing" in "\n".join(
        status_lines(RunStore(str(out)))
    )
    assert "kv_choice" in (out / "report.html").read_text()


def test_a_task_whose_data_is_gone_fails_its_cells_with_the_reason(task_sweep, out, folder, tmp_path):
    broken = write_tasks(tmp_path)
    sweep = task_sweep(lm_eval=f"{{tasks: [kv_choice], include_path: {broken}}}")
    (broken / "data.jsonl").unlink()
    assert run_inline(sweep, out) == SOME_FAILED
    failed = RunStore(str(out)).scan("failures").collect()
    assert failed["task"].unique().to_list() == ["tasks"] and failed.height == 3
    assert "data.jsonl" in failed["message"][0] + failed["traceback"][0]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("kv_choise", "there is no task 'kv_choise' in lm_eval"),
        ("kv_group", "'kv_group' is a group of tasks; name the tasks themselves: kv_choice, kv_rolling"),
    ],
)
@pytest.mark.slow
def test_tasks_that_cannot_be_measured_are_refused_before_anything_is_written(task_sweep, tasks, words):
    with pytest.raises(SweepError, match=r"lm_eval\.tasks: ") as refusal:
        make_plan(load_spec(str(task_sweep(tasks))))
    assert words in str(refusal.value)


def test_other_tasks_still_need_a_dataset(sweep_file, tmp_path):
    done = kvsweep("plan", sweep_file(datasets=None), folder=tmp_path)
    assert done.returncode == 2 and "datasets: is required, at least one" in done.stderr


def test_the_sweeps_bos_is_sent_with_a_task_which_keeps_the_harnesss_way_to_read_texts(task_sweep):
    plan = make_plan(load_spec(str(task_sweep(bos="always", special_tokens_in_text="literal"))))
    assert {work_unit(plan, unit).work.bos for unit in plan.units} == {"always"}
    assert {(cell.bos, cell.special_tokens_in_text) for cell in plan.grid.cells} == {(256, "parse")}
