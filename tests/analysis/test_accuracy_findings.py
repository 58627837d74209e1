"""What the head of the report says of accuracy, from rows made up for it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.harness.findings import task_findings
from analysis.retrieval.disagreement import beside
from analysis.retrieval.findings import least_budget, retrieval_findings
from tests.support.rows import asked, perplexity_row, tasks_rows
from tests.support.thinned import thinned


def said(shown):
    return [*retrieval_findings(shown.made), *task_findings(shown.made.harness)]


def held(share, **settings):
    return {"cache_tokens_mean": 500.0 * share, **settings}


def test_the_head_says_which_policies_keep_accuracy_down_to_which_budget(page_of):
    """tova lost three of sixty, which shows neither a loss nor that there is none; its lower budget would be
    kept by itself."""
    rows = asked(60, 60, 60, **held(0.5, keep_ratio=0.5)) + asked(59, 60, 60, **held(0.2, keep_ratio=0.2))
    rows += asked(14, 60, 60, **held(0.1, keep_ratio=0.1)) + asked(
        6, 60, 60, **held(0.5, keep_ratio=0.5, policy="random")
    )
    rows += asked(57, 60, 60, **held(0.3, keep_ratio=0.3, policy="tova")) + asked(
        context_tokens=64, **held(0.01)
    )
    rows += asked(60, 60, 60, **held(0.2, keep_ratio=0.2, policy="tova"))
    (sentence,) = said(page_of(retrieval=rows))
    assert (
        sentence
        == "toy on text, passkey, 5 digits, asked before the prune, 512 tokens: dense answers 100.0 % of 60"
        " questions; shown to lose at most 10 points, each at the 95 % level: knorm down to 20.0 % of the"
        " dense cache (least that was tried: 10.0 %); shown to lose answers, and at the largest budget not"
        " to keep them: random; 60 questions cannot tell: tova."
    )


def test_fifteen_questions_cannot_tell_what_a_careless_rule_would_call_kept(page_of):
    """All right, or one wrong: neither is shown to be below dense, and neither is shown to be within ten
    points of it."""
    rows = asked(15, 15, 15, **held(0.5)) + asked(14, 15, 15, **held(0.5, policy="tova"))
    (sentence,) = said(page_of(retrieval=rows))
    assert sentence.endswith("dense answers 100.0 % of 15 questions; 15 questions cannot tell: knorm, tova.")


def test_policies_are_not_ranked_by_their_figures(page_of):
    """tova keeps the accuracy down to less than knorm does, but no test of the two against each other was
    made."""
    rows = asked(60, 60, 60, **held(0.5, keep_ratio=0.5)) + asked(
        60, 60, 60, **held(0.3, keep_ratio=0.3, policy="tova")
    )
    (sentence,) = said(page_of(retrieval=rows))
    assert "knorm down to 50.0 %, tova down to 30.0 % of the dense cache" in sentence


def test_a_setting_that_keeps_the_accuracy_speaks_for_no_other_of_its_policy(page_of):
    rows = asked(60, 60, 60, **held(0.5, skip_layers=[0])) + asked(20, 60, 60, **held(0.4))
    (sentence,) = said(page_of(retrieval=rows))
    assert "at most 10 points, each at the 95 % level: knorm (layer 0 skipped) down to 50.0 %" in sentence
    assert "not to keep them: knorm." in sentence


def test_one_loss_among_many_cells_is_no_loss_shown(page_of):
    """Six of sixty lost have a p of 0.03; among seven cells of the same questions that is 0.22."""
    rows = [
        row
        for i in range(7)
        for row in asked(54 if i else 55, 60, 60, **held(0.9 - i / 10, keep_ratio=0.9 - i / 10))
    ]
    (sentence,) = said(page_of(retrieval=rows))
    assert "60 questions cannot tell: knorm." in sentence and "shown to lose answers" not in sentence


def test_retrieval_that_dense_does_not_know_is_not_kept(page_of):
    shown = page_of(perplexity=DENSE + scored(1.5), retrieval=asked(0, 0, 60))
    (sentence,) = [line for line in said(shown) if "PPL" in line]
    assert "to disagree in none of 1 pairs" in sentence


def test_a_context_that_was_pruned_once_stands_beside_perplexity_of_its_setting(page_of):
    once = asked(60, 60, 60, schedule="prefill_once", cell_id="once")
    shown = page_of(perplexity=DENSE + scored(1.1), retrieval=once)
    assert beside(shown.made.perplexity, shown.made.retrieval).height == 1


def test_a_budget_below_one_at_which_accuracy_was_lost_is_no_budget_down_to_which_it_is_kept():
    frame = pl.DataFrame(
        {"budget": [0.1, 0.3, 0.5], "lost_at_most": [0.05, 0.3, 0.05], "dense_accuracy": 1.0}
    )
    assert least_budget(frame) == 0.5
    assert least_budget(frame[1:2]) is None
    assert least_budget(frame[:1]) == 0.1
    assert least_budget(frame[:1].with_columns(lost_at_most=None)) is None


def test_nothing_is_said_of_questions_that_the_dense_cell_does_not_answer(page_of):
    (sentence,) = said(page_of(retrieval=asked(1, 4)))
    assert "nothing can be said, the dense cell answers 40.0 % of the questions" in sentence


def scored(ratio, wobble=0.0, **settings):
    nll = 200.0 + 100 * float(np.log(ratio))
    return [perplexity_row(i, nll_sum=nll + (-1) ** i * wobble, **settings) for i in range(4)]


DENSE = [perplexity_row(i, policy="dense") for i in range(4)]


@pytest.mark.parametrize(
    ("ratio", "wobble", "right", "words"),
    [
        (
            1.005,
            0,
            6,
            (
                "at most 2 % where pruned where retrieval is shown to lose in 1 of 1 pairs of figures; most:"
                " PPL ratio"
            ),
        ),
        (1.005, 5, 6, "to disagree in none of 1 pairs"),  # PPL may have risen by far more
        (
            1.5,
            0,
            60,
            "kept in 1 of 1 pairs of figures, each at the 95 % level; most: PPL ratio where pruned 2.250",
        ),
        (1.5, 0, 57, "to disagree in none of 1 pairs"),  # accuracy may have fallen
        (1.005, 0, 57, "to disagree in none of 1 pairs"),  # five points are within the interval
        (1.5, 0, 6, "to disagree in none of 1 pairs"),
    ],
)
def test_the_head_names_the_cell_where_perplexity_and_retrieval_disagree(
    page_of, ratio, wobble, right, words
):
    shown = page_of(perplexity=DENSE + scored(ratio, wobble), retrieval=asked(right, 60, 60))
    (sentence,) = [line for line in said(shown) if "PPL" in line]
    assert words in sentence
    assert ("(knorm, keep_ratio 0.9, no layer skipped, prune_after 32; passkey, 5 digits" in sentence) == (
        "most" in sentence
    )


def test_one_ppl_among_many_pairs_that_is_low_by_chance_is_no_disagreement(page_of):
    """Its own interval stays just within 2 %, and the one that holds for all twelve cells does not."""
    ratios = [0.9 - i / 20 for i in range(12)]
    own = scored(1.0, 0.35, keep_ratio=0.9)
    high = np.exp(stats.ttest_1samp([0.35 / 50, -0.35 / 50] * 2, 0).confidence_interval(0.95).high)
    assert (
        high
        < 1.02
        < np.exp(stats.ttest_1samp([0.35 / 50, -0.35 / 50] * 2, 0).confidence_interval(1 - 0.05 / 12).high)
    )
    rows = own + [row for ratio in ratios[1:] for row in scored(1.5, keep_ratio=ratio)]
    shown = page_of(perplexity=DENSE + rows, retrieval=asked(6, 60, 60))
    assert beside(shown.made.perplexity, shown.made.retrieval).height == 1
    (sentence,) = [line for line in said(shown) if "PPL" in line]
    assert "to disagree in none of 1 pairs" in sentence


def test_one_loss_among_many_pairs_is_no_disagreement(page_of):
    """Eight of sixty lost have a p of 0.008; among ten pairs that is 0.08."""
    ratios = [0.9 - i / 20 for i in range(10)]
    rows = [row for ratio in ratios for row in scored(1.005, keep_ratio=ratio)]
    answers = [row for ratio in ratios for row in asked(52 if ratio == 0.9 else 60, 60, 60, keep_ratio=ratio)]
    (sentence,) = [
        line for line in said(page_of(perplexity=DENSE + rows, retrieval=answers)) if "PPL" in line
    ]
    assert "to disagree in none of 10 pairs" in sentence


OTHERS = [
    {"keep_ratio": 0.5},
    {"prune_after": 64},
    {"skip_layers": [0]},
    {"protect_recent": 8},
    {"policy": "random"},
    {"dataset": "other"},
    {"model": "other"},
    {"dtype": "float16"},
    {"position_mode": "cache_length"},
]


@pytest.mark.parametrize("other", thinned(OTHERS, 3), ids=str)
def test_only_cells_of_equal_settings_stand_beside_each_other(page_of, other):
    same = page_of(perplexity=DENSE + scored(1.1), retrieval=asked())
    assert beside(same.made.perplexity, same.made.retrieval)["ratio"].to_list() == pytest.approx([1.1**2])
    own = {key: value for key, value in other.items() if key in ("dataset", "model", "dtype")}
    dense = [perplexity_row(i, policy="dense", **own) for i in range(3)]
    shown = page_of(perplexity=dense + scored(1.1, **other), retrieval=asked())
    assert beside(shown.made.perplexity, shown.made.retrieval).is_empty() and not shown.charts["disagreement"]


def test_the_head_says_which_task_lost_most(page_of):
    dense, worse = [1.0] * 40, [0.0] * 20 + [1.0] * 20
    rows = tasks_rows(dense, policy="dense") + tasks_rows(worse) + tasks_rows(dense, keep_ratio=0.95)
    (sentence,) = said(page_of(tasks=rows))
    together = "1 of 2 figures of 1 metrics are shown to be worse than dense (all at the 95 % level together)"
    assert f"{together}; most: quiz, acc -0.500 [" in sentence
    assert (
        "none of 1 figures" in said(page_of(tasks=tasks_rows(dense, policy="dense") + tasks_rows(dense)))[0]
    )
    lower = {"higher_is_better": False}
    assert (
        "none of"
        in said(page_of(tasks=tasks_rows(dense, policy="dense", **lower) + tasks_rows(worse, **lower)))[0]
    )


def test_three_documents_show_nothing(page_of):
    rows = tasks_rows([1.0] * 3, policy="dense") + tasks_rows([0.0] * 3)
    assert not [line for line in said(page_of(tasks=rows)) if "worse than dense" in line]


def test_one_task_of_many_that_is_lower_by_chance_is_no_finding(page_of):
    """Five of forty lost: p = 0.02 by itself, which is expected of one among twenty figures."""
    dense, lower = [1.0] * 40, [0.0] * 5 + [1.0] * 35
    assert 0.01 < stats.ttest_rel(lower, dense).pvalue < 0.05
    alone = tasks_rows(dense, policy="dense") + tasks_rows(lower)
    assert "1 of 1 figures" in said(page_of(tasks=alone))[0]
    others = [row for i in range(19) for row in tasks_rows(dense, keep_ratio=0.85 - i / 40)]
    assert "none of 20 figures" in said(page_of(tasks=alone + others))[0]


def test_where_every_policy_is_lower_at_every_budget_it_says_so(page_of):
    found = said(page_of(retrieval=[*asked(0, 20), *asked(1, 20, keep_ratio=0.5)]))
    assert any("and at the largest budget not to keep them: knorm" in sentence for sentence in found), found
