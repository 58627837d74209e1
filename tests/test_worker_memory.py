"""What failed is remembered by its words: an error holds its frames, and those hold models and caches."""

import dataclasses
import gc
import weakref

import pytest
import torch

from pipeline.plan import make_plan
from pipeline.spec import load_spec
from pipeline.unit_inputs import work_unit
from tests.tiny import repetitive_tokens, tiny_model
from workers import eviction
from workers.answers import answers
from workers.eviction import Policy
from workers.model_files import ModelError
from workers.perplexity import evaluate
from workers.pruned_cache import PrunedCache
from workers.retrieval import Question
from workers.rounds import timed_rounds
from workers.self_check import check
from workers.settings import PruneSettings
from workers.work import Failure, GenerationWork, RetrievalWork
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
    work = GenerationWork((tuple(PROMPT[0].tolist()),), 4, repeats=2, max_repeats=2, interval_width=0.5, warmup=0, seed=0)
    rounds = timed_rounds(model, PROMPT, CELLS, work)
    outcomes = answers(model, CPU, CELLS, RetrievalWork((question(),), True), 4)
    scored = evaluate(model, PROMPT, CELLS[1:], [0])[1]
    errors = [rounds.failed[1], outcomes[1], scored[0]]
    assert [type(error) for error in errors] == [ZeroDivisionError] * 3
    assert all("in fails" in Failure.of("a", error).traceback for error in errors), "what is recorded still has its frames"
    gc.collect()
    assert len(alive) == 0


def test_a_model_that_failed_the_check_is_not_held_and_other_texts_are_checked_by_themselves(sweep_file, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is remembered of other tests
    models, failing = weakref.WeakSet(), []
    real = check

    def watched(model, name, dtype, tokens=None):
        models.add(model)
        failing.append(tokens.shape)
        if len(failing) == 1:
            raise ModelError(f"{name} differs")
        return real(model, name, dtype, tokens)

    monkeypatch.setattr("workers.self_check.check", watched)
    plan = make_plan(load_spec(str(sweep_file())))
    unit, worker = work_unit(plan, plan.units[0]), Worker(1)
    other = dataclasses.replace(unit, work=dataclasses.replace(unit.work, checked=unit.work.checked[::-1]))
    first = worker.run(unit)
    assert {failure.error_type for failure in first.failures} == {"ModelError"}
    assert worker.run(unit).failures and len(failing) == 1, "the same text is not tried again"
    worker.run(other)
    assert len(failing) == 2, "another text is"
    worker._model = None
    gc.collect()
    assert len(models) == 0


def test_running_out_of_memory_is_no_fault_of_the_architecture(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("workers.self_check.evaluate", full)
    with pytest.raises(torch.OutOfMemoryError):
        check(tiny_model("llama", "sdpa"), "x", "float32")
