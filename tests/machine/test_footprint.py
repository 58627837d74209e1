"""One accounting of bytes: batches follow from it alone, and what a plan adds up is what the worker's caches
hold."""

import dataclasses

import pytest
import torch

from pipeline.cells.cell import settings_of
from pipeline.cells.model_size import shape_of as planned_shape
from pipeline.planning.estimates import worker_bytes
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from tests.support.tiny import repetitive_tokens, tiny_model
from workers.cache.prefill import Prefill
from workers.footprint.harness import contexts_at_once, rows_at_once
from workers.footprint.model_shape import shape_of
from workers.footprint.perplexity import Group, cells_at_once, perplexity_bytes, windows_at_once
from workers.footprint.prompts import fork_bytes, questions_at_once, retrieval_bytes
from workers.footprint.shape import AT_ONCE_BYTES, Shape, observation_of
from workers.loaded.load import load
from workers.models.model_files import find_model
from workers.policies.observation import MOST_QUERIES, NOTHING, LastQueries, Mass
from workers.policies.settings import PruneSettings

SMOLLM2 = Shape(30, 9, 3, 64, 576, 1536, 49152, 4)
LARGE = Shape(16, 32, 8, 64, 2048, 8192, 128256, 2)


@pytest.mark.parametrize("name", ["reference-neox", "reference-llama"])
def test_the_plan_and_the_worker_see_one_shape(name, sweep_file):
    plan = make_plan(load_spec(str(sweep_file(models=f"[{name}]"))))
    facts, cell = find_model(name), plan.grid.cells[0]
    assert planned_shape(facts, cell) == shape_of(load(facts, "float32", torch.device("cpu")))


def test_batches_are_sized_by_what_they_take_and_are_never_empty():
    assert [windows_at_once(SMOLLM2, length) for length in (128, 1024, 8192, 32768)] == [16, 16, 2, 1]
    assert [questions_at_once(SMOLLM2, length) for length in (128, 1024, 8192, 32768)] == [16, 13, 1, 1]
    assert [contexts_at_once(LARGE, length) for length in (128, 1024, 8192)] == [16, 16, 2]
    assert rows_at_once(LARGE, 128, 16) == 16 and rows_at_once(LARGE, 100_000, 1) == 1

    first = dataclasses.replace(SMOLLM2, width=2)
    assert questions_at_once(first, 1024) == 16, "half the bytes, more questions"


@pytest.mark.parametrize("in_slots", [True, False])
def test_cells_that_keep_more_are_fewer_at_a_time(in_slots):
    def cells(after: int, windows: int = 16) -> int:
        schedules = [PruneSettings("knorm", 0.9, after).budget.event_schedule(1023)]
        return cells_at_once(
            SMOLLM2, Group.of(schedules, windows, 0, NOTHING, in_slots=in_slots, is_even=not in_slots)
        )

    counts = [cells(after) for after in (16, 64, 256, 900)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 8 * counts[-1] >= 8
    assert cells(256, 4) > 3 * cells(256)


def test_the_plan_grows_with_what_is_asked(sweep_file):
    """Fifteen questions to SmolLM2 about 1,024 tokens took more than planned: forks count twice, and what
    fits goes through."""
    dense = PruneSettings("dense")
    one, many = (retrieval_bytes(SMOLLM2, 1024, count, [dense]) for count in (1, 15))
    assert 9 * one < 15 * many and many <= 1.1 * AT_ONCE_BYTES
    forked = 13 * 1024 * SMOLLM2.cached * (1 + 2 * 17 / 16)
    assert forked < many < 1.2 * forked

    plan = make_plan(load_spec(str(sweep_file())))
    cells = [cell for cell in plan.grid.cells if cell.policy != "dense"]
    facts = plan.resolved.models[cells[0].model]
    h2o = [dataclasses.replace(cell, policy="h2o") for cell in cells]
    own = [dataclasses.replace(cell, policy="module:own") for cell in cells]
    sizes = [worker_bytes(facts, each, 3) for each in (cells, h2o, own)]
    assert sizes == sorted(set(sizes)), (
        "what a policy observes takes memory too, and of a user's own it may be most"
    )
    assert settings_of(cells[0])["window"] == 64


def test_a_users_own_policy_is_planned_as_what_takes_most():
    for observed in (Mass(), LastQueries(), LastQueries(MOST_QUERIES)):
        most = observation_of("module:own")
        assert most.of_entry(SMOLLM2) >= observed.of_entry(SMOLLM2) and most.of_row(
            SMOLLM2
        ) >= observed.of_row(SMOLLM2)
        assert most.of_pass(SMOLLM2, 16, 900) >= observed.of_pass(SMOLLM2, 16, 900) and most.probes


def test_a_fork_holds_what_is_planned_for_it():
    """Keys, values and positions of a pruned cache behind a prompt, with their room, and the mass that h2o
    keeps."""
    model, length = tiny_model("llama"), 200
    shape = shape_of(model)
    prefill = Prefill(model, repetitive_tokens(2, length), {"knorm", "h2o"})
    for settings in (
        PruneSettings("knorm", 0.5, 100, (1,)),
        PruneSettings("h2o", 0.9, 100),
        PruneSettings("dense"),
    ):
        cache = prefill.cache(settings, [0, 1])
        cache.take_rows([0, 1, 0, 1])
        assert (
            cache.bytes_allocated() <= fork_bytes(shape, settings, length, 4) <= 1.2 * cache.bytes_allocated()
        )


def test_one_cell_more_than_fits_makes_no_difference_to_the_plan():
    some = [PruneSettings("knorm", ratio / 100, 512) for ratio in range(50, 54)]
    many = [PruneSettings("knorm", ratio / 1000, 512) for ratio in range(500, 596, 4)]
    few, most = (perplexity_bytes(SMOLLM2, 1024, 16, cells) for cells in (some, many))
    assert most < 1.3 * few and most < 1.3 * AT_ONCE_BYTES
