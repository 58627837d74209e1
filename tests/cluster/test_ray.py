"""A real local Ray: the same rows as inline, dead actors replaced, no hang where there is no place, nothing
left alive."""

import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline.cluster.executors import RayExecutor
from pipeline.cluster.inline import InlineExecutor
from pipeline.cluster.placement import Need
from pipeline.cluster.schedule import MAX_ATTEMPTS, Outcome, run_units
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from tests.support.ready import Ready, unwrap
from workers.messages.telling import News
from workers.messages.work import UnitResult, WorkUnit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(ray_folder):
    """One Ray on this machine for the whole module."""
    executor = RayExecutor("local", threads=1)
    yield executor
    executor.close()
    assert not executor.ray.is_initialized()


@pytest.fixture
def executor(cluster):
    """The module's executor, without actors of an earlier test."""
    for slot in list(cluster._slots):
        cluster._drop(slot)
    return cluster


@pytest.fixture
def units(sweep_file) -> list[Ready]:
    """Three perplexity units, one of retrieval and one of generation."""
    sweep = sweep_file(
        keep_ratios="[0.9, 0.8, 0.7, 0.6, 0.5]",
        prune_after="[8, 16]",
        policies="[knorm, random, streaming, recent, knorm_high]",
        generation=(
            "{prompt_tokens: [32], new_tokens: 6, repeats: 5, max_repeats: 5, policies: [knorm], keep_ratios:"
            " [0.5]}"
        ),
        retrieval="{context_tokens: [240], depths: [0.5], questions: 1}",
    )
    plan = make_plan(load_spec(str(sweep)))
    made = {
        task: [u for u in plan.units if u.task == task] for task in ("perplexity", "retrieval", "generation")
    }
    chosen = [*made["perplexity"], made["retrieval"][0], *made["generation"]]
    return [Ready(work_unit(plan, unit), unit.need, unit.cost_seconds) for unit in chosen]


def renamed(ready: Ready, unit_id: str, **changes: object) -> Ready:
    """The same unit under another name, with other content."""
    return replace(ready, unit=replace(ready.unit, unit_id=unit_id, **changes))


def collected(
    units: list[Ready], executor: RayExecutor | InlineExecutor
) -> dict[str, tuple[UnitResult, int]]:
    """Result and attempts of each unit; each reported once, with the rows that were told of while it went
    on."""
    results: dict[str, tuple[UnitResult, int]] = {}
    told: defaultdict[str, list[dict]] = defaultdict(list)

    def hear(unit: Ready, news: News) -> None:
        told[unit.unit_id] += news.rows

    def keep(unit: Ready, result: UnitResult, attempts: int) -> None:
        assert unit.unit_id not in results
        results[unit.unit_id] = replace(result, rows=told[unit.unit_id] + result.rows), attempts

    run_units(units, executor, unwrap, keep, on_news=hear)
    assert results.keys() == {unit.unit_id for unit in units}
    return results


def rows_of(results: dict[str, tuple[UnitResult, int]], name: str) -> dict[tuple, dict]:
    """All rows with a column ``name``, by cell and place."""
    rows = [row for result, _ in results.values() for row in result.rows if name in row]
    return {(r["cell_id"], r.get("window_index"), r.get("repeat"), r.get("question_index")): r for r in rows}


def test_ray_gives_the_same_rows_as_inline(units, executor):
    inline, remote = collected(units, InlineExecutor(threads=1)), collected(units, executor)
    for results in (inline, remote):
        assert [failure for result, _ in results.values() for failure in result.failures] == []
    a, b = rows_of(inline, "nll"), rows_of(remote, "nll")
    assert a.keys() == b.keys() and len(a) == 51 * 3
    measured = {"nll", "nll_sum", "seconds"}
    for key, row in a.items():
        assert b[key]["nll"] == pytest.approx(row["nll"], abs=1e-5)
        assert {k: v for k, v in b[key].items() if k not in measured} == {
            k: v for k, v in row.items() if k not in measured
        }
    for column in ("answer", "output_tokens"):
        a, b = rows_of(inline, column), rows_of(remote, column)
        assert a.keys() == b.keys() and a
        assert all(b[key][column] == row[column] for key, row in a.items())


def test_actors_keep_their_model_and_only_as_many_live_as_there_is_room_for(units, executor):
    most = 0
    perplexity = [ready for ready in units if ready.unit.task == "perplexity"]
    many = [
        renamed(ready, f"{ready.unit_id}-{i}", cells=ready.unit.cells[:3])
        for ready in perplexity
        for i in range(3)
    ]
    wait = executor.wait

    def watched(timeout: float) -> list[Outcome]:
        nonlocal most
        most = max(most, len(executor._slots))
        return wait(timeout)

    executor.wait = watched
    try:
        results = collected(many, executor)
    finally:
        del executor.wait
    assert most <= (os.cpu_count() or 1)
    assert len({result.node for result, _ in results.values()}) <= most


def test_a_unit_that_needs_a_gpu_ends_with_a_reason_and_the_rest_goes_on(units, executor):
    if any(node.gpus for node in executor.fleet.nodes.values()):
        pytest.skip("this machine has a GPU")
    asks = {"gpu": units[0], "timed gpu": units[-1]}
    nowhere = [
        replace(renamed(ready, name), need=replace(ready.need, device="cuda")) for name, ready in asks.items()
    ]
    results = collected([*nowhere, units[1]], executor)
    for unit in nowhere:
        result, attempts = results[unit.unit_id]
        assert [failure.cell_id for failure in result.failures] == [cell.cell_id for cell in unit.unit.cells]
        assert {failure.error_type for failure in result.failures} == {"NoCapacity"}
        assert (
            "no node of this cluster could hold a cuda worker" in result.failures[0].message and attempts == 0
        )
    assert results[units[1].unit_id][0].rows


class KillsActors:
    """A Ray executor whose actor is killed while it works on ``unit_id``, ``times`` times."""

    def __init__(self, executor: RayExecutor, unit_id: str, times: int) -> None:
        self.executor, self.unit_id, self.left = executor, unit_id, times
        self.submitted: Counter[str] = Counter()
        self.killed: list[object] = []

    def has_room(self, need: Need) -> bool:
        return self.executor.has_room(need)

    def wanted(self, queued: Mapping[Need, int]) -> dict[Need, str]:
        return self.executor.wanted(queued)

    def submit(self, unit: WorkUnit, need: Need, cost_seconds: float) -> None:
        self.executor.submit(unit, need, cost_seconds)
        self.submitted[unit.unit_id] += 1

    def wait(self, timeout: float) -> list[Outcome]:
        working = [s for s in self.executor._slots if s.unit_id == self.unit_id and s.ready]
        working = [
            s for s in working if s.actor not in self.killed
        ]  # its death may be reported after another unit's result
        if working and self.left:
            self.left -= 1
            self.killed.append(working[0].actor)
            self.executor.ray.kill(working[0].actor)
        return self.executor.wait(timeout)


def test_a_unit_whose_actor_is_killed_is_done_by_another(units, executor):
    killer = KillsActors(executor, units[0].unit_id, times=1)
    results = collected(units[:2], killer)
    result, attempts = results[units[0].unit_id]
    assert killer.left == 0 and killer.submitted[units[0].unit_id] == attempts == 2
    assert result.failures == [] and len(result.rows) == len(units[0].unit.cells) * 3


def test_a_unit_that_kills_every_actor_is_given_up_and_the_rest_goes_on(units, executor):
    killer = KillsActors(executor, units[0].unit_id, times=99)
    results = collected(units[:2], killer)
    result, attempts = results[units[0].unit_id]
    assert attempts == MAX_ATTEMPTS == 99 - killer.left
    assert {failure.error_type for failure in result.failures} == {"ActorDiedError"}
    assert len(result.failures) == len(units[0].unit.cells) and result.rows == []
    assert results[units[1].unit_id][0].rows and results[units[1].unit_id][0].failures == []


def test_an_exception_of_the_worker_is_a_failure_with_its_own_traceback_and_not_tried_again(units, executor):
    facts = replace(units[0].unit.model, source="/no/such/model", revision="other")
    results = collected([renamed(units[0], "broken", model=facts)], executor)
    result, attempts = results["broken"]
    assert attempts == 1
    assert {failure.error_type for failure in result.failures} == {"ModelError"}
    assert all("Traceback" in failure.traceback for failure in result.failures)


ALONE = """\
import os, sys
from pipeline.cluster.executors import RayExecutor
from pipeline.cluster.placement import Need
executor = RayExecutor("local", threads=1)
print(executor.ray.get_runtime_context().gcs_address, flush=True)
need = Need("cpu", False, 2**20, "m")
slot = executor._start(executor.fleet.find(need), need)
print(executor.ray.get(slot.actor.__ray_call__.remote(lambda worker: os.getpid())), flush=True)
sys.stdin.readline()
executor.close()
"""


@pytest.fixture
def other_process():
    """A process with a Ray and one actor of its own: the process, the address, the actor's process id."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", ALONE],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        yield process, process.stdout.readline().strip(), int(process.stdout.readline())
        if process.poll() is None:
            process.kill()


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process_id}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_client_without_the_token_is_refused_and_no_actor_outlives_its_executor(other_process):
    process, address, actor = other_process
    assert alive(actor)
    code = f"import ray\nray.init({address!r}, logging_level='ERROR')\nprint('joined')"
    stranger = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"} | {
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_AUTH_MODE": "token",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=stranger, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0 and "joined" not in done.stdout
    assert "Unauthenticated" in done.stderr or "AuthenticationError" in done.stderr, done.stderr[-2000:]
    process.communicate("close\n", timeout=60)
    assert process.returncode == 0
    for _ in range(100):
        if not alive(actor):
            break
        time.sleep(0.1)
    assert not alive(actor)


def test_a_policy_beside_the_user_reaches_the_actors(sweep_file, tmp_path):
    """``module:function`` in the directory where kvsweep is started, which is neither installed nor ours."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "users_policy.py").write_text("def oldest(view):\n    return -view.positions.float()\n")
    sweep = sweep_file(policies='["users_policy:oldest"]')
    command = [str(Path(sys.executable).parent / "kvsweep"), "run", str(sweep), "--out", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(folder / "out" / "perplexity" / "*.parquet").filter(pl.col("policy") != "dense")
    assert rows["policy"].str.starts_with("users_policy:oldest@").all()
    assert rows["prune_events"].min() > 0
    assert set(rows["sink_retained"]) == {1.0}, "the oldest always stay"
    assert rows["recent_retained"].max() < 0.2
