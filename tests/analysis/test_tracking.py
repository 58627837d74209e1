"""Export to real stores of trackio and MLflow, read back through the libraries' own interfaces."""

import dataclasses
from pathlib import Path

import pytest

from analysis.load import load
from analysis.page.page import contents
from analysis.tracking.export_runs import Exported, export, records
from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from tests.support.rows import (
    NASTY,
    failure_row,
    generation_row,
    one,
    perplexity_row,
    retrieval_row,
    tasks_rows,
    write_run,
)

TRACKERS = ["trackio", "mlflow"]
TIMED = "generation/prompt_128/batch_1/interleaved"


@dataclasses.dataclass
class Read:
    """A tracked run as its library gives it back."""

    name: str
    params: dict
    metrics: dict


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each tracker; trackio has one per process."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_LOGGING_LEVEL"):
            patch.setenv(name, "true")  # what an export sets ends with these tests
            patch.delenv(name)
        patch.setenv("TRACKIO_DIR", str(place / "trackio"))
        yield {"trackio": str(place / "trackio"), "mlflow": str(place / "mlflow")}


@pytest.fixture
def project(request):
    return f"test-{abs(hash(request.node.name))}"


def read(tracker: str, store: str, project: str) -> list[Read]:
    if tracker == "trackio":
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        found = []
        for run in trackio.Api().runs(project):
            (log,) = SQLiteStorage.get_logs(project, run_id=run.id)
            figures = {name: value for name, value in log.items() if name not in ("step", "timestamp")}
            found.append(Read(run.name, run.config, figures))
        return found
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store if store.startswith("sqlite:") else Path(store).as_uri())
    experiment = client.get_experiment_by_name(project)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [Read(run.info.run_name, run.data.params, run.data.metrics) for run in runs]


def cell_of(found: list[Read], **settings: object) -> Read:
    """The only tracked run with these settings, whatever type the tracker keeps them in."""
    (own,) = [
        run
        for run in found
        if all(str(run.params.get(name)) == str(value) for name, value in settings.items())
    ]
    return own


def some_rows() -> dict:
    """Three cells measured in every way, one that never prunes, one that failed."""
    settings = [{"policy": "dense"}, {"keep_ratio": 0.9, "skip_layers": [0, 1]}, {"keep_ratio": 0.5}]
    timed = [
        generation_row(
            i, control=again, tpot_seconds=0.002 + (0.0001 * i if setting.get("keep_ratio") else 0), **setting
        )
        for setting in settings
        for i in range(7)
        for again in ([False, True] if "policy" in setting else [False])
    ]
    vacuous = {"tokens_scored_pruned": 0, "prune_events": 0, "prune_after": 2048}
    return {
        "perplexity": [
            perplexity_row(i, nll_sum=200.0 + i * s.get("keep_ratio", 0), **s)
            for s in settings
            for i in range(4)
        ]
        + [perplexity_row(i, **vacuous) for i in range(4)],
        "generation": timed,
        "retrieval": [retrieval_row(i, correct=i % 3 > 0, **s) for s in settings for i in range(10)],
        "failures": [failure_row(policy="h2o"), failure_row(task="generation", prune_after=2048)],
    }


@pytest.mark.parametrize("tracker", TRACKERS)
def test_what_a_tracker_holds_is_what_the_tables_say(tracker, stores, project, tmp_path):
    run = write_run(str(tmp_path / "run"), some_rows())
    done = export([run], tracker, project, stores[tracker])
    assert (done.written, done.skipped, done.changed) == (5, 0, 0)
    tables = {name: frame for name, (frame, _) in contents(load([run]), 0.01).tables.items()}
    found = read(tracker, stores[tracker], project)
    assert len(found) == 5
    for cell_id in tables["generation"]["cell_id"]:
        own = cell_of(found, **{"perplexity/cell_id": cell_id})
        cell = one(tables["cells"], cell_id=cell_id)
        for name in ("ppl", "ratio", "ratio_low", "ratio_high", "budget", "kv_bytes_mean", "kv_bytes_peak"):
            assert own.metrics.get(f"perplexity/{name}") == cell[name], name
        timed = one(tables["generation"], cell_id=cell_id)
        for name in (
            "tpot_seconds",
            "tpot_seconds_low",
            "ttft_seconds",
            "tpot_ratio",
            "tpot_low",
            "tpot_high",
            "ttft_ratio",
        ):
            assert own.metrics.get(f"{TIMED}/{name}") == timed[name], name
        assert own.params.get(f"{TIMED}/tpot_words") == timed["tpot_words"]
        asked = one(tables["retrieval"], cell_id=cell_id)
        for name in ("accuracy", "accuracy_low", "accuracy_high", "dense_accuracy"):
            assert own.metrics[f"retrieval/passkey/context_512/{name}"] == asked[name], name
    own = cell_of(found, keep_ratio=0.9, prune_after=32, policy="knorm")
    assert own.metrics["perplexity/ratio"] > 1 and own.metrics[f"{TIMED}/tpot_ratio"] == pytest.approx(1.15)
    wanted = {
        "model": "toy",
        "dataset": "text",
        "device": "cpu",
        "dtype": "float32",
        "skip_layers": "0, 1",
        "run_id": "run-1",
        "model_revision": "r1",
        "dataset_fingerprint": "f1",
        "protocol_version": "1",
        f"{TIMED}/new_tokens": "16",
    }
    assert {name: str(own.params[name]) for name in wanted} == wanted
    assert "prune_after" not in cell_of(found, policy="dense").params


@pytest.mark.parametrize("tracker", TRACKERS)
def test_no_figure_is_without_its_verdict(tracker, stores, project, tmp_path):
    export([write_run(str(tmp_path / "run"), some_rows())], tracker, project, stores[tracker])
    found = read(tracker, stores[tracker], project)
    assert cell_of(found, policy="dense").params["verdict"] == "DENSE, STABLE"
    assert cell_of(found, keep_ratio=0.5, policy="knorm").params["verdict"] == "VALID, STABLE"
    vacuous = cell_of(found, prune_after=2048)
    assert vacuous.params["verdict"] == "NEVER_PRUNED, FAILED"
    assert (vacuous.params["perplexity/verdict"], vacuous.params["generation/verdict"]) == (
        "NEVER_PRUNED",
        "FAILED",
    )
    lost = cell_of(found, policy="h2o")
    assert lost.params["verdict"] == "FAILED" and lost.metrics == {}
    assert (
        lost.params["perplexity/failure/reason"] == "OutOfMemoryError: tried to allocate 2 GiB (3 attempts)"
    )
    if tracker == "mlflow":
        from mlflow.tracking import MlflowClient

        client = MlflowClient(Path(stores["mlflow"]).as_uri())
        experiment = client.get_experiment_by_name(project)
        runs = client.search_runs([experiment.experiment_id])
        assert {run.data.tags["kvsweep.verdict"]: run.info.status for run in runs} == {
            "DENSE, STABLE": "FINISHED",
            "VALID, STABLE": "FINISHED",
            "NEVER_PRUNED, FAILED": "FAILED",
            "FAILED": "FAILED",
        }


def test_timings_that_cannot_be_compared_say_so(tmp_path):
    def timed(**values):
        return [generation_row(i, tpot_seconds=0.002 * (1 + i), **values) for i in range(3)]

    rows = (
        timed(policy="dense")
        + timed()
        + timed(policy="dense", timing_protocol="report_2025", prompt_tokens=64)
    )
    found = records(load([write_run(str(tmp_path / "run"), {"generation": rows})]))
    assert [own.verdict for own in found] == ["UNSTABLE_TIMING, WRONG_ON_PURPOSE", "UNSTABLE_TIMING"]
    assert found[0].params["generation/prompt_64/batch_1/report_2025/timing"] == "WRONG_ON_PURPOSE"
    assert (
        found[1]
        .params[f"{TIMED}/tpot_words"]
        .startswith("unstable timing: the dense cell's time per token changed by +200 %")
    )


def test_the_cells_of_a_setting_are_one_record(tmp_path):
    tables = {
        "perplexity": [perplexity_row(cell_id="p", dense_cell_id="p0")],
        "generation": [
            generation_row(cell_id="g", dense_cell_id="g0"),
            generation_row(keep_ratio=0.3, cell_id="g2"),
        ],
        "retrieval": [
            retrieval_row(cell_id="r", dense_cell_id="r0"),
            retrieval_row(keep_ratio=0.5, cell_id="r2"),
        ],
        "failures": [failure_row(task="retrieval", cell_id="r")],
    }
    own, alone, other = records(load([write_run(str(tmp_path / "run"), tables)]))
    wanted = {"perplexity": "p", TIMED: "g", "retrieval/passkey/context_512": "r"}
    assert {place: own.params[f"{place}/cell_id"] for place in wanted} == wanted
    assert (
        own.params["retrieval/failure/reason"].startswith("OutOfMemoryError") and "FAILED" not in own.verdict
    )
    assert other.params["keep_ratio"] == 0.5 and other.verdict == "VALID" and other.key != own.key
    assert (
        alone.params["keep_ratio"] == 0.3 and alone.verdict == "NOT_JUDGED"
    )  # no dense cell was timed beside it


def test_questions_and_tasks_are_told_apart_by_their_place(tmp_path):
    asked = [retrieval_row(), retrieval_row(digits=7, distractors=3), retrieval_row(question_pruned=False)]
    scored = [
        *tasks_rows([1.0, 0.0], metric="acc,none", dataset="text"),
        *tasks_rows([1.0], task_name="../x", dataset="text"),
    ]
    (own,) = records(load([write_run(str(tmp_path / "run"), {"retrieval": asked, "tasks": scored})]))
    places = {name.rpartition("/")[0] for name in own.metrics}
    asked_in = "retrieval/passkey/context_512"
    assert places == {
        asked_in,
        f"{asked_in}/digits_7/distractors_3",
        f"{asked_in}/asked_after",
        "tasks/quiz/acc_none/none",
        "tasks/___x/acc/none",
    }
    assert own.metrics["tasks/quiz/acc_none/none/value"] == 0.5
    assert own.metrics[f"{asked_in}/answer_nll"] == pytest.approx(0.2)
    assert own.params["tasks/quiz/acc_none/none/verdict"] == "VALID"


def test_a_cell_that_was_timed_on_two_devices_keeps_both(tmp_path):
    rows = [
        generation_row(i, device_name=name, policy="dense")
        for first, name in ((0, "a"), (2, "b"))
        for i in range(first, first + 2)
    ]
    (own,) = records(load([write_run(str(tmp_path / "run"), {"generation": rows})]))
    assert [own.params[f"{place}/device_name"] for place in (TIMED, f"{TIMED}/2")] == ["a", "b"]
    assert own.metrics[f"{TIMED}/ttft_seconds"] == own.metrics[f"{TIMED}/2/ttft_seconds"] == 0.01


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_cell_is_exported_once_per_run(tracker, stores, project, tmp_path):
    run = write_run(str(tmp_path / "run"), some_rows())
    again = write_run(str(tmp_path / "again"), some_rows(), run_id="run-2")
    expected = [(5, 0, [run]), (0, 5, [run]), (5, 5, [again, run, run]), (0, 10, [run, again])]
    for written, skipped, directories in expected:
        done = export(directories, tracker, project, stores[tracker])
        assert (done.written, done.skipped, done.changed) == (written, skipped, 0)
    found = read(tracker, stores[tracker], project)
    assert (
        len({(own.params["perplexity/cell_id"], own.params["run_id"]) for own in found}) == len(found) == 10
    )


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_cell_whose_run_went_on_is_written_anew_only_where_asked(tracker, stores, project, tmp_path):
    rows = [perplexity_row(i, policy=policy) for policy in ("dense", "knorm") for i in range(2)]
    run = write_run(str(tmp_path / "run"), {"perplexity": rows})
    assert export([run], tracker, project, stores[tracker]).written == 2
    RunStore(run).add_part("perplexity", "unit-1", to_arrow("perplexity", [perplexity_row(2, nll_sum=300.0)]))
    for replace, windows in ((False, 2), (True, 3)):
        done = export([run], tracker, project, stores[tracker], replace=replace)
        assert (done.written, done.skipped, done.changed) == (0, 1, 1)
        found = read(tracker, stores[tracker], project)
        assert len(found) == 2 and cell_of(found, policy="knorm").metrics["perplexity/n_windows"] == windows
    assert export([run], tracker, project, stores[tracker]).skipped == 2


def test_what_was_cut_off_in_mlflow_is_written_again(stores, project, tmp_path):
    from mlflow.tracking import MlflowClient

    run = write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row(policy="dense")]})
    export([run], "mlflow", project, stores["mlflow"])
    client = MlflowClient(Path(stores["mlflow"]).as_uri())
    experiment = client.get_experiment_by_name(project)
    (whole,) = client.search_runs([experiment.experiment_id])
    client.update_run(whole.info.run_id, status="RUNNING")
    assert export([run], "mlflow", project, stores["mlflow"]).written == 1
    (own,) = client.search_runs([experiment.experiment_id])
    assert own.info.run_id != whole.info.run_id and own.info.status == "FINISHED"


@pytest.mark.parametrize("tracker", TRACKERS)
def test_names_from_outside_arrive_as_one_harmless_line(tracker, stores, project, tmp_path):
    names = {"model": NASTY, "dataset": "d" * 9000 + "\x1b[31m\u202e", "device_name": NASTY}
    rows = [perplexity_row(i, policy=policy, **names) for policy in ("dense", NASTY) for i in range(2)]
    asked = [retrieval_row(kind=f"../{NASTY}", **names)]
    failed = [failure_row(task=f"../{NASTY}", message=NASTY, policy="tova", **names)]
    tables = {"perplexity": rows, "retrieval": asked, "failures": failed}
    run = write_run(str(tmp_path / "run"), tables, run_id=NASTY, name=NASTY)
    assert export([run], tracker, project, stores[tracker]).written == 4
    assert export([run], tracker, project, stores[tracker]).skipped == 4
    found = read(tracker, stores[tracker], project)
    assert len(found) == 4
    for own in found:
        texts = [own.name, *own.params, *own.metrics, *map(str, own.params.values())]
        assert all(text.isprintable() and len(text) <= 500 for text in texts)
        assert own.params["model"].startswith("</script><script>alert(1)</script>")
    assert not [file for file in tmp_path.iterdir() if file.name != "run"]


@pytest.mark.slow
def test_mlflow_in_a_database(stores, project, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    monkeypatch.chdir(tmp_path)
    run = write_run("run", some_rows())
    for written, skipped in ((5, 0), (0, 5)):
        done = export([run], "mlflow", project, "sqlite:///runs.db")
        assert done == Exported(written, skipped, 0, f"MLflow experiment {project} in sqlite:///runs.db")
    assert len(read("mlflow", "sqlite:///runs.db", project)) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "runs.db"]
