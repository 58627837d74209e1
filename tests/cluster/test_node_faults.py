"""Nodes that are not there yet, join, die and hang while a real run goes on: Ray on two machines of their
own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from pipeline.driving.run_sweep import DONE, INTERRUPTED, SOME_FAILED
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.run_store import RunStore
from pipeline.tasks.perplexity import windows_of
from tests.support.command import run_inline
from tests.support.private_machine import PrivateMachine, needs
from tests.support.two_nodes import TwoNodes

pytestmark = pytest.mark.slow

NEVER = "no node of this cluster could hold a cuda worker"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """The head with its CPU; no worker yet."""
    needs("ray")
    folder = tmp_path_factory.mktemp("nodes")
    with (
        PrivateMachine(folder / "head") as head,
        PrivateMachine(folder / "worker", "worker", "10.77.0.2") as worker,
    ):
        (folder / "runs").mkdir()
        yield TwoNodes(folder / "runs", head, worker)


@pytest.fixture(autouse=True)
def _let_go(nodes):
    yield
    nodes.release()


@pytest.fixture
def sweep(tmp_path, tiny_model_dir, text_file) -> Path:
    """Six units on CPUs of 13 cells each, the dense one beside the first."""
    file = tmp_path / "sweep.yaml"
    keys = {
        "name": "nodes",
        "models": [str(tiny_model_dir)],
        "datasets": [f"text:{text_file}"],
        "devices": ["cpu"],
        "policies": ["node_policy:waits"],
        "prune_after": [16, 17, 18, 19, 20, 21],
        "keep_ratios": [round(0.30 + 0.05 * i, 2) for i in range(13)],
        "perplexity": {"window": 64, "stride": 64, "windows": 3},
    }
    file.write_text(json.dumps(keys))
    return file


def on_both_devices(sweep: Path) -> Path:
    """Three units on CPUs and three on GPUs."""
    sweep.write_text(
        json.dumps(json.loads(sweep.read_text()) | {"devices": ["cpu", "cuda"], "prune_after": [16, 17, 18]})
    )
    return sweep


def table(out: Path, task: str = "perplexity") -> pl.DataFrame:
    return RunStore(str(out)).scan(task).collect()


def log(out: Path, event: str) -> list[dict]:
    if not (out / "log.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def same_as_planned(out: Path, sweep: Path, monkeypatch, nodes, devices: tuple[str, ...] = ("cpu",)) -> None:
    """Every row of these devices is there, once."""
    monkeypatch.syspath_prepend(str(nodes.folder))
    plan = make_plan(load_spec(str(sweep)))
    wanted = Counter(
        (c.cell_id, w.index)
        for c in plan.grid.cells
        if c.device in devices
        for w in windows_of(c, plan.resolved)
    )
    assert Counter(table(out).select("cell_id", "window_index").iter_rows()) == wanted


def test_what_no_node_can_hold_is_recorded_after_the_set_time_with_the_nodes_that_there_are(
    nodes, sweep, monkeypatch
):
    on_both_devices(sweep)
    with nodes.run(sweep, "--wait-for-nodes", "5") as run:
        assert run.end() == SOME_FAILED, run.said()
    assert "3 units wait for a node with a GPU" in run.said() and "Traceback" not in run.said()
    (line,) = [line for line in run.said().splitlines() if line.startswith("failed: ")]
    assert line.startswith(f"failed: 40 cells: NoCapacity: {NEVER}") and "in 5 s (nodes: CPU 1, GPU 0" in line
    failures = table(run.out, "failures")
    assert failures.height == 40 and set(failures["device"]) == {"cuda"} and set(failures["attempts"]) == {0}
    assert set(failures["error_type"]) == {"NoCapacity"} and set(failures["traceback"]) == {""}
    assert {line["what"][0] for line in log(run.out, "waiting")} == {"3 units wait for a node with a GPU"}
    same_as_planned(run.out, sweep, monkeypatch, nodes)


def test_a_gpu_node_that_joins_later_takes_the_gpu_units_and_leaves_cpu_units_to_others(
    nodes, sweep, monkeypatch
):
    """The GPU is a number told to Ray, so its units end in an error: where they went is what counts."""
    on_both_devices(sweep)
    nodes.hold(nodes.head)
    with nodes.run(sweep, "--wait-for-nodes", "120") as run:
        run.until(lambda: "3 units wait for a node with a GPU" in run.said(), 60)
        nodes.raylet_of_held(nodes.head, run)
        nodes.join(gpus=1)
        run.until(lambda: len(log(run.out, "unit")) == 5, 90)  # the one that is left waits on the head
        nodes.release()
        assert run.end() == SOME_FAILED, run.said()
    monkeypatch.syspath_prepend(str(nodes.folder))
    device = {unit.unit_id: unit.cells[0].device for unit in make_plan(load_spec(str(sweep))).units}
    ran = [(device[line["unit_id"]], line["node"].partition(":")[0]) for line in log(run.out, "unit")]
    assert ran[:3] == [("cuda", "worker")] * 3, "CPU units stay off a node whose GPU is waited for"
    assert sorted(ran[3:]) == [("cpu", "head"), ("cpu", "worker"), ("cpu", "worker")], (
        "and use its CPU afterwards"
    )
    failures = table(run.out, "failures")
    assert set(failures["device"]) == {"cuda"} and failures["node"].str.starts_with("worker:").all()
    assert "NoCapacity" not in set(failures["error_type"])
    same_as_planned(run.out, sweep, monkeypatch, nodes)


def test_units_of_a_node_that_dies_or_hangs_run_elsewhere_and_it_is_not_held_against_them(
    nodes, sweep, monkeypatch
):
    nodes.join()
    nodes.hold(nodes.head, nodes.worker)
    with nodes.run(sweep) as run:
        for blow in ("KILL", "STOP"):
            raylet, before = nodes.raylet_of_held(nodes.worker, run), len(log(run.out, "retry"))
            assert nodes.worker.here(f"kill -{blow} {raylet}").returncode == 0
            run.until(lambda before=before: len(log(run.out, "retry")) > before, 60)
            if blow == "KILL":
                nodes.hold(nodes.worker)
                nodes.join()
        (nodes.folder / "hold-head").unlink()
        assert run.end() == DONE, run.said()
    nodes.leave()
    assert "Traceback" not in run.said() and table(run.out, "failures").is_empty()
    retries = log(
        run.out, "retry"
    )  # more than two where a busy machine leaves a node without an answer for too long
    assert len(retries) >= 2 and {line["strike"] for line in retries} == {False}, "\n".join(map(str, retries))
    again = Counter(line["unit_id"] for line in retries)
    starts = {line["unit_id"]: line["starts"] for line in log(run.out, "unit")}
    assert starts == {name: 1 + again[name] for name in starts} and again.keys() <= starts.keys()
    same_as_planned(run.out, sweep, monkeypatch, nodes)


def test_a_head_that_dies_ends_the_run_with_one_line_and_what_is_left_can_be_done_without_it(
    nodes, sweep, monkeypatch
):
    """The last test: there is no cluster after it."""
    nodes.hold(nodes.head)
    with nodes.run(sweep) as run:
        nodes.raylet_of_held(nodes.head, run)
        assert nodes.head.here("pkill -KILL gcs_server").returncode == 0
        assert run.end(60) == INTERRUPTED, run.said()
    (line,) = [line for line in run.said().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: Ray's head has not answered for 15 s") and "what is done is kept" in line
    assert "Traceback" not in run.said() and not (run.out / "driver.json").exists()
    nodes.release()
    monkeypatch.syspath_prepend(str(nodes.folder))
    assert run_inline(sweep, run.out) == DONE
    same_as_planned(run.out, sweep, monkeypatch, nodes)
