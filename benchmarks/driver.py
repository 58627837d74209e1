"""Units per second through the driver, beside Ray Tune and bare Ray actors in one run; and whether it can feed 1,000 workers.

    python -m benchmarks.driver [--units 3000] [--scaling]

Units do nothing, so what is measured is the driver alone. ``whole`` also stores a Parquet part per unit, logs and shows progress.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import logging
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.drive import execute
from pipeline.executors import RayExecutor, start_ray
from pipeline.lease import Lease
from pipeline.plan import Plan, make_plan
from pipeline.planned_unit import PlannedUnit
from pipeline.results import RunStore
from pipeline.schedule import run_units
from pipeline.session import begin
from pipeline.spec import load_spec
from pipeline.unit_inputs import work_unit
from workers.work import UnitResult, WorkUnit

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # read as ray is imported
import ray

SWEEP = """\
name: driver
models: [reference-neox]
datasets: [pydocs]
devices: [cpu]
policies: [knorm, random, streaming, recent, knorm_high, h2o, snapkv, tova]
keep_ratios: [{ratios}]
prune_after: [{thresholds}]
skip_layers: [[], [0], [1], [0, 1], [2]]
perplexity: {{window: 64, stride: 64, windows: 1}}
"""


@ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1)
class Idle:
    """Takes what a worker takes and gives what it gives, without the work."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @ray.method(num_returns="streaming")
    def run(self, unit: WorkUnit) -> Iterator[UnitResult]:
        yield UnitResult(rows=[row(cell.cell_id) for cell in unit.cells], seconds=1e-4, node="idle", device_name="none")

    @ray.method
    def nothing(self, unit: int) -> int:
        return unit


def row(cell_id: str) -> dict[str, Any]:
    """A row of perplexity of the right form."""
    return {
        "cell_id": cell_id, "window_index": 0, "window_start": 0, "window": 64, "stride": 64, "document": 0, "tokens_scored": 63,
        "nll_sum": 1.0, "nll": [0.5] * 63, "tokens_correct": 1, "prune_events": 1, "tokens_scored_pruned": 1,
        "cache_tokens_mean": 1.0, "cache_tokens_peak": 1, "cache_tokens_final": [1], "kv_bytes_mean": 1.0, "kv_bytes_peak": 1,
        "recent_retained": 1.0, "sink_retained": 1.0, "score_ties": 0.0, "forward_passes": 1, "seconds": 0.0, "event_steps": [],
        "event_kept": [], "kl_sum": 0.0, "tokens_agreed": 63, "rounding_nats": 0.0, "rounding_ppl": 0.0,
    }  # fmt: skip


class IdleExecutor(RayExecutor):
    """The real executor with workers that do nothing."""

    def _new_actor(self, options: dict[str, Any], threads: int) -> Any:
        return Idle.options(**options).remote(threads)

    def close(self) -> None:
        """End the actors; the cluster serves the next contestant."""
        for slot in list(self._slots):
            self._drop(slot)


def planned(units: int) -> Plan:
    """A plan of at least so many units of 24 cells each."""
    thresholds = max(1, units * 24 // (8 * 5 * 99) + 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        ratios = ", ".join(f"{i / 100:g}" for i in range(1, 100))
        file.write_text(SWEEP.format(ratios=ratios, thresholds=", ".join(str(8 + i) for i in range(thresholds))))
        plan = make_plan(load_spec(str(file), []))
    assert len(plan.units) >= units, f"{len(plan.units)} units, {units} wanted"
    plan.units = plan.units[:units]
    return plan


def bare(method: str, payloads: list[Any]) -> float:
    """ray.wait with one call in flight per actor: what Ray itself allows."""
    actors: list[Any] = [Idle.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    ray.get([actor.nothing.remote(0) for actor in actors])
    waiting = iter(payloads)
    begin_at = time.perf_counter()
    pending = {getattr(actor, method).remote(next(waiting)): actor for actor in actors}
    while pending:
        done: list[Any] = ray.wait(list(pending), num_returns=1)[0]
        for ref in done:
            actor = pending.pop(ref)
            ray.get(next(ref) if method == "run" else ref)  # a unit's stream, or what a plain call gave
            if (payload := next(waiting, None)) is not None:
                pending[getattr(actor, method).remote(payload)] = actor
    rate = len(payloads) / (time.perf_counter() - begin_at)
    for actor in actors:
        ray.kill(actor)
    return rate


def of_one_cell(plan: Plan) -> list[PlannedUnit]:
    """The smallest real units."""
    return [replace(unit, cells=unit.cells[:1]) for unit in plan.units]


def loop(plan: Plan) -> float:
    """The driver's loop and executor: cells and tokens out, rows back, nothing stored."""
    executor = IdleExecutor("local")
    small = of_one_cell(plan)
    run_units(small[:50], executor, partial(work_unit, plan), lambda *_: None)  # actors up
    begin_at = time.perf_counter()
    run_units(small, executor, partial(work_unit, plan), lambda *_: None)
    rate = len(small) / (time.perf_counter() - begin_at)
    executor.close()
    return rate


def whole(plan: Plan) -> float:
    """All of a run's turn: each unit a Parquet part of 24 rows, the log, progress, compaction."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        store = RunStore(f"{folder}/run", create=True)
        with Lease(store) as lease:
            session = begin(plan, store, lease, retry_failed=False)
            begin_at = time.perf_counter()
            assert execute(session, IdleExecutor("local")) == []
            return len(plan.units) / (time.perf_counter() - begin_at)


def tune(trials: int) -> float:
    """Ray Tune at its best: a trivial class trainable whose actors are reused."""
    from ray import tune as ray_tune

    class Trivial(ray_tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.config = config

        def step(self) -> dict[str, Any]:
            return {"loss": self.config["x"], "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {"x": self.config["x"]}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            self.config = checkpoint or self.config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

    with tempfile.TemporaryDirectory() as folder:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(Trivial, {"cpu": 1}),
            param_space={"x": ray_tune.grid_search(list(range(trials)))},
            tune_config=ray_tune.TuneConfig(reuse_actors=True),
            run_config=ray_tune.RunConfig(storage_path=folder, verbose=0),
        )
        begin_at = time.perf_counter()
        results = tuner.fit()
        assert len(results) == trials and not results.errors
        return trials / (time.perf_counter() - begin_at)


def compare(units: int, rounds: int) -> None:
    """All contestants in turns, and the ratios of their medians."""
    start_ray("local")
    plan = planned(units)
    payloads = [work_unit(plan, unit) for unit in of_one_cell(plan)]
    contestants: dict[str, Callable[[], float]] = {
        "bare Ray, one call in flight per actor": lambda: bare("nothing", list(range(units))),
        "bare Ray, the units and rows of kvsweep": lambda: bare("run", payloads),
        "kvsweep, loop and executor": lambda: loop(plan),
        "kvsweep, whole (24 rows stored per unit)": lambda: whole(plan),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            rates[name].append(run())
    rates["Ray Tune, reused actors"] = [tune(200)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    same = medians["bare Ray, the units and rows of kvsweep"]
    base, best_tune = medians["bare Ray, one call in flight per actor"], medians["Ray Tune, reused actors"]
    print(f"{'':42}units/s  of bare Ray  of it with our units  times Ray Tune  (median of {rounds}; {os.cpu_count()} cores)")
    for name, rate in medians.items():
        print(f"{name:42}{rate:7.0f}  {rate / base:11.2f}  {rate / same:20.2f}  {rate / best_tune:14.1f}")
    print("cells per second, whole:", round(medians["kvsweep, whole (24 rows stored per unit)"] * 24))
    ray.shutdown()


class Sleepers:
    """Many workers in one process: each call sleeps as long as its unit is said to take."""

    @ray.method(num_returns="streaming")
    async def run(self, seconds: float, cells: list[str]) -> AsyncIterator[UnitResult]:
        await asyncio.sleep(seconds)
        yield UnitResult(rows=[row(cell) for cell in cells], seconds=seconds, node="asleep", device_name="none")

    async def ready(self) -> bool:
        return True


@dataclass
class _Method:
    call: Callable[..., Any]

    def remote(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class Worker:
    """One of the workers in a ``Sleepers`` actor, with the methods that the executor calls."""

    def __init__(self, actor: Any, seconds: float) -> None:
        self.run = _Method(lambda unit: actor.run.remote(seconds, [cell.cell_id for cell in unit.cells]))
        self.__ray_ready__ = _Method(actor.ready.remote)


class SleepingExecutor(IdleExecutor):
    """The real executor, Ray and nodes; only the workers are many to a process."""

    def __init__(self, seconds: float, actors: list[Any]) -> None:
        super().__init__("local")
        self.seconds, self.actors, self.started = seconds, actors, 0

    def _new_actor(self, options: dict[str, Any], threads: int) -> Any:
        self.started += 1
        return Worker(self.actors[self.started % len(self.actors)], self.seconds)

    def _end_actor(self, actor: Any) -> None:
        """The process of a worker that is not needed any more is that of others too: it goes on."""


def scaling(workers: tuple[int, ...] = (10, 100, 1000), seconds: tuple[float, ...] = (1.0, 10.0, 100.0)) -> None:
    """Nodes x workers x unit time: how much of the workers' time is used, and of the driver's."""
    from ray.cluster_utils import Cluster

    print("\nnodes  workers  unit s  units  wall s  ideal s  workers busy  driver's CPU s per 1,000 units  driver busy")
    for nodes in (1, 2, 4):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": max(workers) // nodes, "object_store_memory": 10**8})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=max(workers) // nodes, object_store_memory=10**8)
        ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        cluster.wait_for_nodes()
        try:
            for many, each in itertools.product(workers, seconds):
                if each < 100 or (nodes, many) == (4, 1000):
                    _scaling_line(nodes, many, each)
        finally:
            ray.shutdown()
            cluster.shutdown()


def _scaling_line(nodes: int, many: int, each: float) -> None:
    rounds = {1.0: 8, 10.0: 2}.get(each, 1)
    plan = planned(many * rounds)
    units = [replace(unit, cells=unit.cells[:1]) for unit in plan.units]
    many_to_a_process: Any = ray.remote(Sleepers)
    actors = [many_to_a_process.options(num_cpus=0, max_concurrency=1000).remote() for _ in range(nodes)]
    ray.get([actor.ready.remote() for actor in actors])
    executor = SleepingExecutor(each, actors)
    executor.fleet.nodes = {name: replace(node, cpus=many / nodes, memory=2**62) for name, node in executor.fleet.nodes.items()}
    executor._refresh = lambda: None  # the nodes stay as they were just made
    begin_at, cpu = time.perf_counter(), time.process_time()
    run_units(units, executor, partial(work_unit, plan), lambda *_: None)
    wall, used = time.perf_counter() - begin_at, time.process_time() - cpu
    ideal = rounds * each
    print(
        f"{nodes:5}  {many:7}  {each:6g}  {len(units):5}  {wall:6.1f}  {ideal:7.1f}  {ideal / wall:12.2f}"
        f"  {1000 * used / len(units):30.2f}  {used / wall:11.2f}",
        flush=True,
    )
    executor.close()
    for actor in actors:
        ray.kill(actor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="also the table of nodes, workers and unit times (8 minutes)")
    given = parser.parse_args()
    compare(given.units, given.rounds)
    if given.scaling:
        scaling()


if __name__ == "__main__":
    main()
