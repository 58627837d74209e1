"""Figures that cannot be, edited into rows: told by name, counted as excluded, and in no chart, aggregate,
finding or claim."""

from __future__ import annotations

import polars as pl
import pytest

from analysis.audit.claim_evidence import evidences
from analysis.audit.claims import audit
from analysis.harness.findings import task_findings
from analysis.load import load
from analysis.page.findings import findings
from analysis.page.page import contents, render
from analysis.retrieval.findings import retrieval_findings
from analysis.tables import Tables
from analysis.verdicts import IMPOSSIBLE, WARNED, WHY_EXCLUDED
from pipeline.driving.run_sweep import DONE
from tests.harness.local_tasks import write_tasks
from tests.support.command import run_inline
from tests.support.rows import (
    asked,
    charts_of,
    generation_row,
    one,
    perplexity_row,
    retrieval_row,
    synthetic_run,
    tasks_rows,
    write_run,
)
from tests.support.thinned import thinned

NAN = float("nan")


@pytest.fixture
def page_of(tmp_path_factory):
    """Tables -> the page's contents."""
    return lambda **tables: contents(load([write_run(str(tmp_path_factory.mktemp("run")), tables)]), 0.01)


def scored(of: str = "knorm", **edit):
    """Three windows of a dense cell, of knorm at 0.9 and of knorm at 0.5, one window of one of them
    edited."""
    rows = [perplexity_row(i, policy="dense", nll=[2.0] * 100) for i in range(3)]
    rows += [
        perplexity_row(i, keep_ratio=ratio, nll=[2.0 + ratio / 4] * 100)
        for ratio in (0.9, 0.5)
        for i in range(3)
    ]
    next(row for row in rows if row["policy"] == of and row["window_index"] == 1).update(edit)
    return rows


EDITS = {
    "nll_sum -500": {"nll_sum": -500.0},
    "nll_sum 120": {"nll_sum": 120.0},
    "nll of a token -3": {"nll": [-3.0, *[2.29] * 99]},
    "nll of 99 tokens for 100 tokens_scored": {"nll": [2.0] * 99},
    "tokens_scored 0": {"tokens_scored": 0},
    "tokens_scored -5": {"tokens_scored": -5},
    "tokens_correct -1": {"tokens_correct": -1},
    "tokens_correct 101 of 100 tokens_scored": {"tokens_correct": 101},
    "tokens_scored_pruned -1": {"tokens_scored_pruned": -1},
    "tokens_scored_pruned 101": {"tokens_scored_pruned": 101},
    "tokens_agreed 101": {"tokens_agreed": 101},
    "tokens_agreed -1": {"tokens_agreed": -1},
    "cache_tokens_mean 0": {"cache_tokens_mean": 0.0},
    "cache_tokens_mean 51.0 above the dense twin's 50.0": {"cache_tokens_mean": 51.0},
    "cache_tokens_mean 102.0 of 101 window": {"cache_tokens_mean": 102.0},
    "prune_events -1": {"prune_events": -1},
    "recent_retained 1.5": {"recent_retained": 1.5},
    "sink_retained -0.5": {"sink_retained": -0.5},
    "score_ties 2": {"score_ties": 2.0},
    "kl_sum -3": {"kl_sum": -3.0},
    "kv_bytes_mean -1": {"kv_bytes_mean": -1.0},
    "kv_bytes_peak -1": {"kv_bytes_peak": -1},
    "document -5": {"document": -5},
    "window_start -1": {"window_start": -1},
    "a window at 108 of document no number and its dense twin's at 101 of no number": {"window_start": 108},
    "a window at 101 of document 3 and its dense twin's at 101 of no number": {"document": 3},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("figure", thinned(EDITS, 7))
def test_a_window_with_such_a_figure_spoils_its_cell_and_no_other(page_of, figure):
    cells = page_of(perplexity=scored(**EDITS[figure])).made.perplexity
    assert cells.sort("keep_ratio")["verdict"].to_list() == ["VALID", IMPOSSIBLE, "DENSE"]
    spoilt = one(cells, verdict=IMPOSSIBLE)
    assert (
        figure in spoilt["note"]
        and "a figure that cannot be" in spoilt["note"]
        and "(1 of 3 rows)" in spoilt["note"]
    )
    names = (
        "ppl",
        "ratio",
        "ratio_low",
        "p_value",
        "p_holm",
        "budget",
        "kl",
        "share_pruned",
        "kv_bytes_mean",
        "prune_events",
    )
    assert [spoilt[name] for name in names] == [None] * len(names)
    assert (
        one(cells, verdict="VALID")["ratio_low"] is not None and one(cells, verdict="VALID")["kl"] is not None
    )


@pytest.mark.filterwarnings("error")
def test_a_cell_that_scored_nothing_at_all_divides_nothing(page_of):
    rows = [row | {"tokens_scored": 0} if row["policy"] == "knorm" else row for row in scored()]
    asked_nothing = [row | {"answer_tokens": 0} for row in asked(right=4)]
    shown = page_of(perplexity=rows, retrieval=asked_nothing)
    assert set(shown.made.perplexity["verdict"]) == {"DENSE", IMPOSSIBLE}
    assert set(shown.made.retrieval["verdict"]) == {IMPOSSIBLE}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", [1, -1])
def test_a_window_that_is_stored_twice_with_other_figures_is_not_picked_by_chance(page_of, order):
    """A copy that differs by rounding is the same window."""
    rows = scored()
    again = [row | {"nll_sum": 300.0, "nll": None} for row in rows if row["policy"] == "knorm"][:1]
    close = [row | {"nll_sum": 200.1, "nll": None} for row in rows if row["policy"] == "dense"][:1]
    cells = page_of(perplexity=[*rows, *again, *close][::order]).made.perplexity
    spoilt = one(cells, verdict=IMPOSSIBLE)
    assert "and 300.0 of one window" in spoilt["note"] and spoilt["ppl"] is None
    assert cells.sort("keep_ratio")["verdict"].to_list()[-1] == "DENSE"


def test_windows_that_begin_at_one_token_are_one_window_and_no_two(page_of):
    """However they are numbered: as of a file that was read twice, or an edited part."""
    cells = page_of(perplexity=scored(window_start=0)).made.perplexity
    spoilt = one(cells, verdict=IMPOSSIBLE)
    assert "2 windows that begin at one token, 0 (2 of 3 rows)" in spoilt["note"]


@pytest.mark.parametrize("ratio", [0.0, -0.5, 50.0])
def test_a_keep_ratio_that_cannot_be(page_of, ratio):
    rows = scored() + [perplexity_row(i, keep_ratio=ratio) for i in range(3)]
    spoilt = one(page_of(perplexity=rows).made.perplexity, keep_ratio=ratio)
    assert spoilt["verdict"] == IMPOSSIBLE and f"keep_ratio {ratio}" in spoilt["note"]


def test_it_leads_no_finding_recommendation_aggregate_or_chart_and_is_counted(page_of):
    shown = page_of(perplexity=scored(nll_sum=-500.0))
    frames = {name: frame for name, (frame, _) in shown.tables.items()}
    assert "of 2 cells" not in (said := " ".join(findings(shown.made))) and "keep_ratio 0.5" in said
    assert frames["front"]["keep_ratio"].to_list() == [0.5]
    assert (
        one(frames["by-ratio"], keep_ratio=0.9)["valid"] == 0
        and one(frames["by-ratio"], keep_ratio=0.9)["ratio_min"] is None
    )
    drawn = [
        frame for chart in charts_of(shown).values() if "keep_ratio" in (frame := chart.points.frame).columns
    ]
    assert len(drawn) > 5 and not any(0.9 in frame["keep_ratio"] for frame in drawn)
    (counted,) = frames["excluded"].rows()
    assert counted == ("perplexity", IMPOSSIBLE, 1, WHY_EXCLUDED[IMPOSSIBLE])
    text = render(shown)
    assert (
        "in no aggregate: 1 IMPOSSIBLE" in text
        and "the table&#39;s note names it): 1 cell of perplexity." in text
    )


def test_pairs_with_an_impossible_dense_cell_are_impossible_and_say_so(page_of):
    shown = page_of(perplexity=scored(of="dense", nll_sum=-500.0, nll=None))
    assert shown.made.perplexity["verdict"].to_list() == [IMPOSSIBLE] * 3
    own = [note.split(" (")[0] for note in shown.made.perplexity.sort("keep_ratio")["note"]]
    assert own[0] == own[1] == "a figure that cannot be: in the dense twin, nll_sum -500.0"
    assert own[2].startswith("a figure that cannot be: nll_sum -500.0")
    assert findings(shown.made) == [] and not any(shown.charts.values())
    assert shown.tables["recommended"][0]["advice"].to_list() == [
        "no recommendation: no cell that pruned, controls apart, has an interval"
    ]


def test_no_claim_rests_on_it(tmp_path):
    numbers = [(row, 3 * again + row["window_index"]) for again in range(3) for row in scored()]
    rows = [row | {"window_index": number, "window_start": 101 * number} for row, number in numbers]
    rows += [
        retrieval_row(i, keep_ratio=0.7, policy=policy) for i in range(60) for policy in ("dense", "knorm")
    ]
    tables = {"perplexity": rows, "retrieval": [row for row in rows if "answer_nll" in row]}
    tables["perplexity"] = [row for row in rows if "nll_sum" in row]
    sound = audited(str(tmp_path / "sound"), tables)
    for row in tables["perplexity"]:
        row["nll_sum"] = -row["nll_sum"]
    tables["retrieval"][-1]["answer_nll"] = -1.0
    spoilt = audited(str(tmp_path / "spoilt"), tables)
    changed = {number for number, verdict in sound.items() if verdict != "not testable here"}
    assert {2, 11} <= changed and {spoilt[number] for number in changed} == {"not testable here"}


def audited(directory, tables):
    """Verdicts of the audit by number of the claim."""
    (evidence,) = evidences(Tables.of(load([write_run(directory, tables)])))
    return dict(audit(evidence).select("number", "verdict").iter_rows())


@pytest.mark.parametrize(
    ("edit", "verdict"),
    [
        ({"nll": [-1e-6, *[222.5 / 99] * 99]}, "VALID"),  # a token of probability 1
        ({"nll_sum": 222.5 * (1 + 1e-5)}, "VALID"),  # the list is float32
        ({"kl_sum": -1e-5, "recent_retained": 1 + 1e-9}, "VALID"),
        ({"nll_sum": NAN}, "NOT_FINITE"),
        ({"nll_sum": float("-inf")}, "NOT_FINITE"),
        ({"nll_sum": None}, "NOT_FINITE"),
        ({"kl_sum": NAN, "recent_retained": NAN, "cache_tokens_mean": float("inf")}, "VALID"),
        (
            dict.fromkeys(["nll", "kl_sum", "tokens_agreed", "cache_tokens_mean", "score_ties", "document"]),
            "VALID",
        ),
    ],
)
def test_rounding_missing_columns_and_what_is_no_number_are_something_else(page_of, edit, verdict):
    assert one(page_of(perplexity=scored(**edit)).made.perplexity, keep_ratio=0.9)["verdict"] == verdict


def timed(of: str = "knorm", **edit):
    rows = [generation_row(i, policy="dense", control=again) for i in range(6) for again in (False, True)]
    rows += [
        generation_row(i, keep_ratio=ratio, tpot_seconds=0.001) for ratio in (0.9, 0.5) for i in range(6)
    ]
    next(row for row in rows if row["policy"] == of and row["repeat"] == 2).update(edit)
    return rows


@pytest.mark.parametrize(
    "edit",
    [
        {"ttft_seconds": -0.01},
        {"tpot_seconds": 0.0},
        {"total_seconds": -1.0},
        {"tokens_per_second": 0.0},
        {"prompt_prune_seconds": -1.0},
        {"kv_bytes_final": -1},
        {"kv_bytes_prompt": -4},
        {"weight_bytes": -1},
        {"peak_memory_bytes": -1},
        {"text_repetition": 1.5},
    ],
)
def test_times_and_bytes_that_cannot_be(page_of, edit):
    (name,) = edit
    shown = page_of(generation=timed(**edit))
    speeds = shown.made.generation
    spoilt = one(speeds, keep_ratio=0.9)
    assert spoilt["timing"] == IMPOSSIBLE and name in spoilt["note"] and spoilt["tpot_ratio"] is None
    assert one(speeds, keep_ratio=0.5)["timing"] == one(speeds, policy="dense")["timing"] == "STABLE"
    assert "differs from dense in 1 of 1 cells" in findings(shown.made)[0]
    drawn = [
        chart.points.frame
        for chart in charts_of(shown).values()
        if chart.name.startswith(("timed", "normalised"))
    ]
    assert not any(frame.filter(pl.col("keep_ratio") == 0.9)["value"].drop_nulls().len() for frame in drawn)
    (rounds,) = shown.charts["rounds"]
    assert set(rounds.points.frame["cell"]) == {"dense", "knorm 0.5, after 32"}
    excluded = shown.tables["excluded"][0].select("task", "verdict", "cells").rows()
    assert excluded == [("generation", IMPOSSIBLE, 1)] and "1 cell of generation." in render(shown)


def test_an_impossible_dense_time_spoils_what_took_turns_with_it(page_of):
    shown = page_of(generation=timed(of="dense", tpot_seconds=-1.0))
    assert shown.made.generation["timing"].to_list() == [IMPOSSIBLE] * 3 and not any(shown.charts.values())
    beside = one(shown.made.generation, keep_ratio=0.5)["note"]
    assert beside == "a figure that cannot be, in the dense cell: tpot_seconds -1.0"


@pytest.mark.parametrize(
    "edit",
    [
        {"answer_nll": -1.0},
        {"answer_tokens": 0},
        {"answer_position_retained": 1.2},
        {"cache_tokens_mean": 501.0},
        {"cache_tokens_mean": 0.0},
        {"prune_events": -1},
    ],
)
def test_answers_that_cannot_be(page_of, edit):
    (name,) = edit
    rows = asked(right=4)
    rows[-1].update(edit)
    shown = page_of(retrieval=rows)
    answers = shown.tables["retrieval"][0]
    spoilt = one(answers, policy="knorm")
    assert (
        spoilt["verdict"] == IMPOSSIBLE
        and name in spoilt["note"]
        and spoilt["accuracy"] is spoilt["p_value"] is None
    )
    assert one(answers, policy="dense")["verdict"] == "DENSE"
    assert retrieval_findings(shown.made) == []
    (depths,) = (chart.points.frame for chart in shown.charts["retrieval"])
    assert depths["series"].to_list() == ["dense"]
    assert not shown.charts["outcomes"] and not shown.charts["accuracy"]
    rows = asked(right=4)
    rows[0].update(edit if name != "cache_tokens_mean" else {name: -1.0})
    spoilt = one(page_of(retrieval=rows).tables["retrieval"][0], policy="knorm")
    assert spoilt["verdict"] == IMPOSSIBLE and "in the dense twin" in spoilt["note"]


def harness(of: str = "knorm", document: int | None = None, **edit):
    rows = tasks_rows([1.0, 0.0] * 20, policy="dense") + tasks_rows([1.0, 0.0, 0.0, 0.0] * 10)
    next(row for row in rows if row["policy"] == of and row["doc_index"] == document).update(edit)
    return rows


@pytest.mark.parametrize(
    ("document", "edit"),
    [
        (None, {"value": 1.5}),
        (3, {"value": -0.5}),
        (None, {"documents": -1}),
        (None, {"stderr": -0.1}),
        (None, {"tokens_predicted_pruned": 101}),
        (None, {"tokens_predicted": -1}),
    ],
)
@pytest.mark.parametrize("of", ["knorm", "dense"])
def test_scores_that_cannot_be(page_of, document, edit, of):
    shown = page_of(tasks=harness(of, document, **edit))
    scores = shown.tables["tasks"][0]
    spoilt = one(scores, policy="knorm")
    assert spoilt["verdict"] == IMPOSSIBLE and spoilt["value"] is spoilt["difference"] is None
    assert ("in the dense twin" in spoilt["note"]) == (of == "dense")
    assert one(scores, policy="dense")["verdict"] == (IMPOSSIBLE if of == "dense" else "DENSE")
    assert not shown.charts["tasks"] and task_findings(shown.made.harness) == []


def test_a_metric_that_is_no_share_may_be_above_one(page_of):
    rows = [
        row
        for policy in ("dense", "knorm")
        for row in tasks_rows([63.0, 71.0], policy=policy, metric="f1", stderr=1.0)
    ]
    assert one(page_of(tasks=rows).tables["tasks"][0], policy="knorm")["verdict"] == "VALID"


def test_every_verdict_that_is_excluded_is_warned_of_by_one_source():
    assert set(WARNED) == set(WHY_EXCLUDED) - {IMPOSSIBLE, "FAILED"}  # those two are counted for every task


def verdicts(directory):
    """All verdicts and timings of a run, by task."""
    shown = contents(load([directory]), 0.01)
    made = shown.made
    frames = {"perplexity": made.perplexity, "retrieval": made.retrieval, "tasks": made.harness}
    return {task: set(frame["verdict"]) for task, frame in frames.items()} | {
        "generation": set(made.generation["timing"])
    }


def test_rows_that_are_made_soundly_have_none(tmp_path):
    found = verdicts(synthetic_run(str(tmp_path / "run")))
    assert all(found.values()) and IMPOSSIBLE not in set.union(*found.values())


@pytest.mark.slow
def test_a_run_of_the_real_pipeline_has_none(sweep_file, out):
    sweep = sweep_file(
        policies="[knorm, random, h2o, snapkv]",
        skip_layers="[[], [0]]",
        keep_ratios="[0.5]",
        perplexity="{window: 64, stride: 32, windows: 3}",
        generation=(
            "{prompt_tokens: [32], new_tokens: 4, repeats: 5, max_repeats: 5, warmup: 1, policies: [knorm], "
            "protocol: [interleaved, report_2025]}"
        ),
        retrieval=(
            "{kinds: [passkey], context_tokens: [240], depths: [0.5], questions: 2, question_pruned: [true,"
            " false]}"
        ),
    )
    assert run_inline(sweep, out) == DONE
    found = verdicts(str(out))
    assert [task for task, those in found.items() if not those] == ["tasks"]
    assert IMPOSSIBLE not in set.union(*found.values())


@pytest.mark.slow
def test_nor_has_a_run_of_tasks(sweep_file, out, tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "tasks").mkdir()
    folder = write_tasks(tmp_path / "tasks")
    block = f"{{tasks: [kv_choice, kv_text, kv_rolling], include_path: {folder}}}"
    assert (
        run_inline(
            sweep_file(
                perplexity=None, datasets=None, lm_eval=block, position_modes="[absolute, cache_length]"
            ),
            out,
        )
        == DONE
    )
    found = verdicts(str(out))
    assert "VALID" in found["tasks"] and IMPOSSIBLE not in found["tasks"]
