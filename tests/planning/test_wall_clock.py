"""What a plan will take on this machine: measured paces, workers at once, and what is never asked for."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from pipeline.cells.cell import Cell
from pipeline.cells.rates import Rates
from pipeline.cells.unit_sizes import UNIT_SECONDS
from pipeline.cluster.placement import Fleet, Node
from pipeline.planning import wall_clock as clocks
from pipeline.planning.cutting import unit_seconds
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.wall_clock import wall_clock
from pipeline.sweepfile.sweep_error import SweepError
from pipeline.tasks.retrieval import retrieval_seconds
from tests.support.command import kvsweep
from workers.loaded.load import load
from workers.loaded.measure_pace import TOKENS, measure
from workers.models.model_files import find_model
from workers.models.pace import Pace, remember, remembered

PACE = Pace(0.01, 0.5)


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """Nothing was ever measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def four_workers(monkeypatch):
    fleet = Fleet(nodes={"here": Node("here", 4, 0, 2**40, 1)})
    monkeypatch.setattr(clocks, "_this_machine", lambda: fleet)


def plan_of(sweep_file, **keys):
    return make_plan(load_spec(str(sweep_file(**keys))))


def test_a_measured_pace_gives_the_seconds_of_the_units_over_the_workers(sweep_file, no_cache, four_workers):
    """Plain arithmetic: 6 windows of 64 tokens, dense and one cell from token 16 on, 1 pass and one for each
    of its prunes."""
    plan = plan_of(
        sweep_file, perplexity="{window: 64, stride: 64, windows: 6}", keep_ratios="[0.5]", prune_after="[16]"
    )
    (unit,) = plan.units
    facts = plan.resolved.models[unit.cells[0].model]
    rough = wall_clock(plan, measure=False)
    assert rough.unmeasured == (facts.name,) and "rough" in str(rough)
    remember(PACE, facts, "float32", "cpu", 1)
    prunes = 1 + sum(1 for seen in range(16, 64) if (seen - 16) % 8 == 0)
    found = wall_clock(plan, measure=False)
    assert found.seconds == pytest.approx(6 * (63 + 63 - 16) * 0.01 + prunes * 0.5)
    assert (found.workers, found.unmeasured) == (1, ()) and "rough" not in str(found)
    many = replace(plan, units=[unit] * 8)
    assert wall_clock(many, measure=False).seconds == pytest.approx(2 * found.seconds)
    assert wall_clock(many, measure=False).workers == 4


def test_the_pace_of_a_machine_cuts_nothing(sweep_file, no_cache):
    keys = {"keep_ratios": "[0.9, 0.5]", "perplexity": "{window: 64, stride: 64, windows: 20}"}
    before = [unit.unit_id for unit in plan_of(sweep_file, **keys).units]
    remember(Pace(10.0, 10.0), find_model(plan_of(sweep_file).units[0].cells[0].model), "float32", "cpu", 1)
    assert [unit.unit_id for unit in plan_of(sweep_file, **keys).units] == before


def test_short_plans_load_no_model_and_long_ones_do_once(sweep_file, no_cache, monkeypatch):
    started = []
    monkeypatch.setattr(clocks.subprocess, "run", lambda command, **_: started.append(command))
    plan = plan_of(sweep_file)
    wall_clock(plan)
    assert not started
    long = replace(plan, units=[replace(unit, cost_seconds=100.0) for unit in plan.units])
    wall_clock(long, measure=False)
    assert not started
    assert wall_clock(long).unmeasured, "a process that gave nothing leaves the plan rough"
    ((_, isolated, _, program, *_),) = started
    assert isolated == "-P" and "from workers.loaded.measure_pace import main" in program
    assert "failed or took too long (--no-measure leaves it out)" in str(wall_clock(long))
    monkeypatch.setattr(
        clocks.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1))
    )
    assert wall_clock(long).unmeasured


def test_time_that_other_programs_had_is_not_in_a_pace(monkeypatch):
    """Of one thread by its own clock; of several, whose every wait is seen to take long, by that of one."""
    model = load(find_model("reference-llama"), "float32", torch.device("cpu"))
    before, walls = torch.get_num_threads(), itertools.count()
    monkeypatch.setattr("workers.loaded.measure_pace.time.perf_counter", lambda: 1.0 * next(walls))
    try:
        torch.set_num_threads(2)
        pace = measure(model, torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert pace.token_seconds * TOKENS < 1.0 and pace.pass_seconds < 0.25


def test_a_model_that_is_slow_is_not_measured_twice(monkeypatch):
    """The second measure, of one thread, is for what takes no time to speak of."""
    model = load(find_model("reference-llama"), "float32", torch.device("cpu"))
    passes, before = [], torch.get_num_threads()
    model.base_model.register_forward_pre_hook(lambda *_: passes.append(torch.get_num_threads()))  # pyright: ignore
    try:
        torch.set_num_threads(2)
        measure(model, torch.device("cpu"))
        assert set(passes) == {1, 2}

        passes.clear()
        monkeypatch.setattr("workers.loaded.measure_pace.LONG_SECONDS", 0.0)
        measure(model, torch.device("cpu"))
        assert set(passes) == {2} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_answers_are_estimated_by_what_their_caches_hold(sweep_file):
    """Of a model with four times the keys, and of cells that keep more, they take longer though nothing is
    computed more."""
    plan = plan_of(
        sweep_file,
        keep_ratios="[0.9, 0.3]",
        prune_after="[8]",
        perplexity=None,
        retrieval="{context_tokens: [240], depths: [0.5], questions: 4}",
    )
    (facts,) = plan.resolved.models.values()
    dense, most, least = plan.grid.cells
    no_computing = Pace(1e-9, 0.0)

    def seconds(kv_heads: int, cell: Cell) -> float:
        wide = replace(facts, kv_heads=kv_heads)
        return retrieval_seconds([cell], Rates.measured(no_computing, wide, cell), 240, 4)

    assert seconds(8, dense) == pytest.approx(4 * seconds(2, dense), rel=1e-3)
    assert seconds(2, most) == pytest.approx(3 * seconds(2, least), rel=1e-2)


NO_PACES = (
    "",
    "[]",
    "{}",
    '{"token_seconds": "x", "pass_seconds": 1}',
    '{"token_seconds": 0, "pass_seconds": 1}',
    '{"token_seconds": NaN, "pass_seconds": 1}',
    '{"token_seconds": 1e305, "pass_seconds": 1}',
    '{"token_seconds": 1' + "0" * 400 + ', "pass_seconds": 1}',
    '{"token_seconds": 1, "pass_seconds": true}',
    '{"token_seconds": 1e-320, "pass_seconds": 0}',
)


@pytest.mark.parametrize("content", NO_PACES)
def test_a_file_that_says_no_pace_is_as_none(content, no_cache, tmp_path):
    facts = find_model("reference-llama")
    remember(PACE, facts, "float32", "cpu", 1)
    assert remembered(facts, "float32", "cpu", 1) == PACE and remembered(facts, "float32", "cpu", 2) is None
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(content)
    assert remembered(facts, "float32", "cpu", 1) is None


@pytest.mark.slow
def test_the_plan_of_a_long_sweep_measures_its_model_and_the_next_one_remembers(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    asked = ("plan", "ucurve", "--set", "models=[reference-llama]")
    done = kvsweep(*asked, "--no-measure", folder=tmp_path, environment=environment)
    assert done.returncode == 0 and "rough, as reference-llama was not measured" in done.stdout
    assert not list(tmp_path.rglob("pace/*.json"))
    done = kvsweep(*asked, folder=tmp_path, environment=environment)
    assert done.returncode == 0 and "rough" not in done.stdout and "workers on this machine" in done.stdout
    (file,) = tmp_path.rglob("pace/*.json")
    pace = json.loads(file.read_text())
    assert 1e-6 < pace["token_seconds"] < 1 and 0 <= pace["pass_seconds"] < 1


def test_units_of_any_model_are_about_half_a_minute_or_three_times_what_their_cells_share(
    sweep_file, monkeypatch
):
    """By nominal rates, from a model that is done in no time to one of which a pass alone takes a minute."""
    plan = plan_of(
        sweep_file,
        keep_ratios="[0.9, 0.8, 0.7, 0.6, 0.5]",
        prune_after="[8, 16]",
        policies="[knorm, h2o, snapkv]",
        perplexity="{window: 64, stride: 64, windows: 24}",
        retrieval="{context_tokens: [240], depths: [0.1, 0.5], questions: 12, schedules: [every_step]}",
    )
    for parameters in (10**5, 10**8, 10**9, 10**10):
        models = {name: replace(facts, parameters=parameters) for name, facts in plan.resolved.models.items()}
        monkeypatch.setattr(
            "pipeline.planning.plan.resolve", lambda *_, m=models: replace(plan.resolved, models=m)
        )
        made = make_plan(plan.spec)
        for unit in made.units:
            facts = made.resolved.models[unit.cells[0].model]
            rates = Rates.nominal(facts, unit.cells[0])
            shared = (64 if unit.task == "perplexity" else 2 * 240) * rates.token
            taken = unit_seconds(unit, rates)
            assert taken == pytest.approx(unit.cost_seconds)
            single = len(unit.cells) == 1
            assert taken <= max(UNIT_SECONDS, 3 * shared) * 1.001 or single, (parameters, unit.task)
        tasks = {unit.task for unit in made.units if unit.cost_seconds > UNIT_SECONDS / 4}
        assert tasks == (set() if parameters == 10**5 else {"perplexity", "retrieval"}), (
            "and not much shorter"
        )


def test_the_last_cells_are_asked_about_as_many_documents_as_they_themselves_allow(sweep_file, monkeypatch):
    """A batch of fewer cells than the others takes more documents in the time of a unit."""
    plan = plan_of(
        sweep_file,
        perplexity=None,
        keep_ratios="[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]",
        policies="[knorm, h2o, snapkv, tova, recent, random, streaming]",
        prune_after="[8, 16, 24]",
        retrieval="{kinds: [needle], context_tokens: [240], depths: [0.5], questions: 40}",
    )
    models = {name: replace(facts, parameters=10**8) for name, facts in plan.resolved.models.items()}
    monkeypatch.setattr("pipeline.planning.plan.resolve", lambda *_: replace(plan.resolved, models=models))
    documents: dict[int, list[int]] = {}
    for unit in make_plan(plan.spec).units:
        documents.setdefault(len(unit.cells), []).append(unit.part.end - unit.part.first)

    assert len(documents) == 2 and {sum(each) for each in documents.values()} >= {40}
    assert max(documents[min(documents)]) > max(documents[max(documents)])


def test_what_this_machine_cannot_hold_is_said_and_never_loaded(sweep_file, no_cache, monkeypatch):
    started = []
    monkeypatch.setattr(clocks.subprocess, "run", lambda command, **_: started.append(command))
    monkeypatch.setattr(clocks, "_this_machine", lambda: Fleet(nodes={"here": Node("here", 2, 0, 2**20, 1)}))
    plan = plan_of(sweep_file)
    long = replace(plan, units=[replace(unit, cost_seconds=100.0) for unit in plan.units])
    found = wall_clock(long)
    assert started == [] and found.without_place == len(long.units)
    assert f"with 1 worker on this machine; rough, as {found.unmeasured[0]}" in str(found)
    assert f"{len(long.units)} units find no place on this machine" in str(found)


@pytest.mark.slow
def test_measuring_imports_nothing_from_the_current_directory(tmp_path, no_cache, monkeypatch):
    """Planning runs none of a user's code: a file named like a library stays where it is."""
    (tmp_path / "torch.py").write_text("from pathlib import Path; Path('was-run').touch(); raise SystemExit")
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    facts = find_model("reference-llama")
    assert clocks._measured(facts, "float32", "cpu") is not None and not (tmp_path / "was-run").exists()


def test_without_a_home_nothing_is_remembered_and_nothing_is_lost(monkeypatch):
    def no_home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("workers.models.pace.cache_folder", no_home)
    facts = find_model("reference-llama")
    remember(PACE, facts, "float32", "cpu", 1)
    assert remembered(facts, "float32", "cpu", 1) is None


def test_too_many_retrieval_units_are_refused_before_they_are_made(sweep_file, monkeypatch):
    monkeypatch.setattr("pipeline.cells.unit_sizes.MAX_UNITS", 0)
    with pytest.raises(
        SweepError,
        match=r"units of work \(12 documents to ask about among them\), .* lower retrieval.questions",
    ):
        plan_of(
            sweep_file, perplexity=None, retrieval="{context_tokens: [240], depths: [0.5], questions: 12}"
        )


@pytest.mark.slow
def test_what_other_programs_take_of_the_processor_is_no_pace_of_the_model(tiny_model_dir):
    """A wait stands for them: before each pass the thread does nothing for a while."""
    model, threads = (
        load(find_model(str(tiny_model_dir)), "float32", torch.device("cpu")),
        torch.get_num_threads(),
    )
    model.base_model.register_forward_pre_hook(lambda *_: time.sleep(0.5))  # pyright: ignore[reportCallIssue]
    try:
        torch.set_num_threads(1)
        assert measure(model, torch.device("cpu")).token_seconds < 0.5 / TOKENS
    finally:
        torch.set_num_threads(threads)
