"""Retrieval in the report: tables and charts from rows made up for it."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from scipy import stats

from analysis.load import load
from analysis.page.page import contents, render
from analysis.retrieval import charts as retrieval_charts
from analysis.retrieval.tables import kept_accuracy
from analysis.tables import Tables
from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from tests.support.rows import (
    NASTY,
    asked,
    charts_of,
    one,
    perplexity_row,
    retrieval_row,
    tasks_rows,
    write_run,
)

AFTER = {"question_pruned": False}
NEW = [
    "digits",
    "distractors",
    "question_pruned",
    "answer_nll",
    "answer_tokens",
    "cache_tokens_mean",
    "answer_retained_weighted",
    "answer_retained_least",
    "correct_text",
]


def test_each_sort_of_question_is_a_row_of_its_own_beside_its_own_twin(tables_of):
    sorts = [{}, {"kind": "needle"}, {"context_tokens": 256}, {"digits": 7}, {"distractors": 3}, AFTER]
    rows = [row for i, sort in enumerate(sorts) for row in asked(10 - i, 10, **sort)]
    table = tables_of(retrieval=rows).retrieval.filter(pl.col("policy") == "knorm")
    assert sorted(table["right"]) == [5, 6, 7, 8, 9, 10]
    assert table["accuracy_difference"].sort().to_list() == pytest.approx([-0.5, -0.4, -0.3, -0.2, -0.1, 0.0])
    assert one(table, question_pruned=False)["right"] == 5 and one(table, distractors=3)["right"] == 6


def test_the_nll_of_the_answer_is_compared_question_by_question(tables_of):
    rng = np.random.default_rng(4)
    own, twin, tokens = rng.normal(4, 1, 12), rng.normal(3, 1, 12), rng.integers(3, 9, 12)
    rows = [
        retrieval_row(i, policy="dense", answer_nll=twin[i], answer_tokens=int(tokens[i])) for i in range(12)
    ]
    rows += [retrieval_row(i, answer_nll=own[i], answer_tokens=int(tokens[i])) for i in range(12)]
    row = one(tables_of(retrieval=rows[::-1]).retrieval, policy="knorm")
    assert row["answer_nll"] == pytest.approx(own.sum() / tokens.sum())
    assert row["nll_difference"] == pytest.approx((own - twin).sum() / tokens.sum())


@pytest.mark.parametrize(("right", "end", "value"), [(0, "accuracy_low", 0.0), (48, "accuracy_high", 1.0)])
def test_wilsons_interval_of_none_and_of_all_ends_at_the_very_end(tables_of, right, end, value):
    """Floats miss it by 1e-16, and then an interval of all right answers does not hold the truth."""
    row = one(tables_of(retrieval=asked(right, 48, 48)).retrieval, policy="knorm")
    assert str(row[end]) == str(value)


def test_of_questions_too_few_to_show_anything_no_p_is_printed(tables_of):
    """Five questions, all lost, have a p of 2 / 2**5: above 0.05 whatever is measured."""
    found = {n: one(tables_of(retrieval=asked(0, n, n)).retrieval, policy="knorm")["p_value"] for n in (5, 6)}
    assert found == {5: None, 6: pytest.approx(2 / 2**6)}


@pytest.mark.parametrize(
    ("lost", "n", "kept"), [(0, 28, False), (0, 29, True), (1, 45, False), (1, 46, True), (10, 60, False)]
)
def test_an_accuracy_is_kept_only_where_enough_questions_show_it(tables_of, lost, n, kept):
    """The bound by the definition of Clopper and Pearson: the share at which so few losses have a chance of 5
    %."""
    row = one(tables_of(retrieval=asked(n - lost, n, n)).retrieval, policy="knorm")
    assert stats.binom.cdf(lost, n, row["lost_at_most"]) == pytest.approx(0.05)
    assert pl.DataFrame([row]).select(kept_accuracy()).item() is kept


@pytest.mark.parametrize("right", [0, 10, 14, 15, 20])
def test_accuracy_is_tested_on_the_questions_that_only_one_of_the_two_answers(tables_of, right):
    """The twin answers all but the first five: what the cell answers of those is gained."""
    rows = [retrieval_row(i, policy="dense", correct=i >= 5) for i in range(20)]
    rows += [retrieval_row(i, correct=i < right) for i in range(20)]
    row = one(tables_of(retrieval=rows).retrieval, policy="knorm")
    lost, gained = 20 - max(right, 5), min(right, 5)
    wanted = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert row["p_value"] == pytest.approx(wanted) and row["accuracy_difference"] == pytest.approx(
        (right - 15) / 20
    )


def test_the_realised_budget_is_what_was_held_beside_the_twin(tables_of):
    rows = [retrieval_row(i, policy="dense", cache_tokens_mean=400.0) for i in range(2)]
    rows += [
        retrieval_row(0, cache_tokens_mean=100.0),
        retrieval_row(1, cache_tokens_mean=60.0),
        retrieval_row(2),
    ]
    assert one(tables_of(retrieval=rows).retrieval, policy="knorm")["budget"] == pytest.approx(160 / 800)


OUTCOMES = [
    (True, True, 0.0, [], "right"),
    (False, True, 0.04, [], "lost_dropped"),
    (False, True, 0.05, [], "lost_partly"),
    (False, True, 0.94, [], "lost_partly"),
    (False, True, 0.95, [], "lost_held"),
    (False, False, 0.0, [], "untold"),
    (False, None, 0.9, [], "untold"),
    (False, True, None, [], "untold"),
    (False, True, float("nan"), [], "untold"),
    (False, True, 0.51, [0], "lost_partly"),  # what a skipped layer holds can be read
]


@pytest.mark.parametrize(("correct", "dense", "retained", "skipped", "column"), OUTCOMES, ids=str)
def test_a_wrong_answer_is_told_by_how_much_of_its_fact_was_held(
    tables_of, correct, dense, retained, skipped, column
):
    rows = [] if dense is None else [retrieval_row(policy="dense", correct=dense)]
    rows += [retrieval_row(correct=correct, answer_retained_weighted=retained, skip_layers=skipped)]
    row = one(tables_of(retrieval=rows).retrieval, policy="knorm")
    counted = {name: row[name] for name in ("right", "lost_dropped", "lost_partly", "lost_held", "untold")}
    assert counted == {name: int(name == column) for name in counted}


def test_the_table_and_the_charts_show_what_reading_heads_held(page_of):
    shown = page_of(retrieval=asked(5))
    row = one(shown.tables["retrieval"][0], policy="knorm")
    assert (
        row["answer_retained_weighted"],
        row["answer_retained_least"],
        row["answer_retained"],
    ) == pytest.approx((0.4, 0.3, 0.5))
    page = render(shown)
    assert "answer still held, by attention" in page and "in the reading head that holds least" in page
    for name in ("retrieval-1", "accuracy-1", "outcomes-1"):
        points = charts_of(shown)[name].points.frame.filter(pl.col("retained") < 1)
        found = points.select(pl.col("retained", "retained_least", "retained_alike").round(6)).rows()
        assert set(found) == {(0.4, 0.3, 0.5)}, name


def test_answers_that_are_right_as_text_alone_are_counted_where_there_are_any(page_of):
    """Another tokenizer's pieces of the same digits."""
    ids = [retrieval_row(i, correct=i < 4, correct_text=i < 7) for i in range(10)]
    both = [retrieval_row(i, policy="dense", correct=i < 9) for i in range(10)]
    shown = page_of(retrieval=ids + both)
    table = shown.tables["retrieval"][0]
    assert (one(table, policy="knorm")["right"], one(table, policy="knorm")["text_right"]) == (4, 7)
    assert one(table, policy="dense")["text_right"] is None and "right as text" in render(shown)
    assert "right as text" not in render(page_of(retrieval=asked(5)))


def test_a_cell_that_never_pruned_says_so_and_enters_no_aggregate(page_of):
    rows = asked() + asked(prune_events=0, context_tokens=64)
    tables = page_of(
        retrieval=rows, tasks=tasks_rows([1.0], policy="dense") + tasks_rows([1.0], prune_events=0)
    ).tables
    verdicts = tables["retrieval"][0].select("policy", "context_tokens", "verdict").rows()
    assert set(verdicts) == {
        ("dense", 64, "DENSE"),
        ("dense", 512, "DENSE"),
        ("knorm", 64, "NEVER_PRUNED"),
        ("knorm", 512, "VALID"),
    }
    assert one(tables["tasks"][0], policy="knorm")["verdict"] == "NEVER_PRUNED"
    excluded = tables["excluded"][0].select("task", "verdict", "cells").rows()
    assert excluded == [("tasks", "NEVER_PRUNED", 1), ("retrieval", "NEVER_PRUNED", 1)]


def test_rows_of_an_older_schema_are_five_digits_without_distractors_asked_before_the_prune(tmp_path):
    directory = write_run(str(tmp_path / "run"))
    buffer = io.BytesIO()
    pq.write_table(to_arrow("retrieval", asked(5)).drop_columns(NEW), buffer)
    RunStore(directory).put("retrieval/unit-old.parquet", buffer.getvalue())
    shown = contents(load([directory]), 0.01)
    row = one(shown.tables["retrieval"][0], policy="knorm")
    assert (row["digits"], row["distractors"], row["question_pruned"], row["right"]) == (5, 0, True, 5)
    assert [row[name] for name in ("answer_nll", "nll_difference", "budget")] == [None] * 3
    assert (row["answer_retained"], row["answer_retained_weighted"], row["answer_retained_least"]) == (
        0.5,
        None,
        None,
    )
    assert row["untold"] == 5, "what the reading heads held was not recorded"
    page = render(shown)
    assert "NaN" not in page.split("<script>")[0] and "asked before the prune" in page
    assert {"retrieval-1", "outcomes-1"} <= charts_of(shown).keys() and "accuracy-1" not in charts_of(shown)


def test_rows_of_old_and_new_schemas_are_one_group(tmp_path):
    directory = write_run(str(tmp_path / "run"), {"retrieval": asked(5)})
    buffer = io.BytesIO()
    older = [
        retrieval_row(i, correct=False, **extra) for extra in ({}, {"policy": "dense"}) for i in range(10, 20)
    ]
    pq.write_table(to_arrow("retrieval", older).drop_columns(NEW), buffer)
    RunStore(directory).put("retrieval/unit-old.parquet", buffer.getvalue())
    row = one(Tables.of(load([directory])).retrieval, policy="knorm")
    assert (row["questions"], row["right"], row["answer_nll"]) == (20, 5, pytest.approx(0.2))


def held(share, **settings):
    return {"cache_tokens_mean": 500.0 * share, **settings}


def test_squares_of_depth_and_length_tell_accuracy_and_what_was_held(page_of):
    rows = [
        retrieval_row(
            i,
            policy=p,
            depth=d,
            context_tokens=n,
            correct=(p == "dense") or i > d,
            answer_retained_weighted=d,
        )
        for i in range(4)
        for p in ("dense", "knorm")
        for d in (0.1, 0.9)
        for n in (64, 512)
    ]
    chart = charts_of(page_of(retrieval=rows))["retrieval-1"]
    own = chart.points.frame.filter(~pl.col("whole"))
    assert own.select("length", "depth", "accuracy", "retained", "dense_accuracy").rows() == [
        (n, d, 0.75, d, 1.0) for n in ("64", "512") for d in (0.1, 0.9)
    ]
    lists = {param["name"]: param["bind"]["options"] for param in chart.spec["params"] if "bind" in param}
    assert lists == {"shown": ["knorm, prune_after 32, no layer skipped", "dense"], "ratio": ["0.9"]}


def test_the_first_choice_of_squares_is_knorm_at_its_highest_ratio(page_of):
    rows = asked() + asked(policy="h2o") + asked(policy="h2o", keep_ratio=0.95) + asked(keep_ratio=0.1)
    params = charts_of(page_of(retrieval=rows))["retrieval-1"].spec["params"]
    first, second = (param for param in params if "bind" in param)
    assert [name.split(",")[0] for name in first["bind"]["options"]] == ["knorm", "h2o", "dense"]
    assert first["value"].startswith("knorm") and second["value"] == "0.9"  # knorm has no higher one
    assert second["bind"]["options"] == ["0.95", "0.9", "0.1"]


def test_sorts_of_question_have_charts_of_their_own(page_of):
    shown = page_of(retrieval=asked() + asked(kind="needle", digits=7) + asked(**AFTER))
    for name in ("retrieval", "accuracy", "outcomes"):
        subtitles = [chart.spec["title"]["subtitle"][0] for chart in shown.charts[name]]
        assert subtitles == [
            "needle, 7 digits, asked before the prune",
            "passkey, 5 digits, asked before the prune",
            "passkey, 5 digits, asked after the prune",
        ], name


def test_accuracy_is_drawn_against_what_was_held_with_dense_as_a_rule_that_no_choice_hides(page_of):
    rows = (
        asked(8, **held(0.4))
        + asked(6, **held(0.4, policy="random"))
        + asked(9, context_tokens=64, **held(0.5))
    )
    chart = charts_of(page_of(retrieval=rows))["accuracy-1"]
    frame = chart.points.frame
    assert one(frame, end=True, length="512")["policy"] is None
    cells = frame.filter(~pl.col("end"), pl.col("length") == "512").sort("policy")
    assert cells.select("policy", "budget", "accuracy").rows() == [("knorm", 0.4, 0.8), ("random", 0.4, 0.6)]
    assert cells["at"][0] < 0.4 < cells["at"][1]  # side by side, or one would hide the other
    assert chart.spec["params"][1]["bind"]["options"] == ["512", "64"]


def test_a_bar_of_answers_is_whole_and_in_order(page_of):
    rows = asked(4) + [
        retrieval_row(i, policy="random", correct=False, answer_retained_weighted=0.0) for i in range(10)
    ]
    chart = charts_of(page_of(retrieval=rows))["outcomes-1"]
    bars = [
        (row["policy"], row["outcome"], row["count"], row["begin"], row["finish"])
        for row in chart.points.rows()
    ]
    assert sorted(bars) == [
        ("knorm", "right", 4, 0.0, 0.4),
        ("knorm", "wrong, answer partly held", 6, 0.4, 1.0),
        ("random", "wrong, answer dropped", 10, 0.0, 1.0),
    ]
    rows = next(param for param in chart.spec["params"] if param["name"] == "rows")
    assert rows["value"] == ["knorm 0.9", "random 0.9"]


def test_names_from_outside_stand_in_no_expression(page_of):
    names = {"model": NASTY, "dataset": NASTY, "kind": NASTY}
    rows = [retrieval_row(i, policy=p, **names) for i in range(3) for p in ("dense", "knorm", NASTY)]
    scores = [
        row
        for p in ("dense", NASTY)
        for row in tasks_rows([1.0], model=NASTY, policy=p, metric=NASTY, task_name=NASTY)
    ]
    ppl = [
        perplexity_row(i, policy=p, model=NASTY, dataset=NASTY)
        for i in range(3)
        for p in ("dense", "knorm", NASTY)
    ]
    shown = page_of(retrieval=rows, tasks=scores, perplexity=ppl)
    drawn = [
        chart
        for name in ("retrieval", "accuracy", "outcomes", "disagreement", "tasks", "kl")
        for chart in shown.charts[name]
    ]
    assert len(drawn) == 6

    def expressions(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("filter", "calculate", "labelExpr", "test", "expr") and isinstance(value, str):
                    yield value
                yield from expressions(value)
        elif isinstance(node, list):
            for value in node:
                yield from expressions(value)

    for chart in drawn:
        found = list(expressions(chart.spec))
        assert found and not [text for text in found if "alert" in text], chart.name


def test_a_page_that_would_grow_too_large_draws_fewer_sorts_of_question_and_says_so(page_of, monkeypatch):
    monkeypatch.setattr(retrieval_charts, "MOST_POINTS", 3)
    shown = page_of(retrieval=asked() + asked(kind="needle"))
    assert len(shown.charts["retrieval"]) == 1
    assert "1 sorts of question have no charts by depth" in render(shown)
