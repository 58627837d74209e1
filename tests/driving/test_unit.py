"""A unit and a model -> rows in the declared columns; failures of cells and of models are data, not
exceptions."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.schema import CELL_COLUMNS, TASK_COLUMNS
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.loaded.load import load
from workers.loaded.self_check import check
from workers.messages.work import GenerationWork, PerplexityWork, RetrievalWork, UnitCell, WorkUnit
from workers.models.model_files import ModelFacts
from workers.models.positions import Positions
from workers.perplexity.evaluation import evaluate
from workers.policies import eviction
from workers.policies.policy import Policy
from workers.policies.settings import PruneSettings
from workers.texts.questions import Question
from workers.texts.windows import plan_windows
from workers.unit import run_unit
from workers.worker import Worker

CPU = torch.device("cpu")
NOWHERE = ModelFacts(
    "gone", "r", "/nonexistent/model", None, "llama", 3, 512, Positions("rotary", 1.0), (), (), 2, 8, 0, ""
)


def perplexity_unit(cells, rows=3, length=40):
    windows = plan_windows(rows * length, length, length)
    tokens = repetitive_tokens(rows, length).numpy().astype(np.int32)
    work = PerplexityWork(tuple(windows), tokens, (None,) * rows, length)
    named = tuple(UnitCell(f"cell{i}", cell) for i, cell in enumerate(cells))
    return WorkUnit("u", "perplexity", NOWHERE, "cpu", "float32", named, work)


def columns(task):
    return set(TASK_COLUMNS[task]) | {"cell_id"}


def test_perplexity_rows_have_the_declared_columns_and_add_up():
    unit = perplexity_unit([PruneSettings("dense"), PruneSettings("knorm", 0.5, 8, (0,))])
    result = run_unit(unit, tiny_model("llama"), CPU)
    assert len(result.rows) == 6
    assert not result.failures
    for row in result.rows:
        assert set(row) == columns("perplexity")
        assert not set(TASK_COLUMNS["perplexity"]) & set(CELL_COLUMNS)
        assert len(row["nll"]) == row["tokens_scored"] == 39
        assert row["nll_sum"] == pytest.approx(float(row["nll"].sum()), rel=1e-5)
    dense, pruned = result.rows[0], result.rows[3]
    assert (dense["prune_events"], dense["tokens_scored_pruned"], dense["recent_retained"]) == (0, 0, None)
    assert pruned["tokens_scored_pruned"] == 39 - 8
    assert 0 < pruned["recent_retained"] < 1
    assert pruned["cache_tokens_final"][0] == 39 > pruned["cache_tokens_final"][1]


def test_rows_tell_when_the_cache_was_cut_and_to_what():
    """Eight entries are reached by the eighth token, four stay; then one more prune every four tokens."""
    never = [
        PruneSettings("dense"),
        PruneSettings("knorm", 0.5, 99),
        PruneSettings("knorm", 0.5, 8, (0, 1, 2)),
    ]
    result = run_unit(
        perplexity_unit([*never, PruneSettings("knorm", 0.5, 8, (0,))]), tiny_model("llama"), CPU
    )
    events = [(row["event_steps"], row["event_kept"]) for row in result.rows]
    assert events[:9] == [([], [])] * 9
    assert events[9:] == [(list(range(8, 40, 4)), [4] * 8)] * 3
    assert all(len(row["event_steps"]) == row["prune_events"] for row in result.rows)


def test_a_cell_that_cannot_prune_reuses_the_dense_result_bit_for_bit_and_says_so():
    result = run_unit(
        perplexity_unit([PruneSettings("dense"), PruneSettings("knorm", 0.5, 99)]), tiny_model("neox"), CPU
    )
    dense, same = result.rows[0], result.rows[3]
    assert np.array_equal(dense["nll"], same["nll"])
    assert (dense["forward_passes"], same["forward_passes"]) == (1, 0)


def test_a_unit_run_alone_and_with_other_cells_gives_the_same_rows():
    knorm = PruneSettings("knorm", 0.5, 8)
    alone = run_unit(perplexity_unit([knorm]), tiny_model("llama"), CPU).rows
    others = [PruneSettings("random", 0.9, 4), knorm, PruneSettings("dense")]
    together = [
        r for r in run_unit(perplexity_unit(others), tiny_model("llama"), CPU).rows if r["cell_id"] == "cell1"
    ]
    for a, b in zip(alone, together, strict=True):
        assert np.allclose(a["nll"], b["nll"], atol=2e-5)
        assert {k: v for k, v in a.items() if k.startswith(("cache", "prune", "kv"))} == {
            k: v for k, v in b.items() if k.startswith(("cache", "prune", "kv"))
        }


def test_a_failed_cell_leaves_no_rows_and_a_reason(monkeypatch):
    monkeypatch.setitem(
        eviction._OWN, "knorm", Policy(lambda view: (_ for _ in ()).throw(FloatingPointError("NaN here")))
    )
    result = run_unit(
        perplexity_unit([PruneSettings("dense"), PruneSettings("knorm", 0.5, 8)]), tiny_model("neox"), CPU
    )
    assert {row["cell_id"] for row in result.rows} == {"cell0"}
    (failure,) = result.failures
    assert (failure.cell_id, failure.error_type, failure.message) == (
        "cell1",
        "FloatingPointError",
        "NaN here",
    )
    assert "Traceback" in failure.traceback


@pytest.mark.slow
def test_generation_rows_have_the_declared_columns_and_the_same_rounds_for_all():
    cells = (UnitCell("a", PruneSettings("dense")), UnitCell("b", PruneSettings("knorm", 0.5, 8)))
    prompts = tuple(map(tuple, repetitive_tokens(2, 20).tolist()))
    work = GenerationWork(prompts, 5, repeats=3, max_repeats=3, interval_width=0.05, warmup=1, seed=0)
    result = run_unit(
        WorkUnit("u", "generation", NOWHERE, "cpu", "float32", cells, work), tiny_model("neox"), CPU
    )
    assert all(set(row) == columns("generation") for row in result.rows)
    assert sorted((row["cell_id"], row["repeat"]) for row in result.rows) == sorted(
        (c, r) for c in "aab" for r in range(3)
    )
    assert [row["repeat"] for row in result.rows if row["control"]] == [0, 1, 2]
    for row in result.rows:
        assert len(row["output_tokens"]) == row["batch_size"] * row["new_tokens"] == 10
        assert len(row["token_seconds"]) == 4
        assert (row["peak_memory_bytes"] is None) == (row["peak_memory_method"] is None)


def test_retrieval_rows_have_the_declared_columns_and_a_failing_cell_takes_no_other_down(monkeypatch):
    def broken(view):
        raise ZeroDivisionError("no score")

    monkeypatch.setitem(eviction._OWN, "recent", Policy(broken))
    prompt = repetitive_tokens(1, 30)[0].tolist()
    question = Question("passkey", 40, 3, 0, 0.1, 0, prompt, prompt[:10], [1, 2, 3], "123", ((4, 9),))
    cells = tuple(UnitCell(name, PruneSettings(name, 0.5, 8)) for name in ("dense", "recent", "streaming"))
    unit = WorkUnit("u", "retrieval", NOWHERE, "cpu", "float32", cells, RetrievalWork((question,), True))
    result = run_unit(unit, tiny_model("llama"), CPU)
    given = columns("retrieval") - {"correct_text"} | {"own_tokens"}  # what a text says, the driver tells
    assert all(set(row) == given for row in result.rows)
    assert [row["cell_id"] for row in result.rows] == ["dense", "streaming"]
    assert [(failure.cell_id, failure.error_type) for failure in result.failures] == [
        ("recent", "ZeroDivisionError")
    ]


def test_a_model_that_cannot_be_loaded_fails_its_cells_and_the_worker_goes_on():
    worker = Worker(1)
    result = worker.run(perplexity_unit([PruneSettings("dense"), PruneSettings("knorm", 0.5, 8)]))
    assert [failure.cell_id for failure in result.failures] == ["cell0", "cell1"]
    assert {failure.error_type for failure in result.failures} == {"ModelError"}
    assert "gone" in result.failures[0].message
    again = worker.run(dataclasses.replace(perplexity_unit([PruneSettings("dense")]), unit_id="v"))
    assert len(again.failures) == 1


def test_windows_are_halved_when_memory_runs_out_and_no_row_changes(monkeypatch):
    unit = perplexity_unit(
        [PruneSettings("dense"), PruneSettings("knorm", 0.5, 8), PruneSettings("h2o", 0.5, 8)], rows=5
    )
    whole = run_unit(unit, tiny_model("llama"), CPU).rows
    sizes = []

    def tight(model, tokens, *others):
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you"
                " tried ..."
            )
        return evaluate(model, tokens, *others)

    monkeypatch.setattr("workers.perplexity.rows.evaluate", tight)
    parts = run_unit(unit, tiny_model("llama"), CPU).rows
    assert sizes == [5, 3, 2, 2, 1]
    by_key = {(row["cell_id"], row["window_index"]): row for row in parts}
    assert len(by_key) == len(whole) == len(parts)
    for row in whole:
        assert np.allclose(row["nll"], by_key[row["cell_id"], row["window_index"]]["nll"], atol=2e-5)


def test_memory_that_one_window_exceeds_is_the_cells_failure(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("workers.perplexity.rows.evaluate", full)
    with pytest.raises(torch.OutOfMemoryError):
        run_unit(perplexity_unit([PruneSettings("dense")], rows=2), tiny_model("llama"), CPU)


def test_rows_say_how_much_is_rounding_as_the_check_found_it(sweep_file, tmp_path, monkeypatch):
    """All units about a text say the same, whichever comes first; without a check nothing is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.tasks.perplexity.MOST_WINDOWS", 2)
    plan = make_plan(load_spec(str(sweep_file(perplexity="{window: 64, stride: 64, windows: 4}"))))
    units = [work_unit(plan, unit) for unit in plan.units if unit.task == "perplexity"]
    assert len(units) > 1
    found = [
        [(row["rounding_nats"], row["rounding_ppl"]) for row in Worker(1).run(unit).rows]
        for unit in units[::-1]
    ]
    ((nats, ppl),) = {pair for rows in found for pair in rows}
    model = load(units[0].model, "float32", CPU)
    expected = check(model, "x", "float32", torch.from_numpy(units[0].work.tokens.astype(np.int64)))
    assert (nats, ppl) == pytest.approx((expected.rounding_nats, expected.rounding_ppl)) and 0 < nats < 1e-4
    unchecked = run_unit(units[0], model, CPU).rows[0]
    assert (unchecked["rounding_nats"], unchecked["rounding_ppl"]) == (None, None)
