"""The realised budget that a plan prints is the one that the run then has."""

from dataclasses import replace

import pytest
import torch

from pipeline.cells.cell import settings_of
from pipeline.planning.cell_reach import never_prunes, planned_budget
from pipeline.planning.grid import make_grid
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import prune_settings
from pipeline.tasks.generation import prunes_while_decoding
from tests.support.thinned import thinned
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.generation.decoding import generate
from workers.machine.clock import Clock
from workers.messages.work import RetrievalWork
from workers.perplexity.evaluation import evaluate
from workers.policies.settings import PruneSettings
from workers.retrieval.answers import answers
from workers.texts.questions import Question

CPU = torch.device("cpu")
GENERATION = "{prompt_tokens: [40], new_tokens: 16, repeats: 5}"
RETRIEVAL = "{kinds: [needle], context_tokens: [200], digits: [5], question_pruned: [true], questions: 1}"


@pytest.fixture
def cells(sweep_file):
    """(task, schedule, ratio, threshold) -> the planned cell."""
    sweep = sweep_file(
        generation=GENERATION,
        retrieval=RETRIEVAL,
        keep_ratios="[0.9, 0.5]",
        prune_after="[16, 44]",
        schedules="[every_step, prefill_once, constant]",
    )
    plan = make_plan(load_spec(str(sweep)))
    found = make_grid(plan.spec, plan.resolved.targets).cells
    return {(cell.task, cell.schedule, cell.keep_ratio, cell.prune_after): cell for cell in found}


@pytest.mark.parametrize("ratio", thinned([0.5, 0.9], 1))
@pytest.mark.parametrize("after", [16, 44])
@pytest.mark.parametrize("schedule", ["every_step", "prefill_once", "constant"])
def test_of_a_prompt_that_goes_through_in_one_pass(cells, ratio, after, schedule):
    model, dense = tiny_model("neox"), PruneSettings("dense")
    cell = cells["generation", schedule, ratio, after]
    runs = [
        generate(model, repetitive_tokens(1, 40), each, 16, Clock(CPU))
        for each in (prune_settings(cell), dense)
    ]
    found = planned_budget(cell)
    assert found.events == runs[0].prune_events
    silent = (
        schedule == "every_step" and not runs[0].prune_steps and not never_prunes(cell, settings_of(cell))
    )
    assert prunes_while_decoding(cell) == (not silent)
    assert found.share == pytest.approx(runs[0].kv_bytes_step_mean / runs[1].kv_bytes_step_mean)

    cell = cells["retrieval", schedule, ratio, after]
    prompt = repetitive_tokens(1, 200)[0].tolist()
    question = Question(
        "needle", 200, 5, 0, 0.5, 0, prompt[:-20], prompt[-20:], [1, 2, 3, 4, 5], "12345", ((4, 9),)
    )
    rows, full = (
        rows[0]
        for rows in answers(model, CPU, [prune_settings(cell), dense], RetrievalWork((question,), True), 4)
    )
    assert planned_budget(cell).events == rows["prune_events"]
    assert planned_budget(cell).share == pytest.approx(rows["cache_tokens_mean"] / full["cache_tokens_mean"])

    rows, full = (
        rows[0]
        for rows in answers(model, CPU, [prune_settings(cell), dense], RetrievalWork((question,), False), 4)
    )
    share = rows["cache_tokens_mean"] / full["cache_tokens_mean"]
    assert planned_budget(cell).share == pytest.approx(share, abs=20 / 200), (
        "the question's own tokens are kept out"
    )


@pytest.mark.parametrize("schedule", ["every_step", "constant"])
@pytest.mark.parametrize("ratio", thinned([0.5, 0.9], 1))
def test_of_perplexity_and_with_layers_that_are_skipped(cells, ratio, schedule):
    model, cell = tiny_model("neox"), replace(cells["perplexity", schedule, ratio, 16], skip_layers=(0,))
    dense, (found,) = evaluate(model, repetitive_tokens(1, 64), [prune_settings(cell)], [0])
    planned = planned_budget(cell)
    assert planned.events == found.validity.prune_events
    assert planned.over_layers(3, 1) == pytest.approx(found.entries_mean() / dense.entries_mean())
