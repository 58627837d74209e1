"""Length, repetition and agreement of generated text."""

from types import SimpleNamespace

import pytest
import torch

from tests.support.tiny import repetitive_tokens, tiny_model
from workers.generation.generated_text import agreement, end_tokens, length, repetition, text_figures
from workers.messages.work import GenerationWork, UnitCell, WorkUnit
from workers.policies.settings import PruneSettings
from workers.unit import run_unit


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ([1, 2, 3], None),
        ([1, 2, 3, 4], 0.0),
        ([1] * 8, 4 / 5),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4], 1 / 6),
        (list(range(20)), 0.0),
    ],
)
def test_repetition_is_the_share_of_four_tokens_in_a_row_that_were_there_before(text, share):
    assert repetition(text) == (share if share is None else pytest.approx(share))


def test_a_text_ends_before_its_first_end_token():
    assert (length([5, 6, 0, 7], {0}), length([5, 6], {0}), length([0], {0, 1}), length([5, 1], ())) == (
        2,
        2,
        0,
        2,
    )


def test_agreement_is_an_exact_prefix():
    assert [agreement([1, 2, 3], other) for other in ([1, 2, 3, 4], [1, 9, 3], [2], [])] == [3, 1, 0, 0]


def test_columns_are_means_over_the_batch_and_what_follows_the_end_does_not_count():
    texts, dense = [[1, 2, 3, 0, 9, 9], [7, 7, 7, 7, 7, 7]], [[1, 2, 3, 0, 8, 8], [7, 7, 1, 1, 1, 1]]
    assert text_figures(texts, dense, {0}) == {
        "text_length": 4.5,
        "text_ended": 0.5,
        "text_repetition": pytest.approx(2 / 3),
        "text_agreement": 2.5,
    }


@pytest.mark.parametrize(("ids", "expected"), [(None, set()), (0, {0}), ([0, 3], {0, 3})])
def test_end_tokens_are_the_models_own(ids, expected):
    assert end_tokens(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ids))) == expected


@pytest.mark.slow
def test_the_dense_cells_text_agrees_with_itself_in_every_round_and_a_pruned_one_need_not():
    cells = (UnitCell("a", PruneSettings("dense")), UnitCell("b", PruneSettings("recent", 0.1, 8)))
    work = GenerationWork((tuple(repetitive_tokens(1, 30)[0].tolist()),), 12, 3, 3, 0.05, 0, 0)
    facts = SimpleNamespace(name="tiny")
    rows = run_unit(
        WorkUnit("u", "generation", facts, "cpu", "float32", cells, work),
        tiny_model("llama"),
        torch.device("cpu"),
    ).rows
    shared = {row["cell_id"]: row["text_agreement"] for row in rows}
    assert shared["a"] == 12 > shared["b"]
    assert len({(row["cell_id"], row["text_length"], row["text_agreement"]) for row in rows}) == 2, (
        "greedy: no round differs"
    )
