"""Units per second through the driver, beside Ray Tune and bare Ray actors, all in one run.

    python -m benchmarks.driver [--units 3000] [--scaling]

Units do nothing, so what is measured is the driver alone. ``whole`` also stores a Parquet part per unit, logs
and shows progress. ``--scaling`` adds whether it can feed 1,000 workers (``driver_scaling``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.driver_scaling import scaling
from benchmarks.idle_workers import CELLS, Idle, IdleExecutor, of_one_cell, planned
from pipeline.cluster.executors import start_ray
from pipeline.cluster.schedule import run_units
from pipeline.driving.drive import execute
from pipeline.driving.session import begin
from pipeline.planning.plan import Plan
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore

BARE = "bare Ray, one call in flight per actor"
SAME = "bare Ray, the units and rows of kvsweep"
WHOLE = f"kvsweep, whole ({CELLS} rows stored per unit)"
TUNE = "Ray Tune, reused actors"


def bare(method: str, payloads: list[Any]) -> float:
    """ray.wait with one call in flight per actor: what Ray itself allows."""
    import ray

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
            failures = execute(session, IdleExecutor("local"))
            rate = len(plan.units) / (time.perf_counter() - begin_at)
    if failures:
        raise SystemExit(
            f"{len(failures)} cells failed, the first of {failures[0].error_type}: {failures[0].message}"
        )
    return rate


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


def compare(units: int, rounds: int, trials: int) -> None:
    """All contestants in turns, and the ratios of their medians."""
    import ray

    start_ray("local")
    plan = planned(units)
    payloads = [work_unit(plan, unit) for unit in of_one_cell(plan)]
    contestants: dict[str, Callable[[], float]] = {
        BARE: lambda: bare("nothing", list(range(units))),
        SAME: lambda: bare("run", payloads),
        "kvsweep, loop and executor": lambda: loop(plan),
        WHOLE: lambda: whole(plan),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            rates[name].append(run())
    if trials:
        rates[TUNE] = [tune(trials)]

    show({name: statistics.median(values) for name, values in rates.items()}, rounds)
    ray.shutdown()


def show(medians: dict[str, float], rounds: int) -> None:
    """The table: units per second, and how many times what each of the others reaches."""
    columns = "units/s  of bare Ray  of it with our units  times Ray Tune"
    print(f"{'':42}{columns}  (median of {rounds}; {os.cpu_count()} cores)")
    for name, rate in medians.items():
        times = f"{rate / medians[TUNE]:14.1f}" if TUNE in medians else f"{'-':>14}"
        print(f"{name:42}{rate:7.0f}  {rate / medians[BARE]:11.2f}  {rate / medians[SAME]:20.2f}  {times}")
    print("cells per second, whole:", round(medians[WHOLE] * CELLS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200, help="of Ray Tune; 0 leaves it out")
    parser.add_argument(
        "--scaling", action="store_true", help="also nodes, workers and unit times (8 minutes)"
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4], help="of --scaling")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000], help="of --scaling")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[1.0, 10.0, 100.0], help="a unit of --scaling"
    )
    given = parser.parse_args()
    compare(given.units, given.rounds, given.trials)
    if given.scaling:
        scaling(given.nodes, given.workers, given.seconds)


if __name__ == "__main__":
    main()
