"""Whether the driver can feed many workers: nodes x workers x the time of a unit, most workers to one
process.

Each worker sleeps as long as its unit is said to take, so a thousand of them fit on two cores.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.idle_workers import IdleExecutor, of_one_cell, planned, result, windows_of
from pipeline.cluster.schedule import run_units
from pipeline.planning.unit_inputs import work_unit
from workers.messages.work import UnitCell, UnitResult
from workers.texts.windows import Window

import ray  # isort: skip  (behind idle_workers, which says how its nodes know each other)

LONG = 100.0
"""Units of so many seconds and more are waited for once: with the most nodes and workers."""


class Sleepers:
    """Many workers in one process: each call sleeps as long as its unit is said to take."""

    @ray.method(num_returns="streaming")
    async def run(
        self, seconds: float, cells: Sequence[UnitCell], windows: Sequence[Window]
    ) -> AsyncIterator[UnitResult]:
        await asyncio.sleep(seconds)
        yield result(cells, windows, seconds, "asleep")

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
        self.run = _Method(lambda unit: actor.run.remote(seconds, unit.cells, windows_of(unit)))
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


def scaling(nodes: Sequence[int], workers: Sequence[int], seconds: Sequence[float]) -> None:
    """A line for each: how much of the workers' time is used, and of the driver's."""
    from ray.cluster_utils import Cluster

    columns = "workers busy  driver's CPU s per 1,000 units  driver busy"
    print(f"\nnodes  workers  unit s  units  wall s  ideal s  {columns}")
    for count in nodes:
        room: dict[str, Any] = {"num_cpus": max(workers) // count, "object_store_memory": 10**8}
        cluster = Cluster(initialize_head=True, head_node_args=room)
        for _ in range(count - 1):
            cluster.add_node(**room)
        ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        cluster.wait_for_nodes()
        try:
            for many, each in itertools.product(workers, seconds):
                if each < LONG or (count, many) == (max(nodes), max(workers)):
                    _line(count, many, each)
        finally:
            ray.shutdown()
            cluster.shutdown()


def _line(nodes: int, many: int, each: float) -> None:
    rounds = {1.0: 8, 10.0: 2}.get(each, 1)
    plan = planned(many * rounds)
    units = of_one_cell(plan)
    many_to_a_process: Any = ray.remote(Sleepers)
    actors = [many_to_a_process.options(num_cpus=0, max_concurrency=1000).remote() for _ in range(nodes)]
    ray.get([actor.ready.remote() for actor in actors])
    executor = SleepingExecutor(each, actors)
    roomy = {
        name: replace(node, cpus=many / nodes, memory=2**62) for name, node in executor.fleet.nodes.items()
    }
    executor.fleet.nodes = roomy
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
