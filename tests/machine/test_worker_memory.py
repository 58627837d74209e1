"""Nothing outlives its use: caches, models and tensors are gone with the last reference, without the cycle
collector.

What failed is remembered by its words: an error holds its frames, and those hold models and caches.
"""

import dataclasses
import shutil
import weakref

import pytest
import torch

from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from tests.support.leaks import nothing_stays
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache.pruned_cache import PrunedCache
from workers.generation.rounds import timed_rounds
from workers.loaded.load import load
from workers.loaded.self_check import check
from workers.messages.work import Failure, GenerationWork, PerplexityWork, RetrievalWork
from workers.models.model_files import ModelError
from workers.perplexity.evaluation import evaluate
from workers.policies import eviction
from workers.policies.policy import Policy
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import Question
from workers.worker import Worker

PROMPT, CPU = repetitive_tokens(1, 40), torch.device("cpu")
CELLS = [PruneSettings("dense"), PruneSettings("recent", 0.5, 16)]


@pytest.fixture
def alive(monkeypatch):
    """Caches that exist, while ``recent`` fails."""
    found, real = weakref.WeakSet(), PrunedCache.__init__

    def noted(self, *arguments, **options):
        real(self, *arguments, **options)
        found.add(self)

    def fails(view):
        raise ZeroDivisionError("no score")

    monkeypatch.setattr(PrunedCache, "__init__", noted)
    monkeypatch.setitem(eviction._OWN, "recent", Policy(fails))
    return found


def question():
    prompt = PROMPT[0].tolist()
    return Question("passkey", 50, 3, 0, 0.1, 0, prompt, prompt[-10:], [1, 2, 3], "123", ((4, 9),))


@pytest.mark.slow
def test_a_failed_cell_holds_no_cache(alive):
    model = tiny_model("llama")
    work = GenerationWork(
        (tuple(PROMPT[0].tolist()),), 4, repeats=2, max_repeats=2, interval_width=0.5, warmup=0, seed=0
    )
    rounds = timed_rounds(model, PROMPT, CELLS, work)
    outcomes = answers(model, CPU, CELLS, RetrievalWork((question(),), True), 4)
    scored = evaluate(model, PROMPT, CELLS[1:], [0])[1]
    errors = [rounds.failed[1], outcomes[1], scored[0]]
    assert [type(error) for error in errors] == [ZeroDivisionError] * 3
    assert all("in fails" in Failure.of("a", error).traceback for error in errors), (
        "what is recorded still has its frames"
    )
    assert len(alive) == 0


BLOCKS = {
    "perplexity": "{window: 64, stride: 64, windows: 3}",
    "generation": (
        "{prompt_tokens: [40], batch_sizes: [2], new_tokens: 4, repeats: 5, max_repeats: 5, warmup: 0, "
        "policies: [h2o, recent]}"
    ),
    "retrieval": (
        "{kinds: [passkey], context_tokens: [230], depths: [0.5], questions: 2, question_pruned: [true,"
        " false]}"
    ),
}


def units_of(task, sweep_file, policies):
    """Units of one task, as workers are sent them."""
    keys = {"perplexity": None, "policies": policies, task: BLOCKS[task], "keep_ratios": "[0.5]"}
    keys["skip_layers"] = '[[0], "auto:1"]'
    plan = make_plan(load_spec(str(sweep_file(**keys))))
    return [work_unit(plan, unit) for unit in plan.units]


@pytest.mark.parametrize(
    "task", ["perplexity", "retrieval", pytest.param("generation", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_unit_leaves_no_tensor_behind(task, fails, sweep_file, monkeypatch, tmp_path):
    """Prefills, forks, batches of cells, slots, masks, mass and queries, the diagnosis, and what a failed
    cell had."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the self-check runs
    if fails:
        monkeypatch.setitem(eviction._OWN, "recent", Policy(without_score))
    units = units_of(task, sweep_file, "[knorm, recent, h2o, snapkv]")
    worker = Worker(1)
    worker.run(units[0])  # what is made once: rotary tables, kept diagnoses
    with nothing_stays(monkeypatch):
        for unit in units:
            failed = {failure.error_type for failure in worker.run(unit).failures}
            assert failed == ({"ZeroDivisionError"} if fails else set())


def without_score(view):
    raise ZeroDivisionError("no score")


def test_a_worker_has_one_model_at_a_time(sweep_file, monkeypatch, tmp_path, tiny_model_dir):
    """The old one is gone before the next is loaded, and the last with the worker."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    (other / "generation_config.json").write_text('{"max_length": 99}')
    plan = make_plan(load_spec(str(sweep_file(models=f"[{tiny_model_dir}, {other}]"))))
    units = [work_unit(plan, unit) for unit in plan.units]
    assert len({unit.model.revision for unit in units}) == 2
    loaded, before = weakref.WeakSet(), []

    def watched(*arguments):
        before.append(len(loaded))
        model = load(*arguments)
        loaded.add(model)
        return model

    monkeypatch.setattr("workers.worker.load", watched)
    worker = Worker(1)
    with nothing_stays(monkeypatch):
        for unit in [*units, *units]:
            assert not worker.run(unit).failures
        assert len(before) >= 3 and not any(before), "a model was still there when the next one was loaded"
        del worker
        assert len(loaded) == 0


def test_a_model_that_failed_the_check_is_not_held_and_other_texts_are_checked_by_themselves(
    sweep_file, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is remembered of other tests
    models, failing = weakref.WeakSet(), []
    real = check

    def watched(model, name, dtype, tokens=None):
        models.add(model)
        assert tokens is not None
        failing.append(tokens.shape)
        if len(failing) == 1:
            raise ModelError(f"{name} differs")
        return real(model, name, dtype, tokens)

    monkeypatch.setattr("workers.loaded.self_check.check", watched)
    plan = make_plan(load_spec(str(sweep_file())))
    unit, worker = work_unit(plan, plan.units[0]), Worker(1)
    assert isinstance(unit.work, PerplexityWork) and unit.work.checked is not None
    other = dataclasses.replace(unit, work=dataclasses.replace(unit.work, checked=unit.work.checked[::-1]))
    first = worker.run(unit)
    assert {failure.error_type for failure in first.failures} == {"ModelError"}
    assert worker.run(unit).failures and len(failing) == 1, "the same text is not tried again"
    worker.run(other)
    assert len(failing) == 2, "another text is"
    worker._model = None
    assert len(models) == 0


def test_running_out_of_memory_is_no_fault_of_the_architecture(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("workers.loaded.self_check.evaluate", full)
    with pytest.raises(torch.OutOfMemoryError):
        check(tiny_model("llama", "sdpa"), "x", "float32")
