"""What the charts are drawn from: positions in a window, the saw-tooth, the front, panels of times, retrieval
by depth."""

from __future__ import annotations

import json

import altair as alt
import jsonschema
import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.load import load
from analysis.page.page import contents, render
from analysis.perplexity.window_charts import positions
from tests.support.rows import (
    failure_row,
    generation_row,
    perplexity_row,
    retrieval_row,
    synthetic_run,
    write_run,
)


@pytest.fixture
def charts_of(tmp_path_factory):
    """Tables -> charts by name."""

    def made(**tables):
        shown = contents(load([write_run(str(tmp_path_factory.mktemp("run")), tables)]), 0.01)
        return {chart.name: chart for panels in shown.charts.values() for chart in panels}

    return made


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return contents(load([synthetic_run(str(tmp_path_factory.mktemp("run")))]), 0.01)


def cells(**settings):
    return [perplexity_row(i, policy=policy, **settings) for i in range(3) for policy in ("dense", "knorm")]


def nll_rows(own, dense, **settings):
    """A dense cell and a pruned one with these NLLs per token in each window."""
    rows = [perplexity_row(i, policy="dense", nll=list(values), **settings) for i, values in enumerate(dense)]
    return rows + [perplexity_row(i, nll=list(values), **settings) for i, values in enumerate(own)]


def test_nll_by_position_is_the_mean_over_windows_and_stretches(tmp_path):
    dense = np.zeros((2, 64))
    own = np.repeat([[0.0] * 32 + [1.0] * 32, [0.0] * 32 + [3.0] * 32], 1, axis=0)
    run = load([write_run(str(tmp_path / "run"), {"perplexity": nll_rows(own, dense, window=65)})])
    row = {**perplexity_row(), "policy": "knorm", "keep_ratio": 0.9}
    rows = run.lists([row["cell_id"], row["dense_cell_id"]], "window", "nll")
    found = positions(row, rows)
    assert found is not None and found.height == 32
    assert found["difference"].to_list() == [0.0] * 16 + [2.0] * 16
    assert (
        found["stretch"][0] == "1 to 2" and found["position"][0] == 1.5
    )  # the first token of a window is not scored
    low, high = stats.ttest_1samp([1.0, 3.0], 0).confidence_interval(0.95)
    assert (found["low"][31], found["high"][31]) == (pytest.approx(low), pytest.approx(high))


def test_windows_of_which_the_twin_has_no_tokens_are_left_out(tmp_path):
    rows = nll_rows(np.ones((3, 40)), np.zeros((3, 40)), window=41)
    rows[0]["nll"] = [0.0] * 12
    run = load([write_run(str(tmp_path / "run"), {"perplexity": rows})])
    row = rows[-1]
    found = positions(row, run.lists([row["cell_id"], row["dense_cell_id"]], "window", "nll"))
    assert found is not None and found["windows"].unique().to_list() == [2]


def test_the_saw_tooth_has_the_corners_of_the_events(charts_of):
    rows = cells(window=12, tokens_scored=11)
    for row in rows:
        row |= {
            "event_steps": [8, 10] if row["policy"] == "knorm" else [],
            "event_kept": [6, 5] * (row["policy"] == "knorm"),
        }
    frame = charts_of(perplexity=rows)["saw-1"].points.frame
    assert frame["token"].to_list() == [[0, 8, 8, 10, 10, 11]]
    assert frame["held"].to_list() == [[0, 8, 6, 8, 5, 6]]
    assert frame["retained"].to_list() == ["recent retained 50.0 %"]


def test_rows_of_an_older_schema_have_neither_positions_nor_saw_teeth(charts_of):
    names = charts_of(perplexity=cells())
    assert "ucurve-1-1" in names and not [name for name in names if name.startswith(("position", "saw"))]


def test_the_trade_off_draws_the_front_and_names_the_ideal_corner(shown):
    spec = shown.charts["tradeoff"][0].spec
    values = [layer["data"]["values"] for layer in spec["layer"] if "values" in layer.get("data", {})]
    assert any("ideal" in str(value) for value in values)
    steps = next(layer for layer in spec["layer"] if layer["mark"].get("interpolate") == "step-after")
    front = shown.tables["front"][0]
    assert [point["pruned_high"] for point in steps["data"]["values"]] == front.sort("budget")[
        "pruned_high"
    ].to_list()


def test_charts_write_with_letters_that_the_renderer_s_own_font_has(charts_of):
    """A picture is drawn on machines without any font too: there a sign that vl-convert's own font lacks is
    an empty box."""
    grid = [cells(prune_after=after, keep_ratio=ratio) for after in (32, 64) for ratio in (0.9, 0.5)]
    charts = charts_of(perplexity=[row for rows in grid for row in rows])
    assert {"tradeoff-1", "heatmap-1"} <= charts.keys()
    written = "".join(json.dumps(chart.spec, ensure_ascii=False) for chart in charts.values())
    assert {sign for sign in written if not sign.isascii()} <= set("·–…±×")


def test_policies_stand_side_by_side_only_where_they_share_settings(charts_of):
    assert "beside-1-1" not in charts_of(perplexity=cells())
    two = cells() + [perplexity_row(i, policy="random") for i in range(3)]
    frame = charts_of(perplexity=two)["beside-1-1"].points.frame
    assert frame.select("policy", "place").rows() == [("knorm", 0), ("random", 1)]


def test_heatmap_needs_two_thresholds_and_two_ratios(charts_of):
    rows = cells() + cells(keep_ratio=0.5)
    assert "heatmap-1" not in charts_of(perplexity=rows)
    assert "heatmap-1" in charts_of(perplexity=rows + cells(prune_after=64)[1::2])


def test_times_are_shown_in_their_unit_and_as_per_cent_of_dense(charts_of):
    timed = [generation_row(i, policy="dense", tpot_seconds=0.002) for i in range(6)]
    timed += [generation_row(i, policy="dense", tpot_seconds=0.002, control=True) for i in range(6)]
    timed += [
        generation_row(i, tpot_seconds=0.003, kv_bytes_final=2048, kv_bytes_allocated_final=5500)
        for i in range(6)
    ]
    charts = charts_of(generation=timed, perplexity=cells())
    assert "KV allocated at end" in charts["timed-1-6"].description
    frame = charts["timed-1-1"].points.frame.filter(~pl.col("end"))
    by_measure = {row["measure"]: row for row in frame.iter_rows(named=True)}
    assert by_measure["TPOT"]["value"] == pytest.approx(3.0) and by_measure["TPOT"]["share"] == pytest.approx(
        150.0
    )
    assert by_measure["KV entries at end"]["share"] == pytest.approx(50.0)
    assert by_measure["KV allocated at end"]["share"] == pytest.approx(110.0)
    assert by_measure["PPL"]["share"] == pytest.approx(100.0)  # the perplexity cell of the same settings
    assert by_measure["peak memory"]["share"] is None


def test_bytes_of_older_schemas_are_those_of_the_entries(charts_of):
    older = {"kv_bytes_allocated_peak": None, "kv_bytes_allocated_final": None}
    timed = [generation_row(i, policy=policy, **older) for i in range(6) for policy in ("dense", "knorm")]
    assert "KV entries at end" in charts_of(generation=timed, perplexity=cells())["timed-1-6"].description


def test_a_wrong_protocol_is_named_in_the_title_of_its_charts(charts_of):
    timed = [
        generation_row(i, policy=p, timing_protocol="report_2025")
        for i in range(6)
        for p in ("dense", "knorm")
    ]
    assert "WRONG ON PURPOSE" in charts_of(generation=timed)["timed-1-1"].spec["title"]["text"]


def test_retrieval_is_shown_by_depth_and_length(charts_of):
    rows = [
        retrieval_row(i, policy=p, depth=d, correct=d < 0.5 or i > 0)
        for i in range(4)
        for p in ("dense", "knorm")
        for d in (0.1, 0.9)
    ]
    frame = charts_of(retrieval=rows)["retrieval-1"].points.frame
    found = {(row["series"] == "dense", row["depth"]): row["accuracy"] for row in frame.iter_rows(named=True)}
    assert found == {(True, 0.1): 1.0, (True, 0.9): 0.75, (False, 0.1): 1.0, (False, 0.9): 0.75}


def test_charts_of_one_group_share_their_data_and_no_specification_holds_rows(shown):
    by_points = {}
    for panels in shown.charts.values():
        for chart in panels:
            by_points.setdefault(chart.points.name, []).append(chart.name)
            assert len(chart.json()) < 30_000, chart.name
    assert {"ucurve-1-1", "budget-1-1", "tradeoff-1", "heatmap-1"} <= set(by_points["cells_1"])


@pytest.mark.slow
def test_every_specification_is_valid_vega_lite(shown):
    def refused(spec: dict) -> str | None:
        try:
            alt.LayerChart.from_dict(
                spec | {"config": {}}, validate=True
            )  # altair's schema does not know legend.layout
        except jsonschema.ValidationError as error:
            return error.message
        return None

    specs = {chart.name: chart.spec for panels in shown.charts.values() for chart in panels}
    assert len(specs) > 10 and {name: why for name, spec in specs.items() if (why := refused(spec))} == {}
    for spec in specs.values():
        broken = json.loads(json.dumps(spec).replace('"type": "quantitative"', '"type": "number"'))
        assert broken == spec or refused(broken)


def test_the_data_of_a_chart_is_strict_json_column_by_column(shown):
    for panels in shown.charts.values():
        for chart in panels:
            columns = json.loads(chart.points.json())
            assert len({len(values) for values in columns.values()}) == 1


def test_a_page_that_would_grow_too_large_draws_fewer_groups_and_says_so(tmp_path, monkeypatch):
    rows = [row for model in ("a", "b", "c") for row in cells(model=model)]
    run = load([write_run(str(tmp_path / "run"), {"perplexity": rows})])
    monkeypatch.setattr("analysis.page.charts.MOST_CELLS", 4)
    page = contents(run, 0.01)
    assert [chart.about["model"] for chart in page.charts["ucurve"]] == ["a", "b"]
    assert "1 models and datasets have no charts" in render(page)
    monkeypatch.setattr("analysis.page.charts.MOST_CELLS", 1)
    assert [chart.about["model"] for chart in contents(run, 0.01).charts["ucurve"]] == ["a"]


def test_a_failed_cell_is_a_row_of_the_table_and_counted_as_excluded(tmp_path):
    rows = cells() + [perplexity_row(i, keep_ratio=0.5, tokens_scored_pruned=0) for i in range(3)]
    tables = {
        "perplexity": rows,
        "failures": [failure_row(policy="h2o"), failure_row()],
    }  # the second was completed
    page = contents(load([write_run(str(tmp_path / "run"), tables)]), 0.01)
    listed, excluded = page.tables["cells"][0], page.tables["excluded"][0]
    lost = listed.filter(pl.col("verdict") == "FAILED")
    assert lost.select("policy", "note").rows() == [("h2o", "OutOfMemoryError: tried to allocate 2 GiB")]
    assert dict(excluded.select("verdict", "cells").iter_rows()) == {"FAILED": 1, "NEVER_PRUNED": 1}
    assert "FAILED" not in page.made.perplexity["verdict"].to_list()
