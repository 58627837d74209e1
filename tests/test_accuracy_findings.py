"""What the head of the report says of accuracy, from rows made up for it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analysis.disagreement import beside
from analysis.retrieval_findings import accuracy_findings, least_budget
from tests.rows import asked, perplexity_row, tasks_rows


def said(shown):
    return accuracy_findings(shown.cells, shown.tables["retrieval"][0], shown.tables["tasks"][0])


def held(share, **settings):
    return {"cache_tokens_mean": 500.0 * share, **settings}


def test_the_head_says_which_policies_keep_accuracy_down_to_which_budget(page_of):
    rows = asked(20, 20, 20, **held(0.5, keep_ratio=0.5)) + asked(19, 20, 20, **held(0.2, keep_ratio=0.2))
    rows += asked(4, 20, 20, **held(0.1, keep_ratio=0.1)) + asked(2, 20, 20, **held(0.5, keep_ratio=0.5, policy="random"))
    rows += asked(20, 20, 20, **held(0.3, keep_ratio=0.3, policy="tova")) + asked(context_tokens=64, **held(0.01))
    (sentence,) = said(page_of(retrieval=rows))
    assert sentence == (
        "toy on text, passkey, 5 digits, asked before the prune, 512 tokens: accuracy is not shown to be below dense (100.0 % of "
        "20 questions) for knorm down to 20.0 %, tova down to 30.0 % of the dense cache (least that was tried: 10.0 %); at no "
        "budget: random."
    )


def test_a_budget_below_one_at_which_accuracy_was_lost_is_no_budget_down_to_which_it_is_kept():
    lower = {"p_value": [1.0, 0.01, 0.01], "accuracy_difference": [-0.1, -0.5, 0.5]}
    frame = pl.DataFrame({"budget": [0.1, 0.3, 0.5], **lower})
    assert least_budget(frame) == 0.5
    assert least_budget(frame[1:2]) is None
    assert least_budget(frame[:1].with_columns(p_value=None)) == 0.1


def test_nothing_is_said_of_questions_that_the_dense_cell_does_not_answer(page_of):
    (sentence,) = said(page_of(retrieval=asked(1, 4)))
    assert "nothing can be said, the dense cell answers 40.0 % of the questions" in sentence


def scored(ratio, **settings):
    nll = 200.0 + 100 * float(np.log(ratio))
    return [perplexity_row(i, nll_sum=nll, **settings) for i in range(3)]


DENSE = [perplexity_row(i, policy="dense") for i in range(3)]


@pytest.mark.parametrize(
    ("ratio", "right", "words"),
    [
        (1.01, 2, "PPL sees no harm where retrieval does in 1 of 1 pairs of figures; most: PPL ratio 1.010 [1.010, 1.010], 10"),
        (1.5, 20, "PPL sees harm where retrieval does not in 1 of 1 pairs of figures; most: PPL ratio 1.500 [1.500, 1.500], 100"),
        (1.01, 19, "disagree in none of 1 pairs"),  # five points are within the interval
        (1.5, 2, "disagree in none of 1 pairs"),
    ],
)  # fmt: skip
def test_the_head_names_the_cell_where_perplexity_and_retrieval_disagree(page_of, ratio, right, words):
    shown = page_of(perplexity=DENSE + scored(ratio), retrieval=asked(right, 20, 20))
    (sentence,) = [line for line in said(shown) if "PPL" in line]
    assert words in sentence
    assert ("(knorm, keep_ratio 0.9, no layer skipped, prune_after 32; passkey, 5 digits" in sentence) == ("most" in sentence)


OTHERS = [
    {"keep_ratio": 0.5}, {"prune_after": 64}, {"skip_layers": [0]}, {"protect_recent": 8}, {"policy": "random"},
    {"dataset": "other"}, {"model": "other"}, {"dtype": "float16"}, {"position_mode": "cache_length"},
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_only_cells_of_equal_settings_stand_beside_each_other(page_of, other):
    same = page_of(perplexity=DENSE + scored(1.1), retrieval=asked())
    assert beside(same.cells, same.tables["retrieval"][0])["ratio"].to_list() == pytest.approx([1.1])
    own = {key: value for key, value in other.items() if key in ("dataset", "model", "dtype")}
    dense = [perplexity_row(i, policy="dense", **own) for i in range(3)]
    shown = page_of(perplexity=dense + scored(1.1, **other), retrieval=asked())
    assert beside(shown.cells, shown.tables["retrieval"][0]).is_empty() and not shown.charts["disagreement"]


def test_the_head_says_which_task_lost_most(page_of):
    dense, worse = [1.0] * 40, [0.0] * 20 + [1.0] * 20
    rows = tasks_rows(dense, policy="dense") + tasks_rows(worse) + tasks_rows(dense, keep_ratio=0.95)
    (sentence,) = said(page_of(tasks=rows))
    assert "1 of 2 figures of 1 metrics are shown to be worse than dense; most: quiz, acc -0.500 [" in sentence
    assert "none of 1 figures" in said(page_of(tasks=tasks_rows(dense, policy="dense") + tasks_rows(dense)))[0]
    lower = {"higher_is_better": False}
    assert "none of" in said(page_of(tasks=tasks_rows(dense, policy="dense", **lower) + tasks_rows(worse, **lower)))[0]


def test_where_every_policy_is_lower_at_every_budget_it_says_so(page_of):
    found = said(page_of(retrieval=[*asked(0, 20), *asked(1, 20, keep_ratio=0.5)]))
    assert any("at every budget that was tried, for knorm" in sentence for sentence in found), found
