"""A panel put together from marks: what each call draws, in which order, over which rows."""

from __future__ import annotations

import altair as alt
import polars as pl
import pytest

from analysis.draw.marks import Axis, colour, equal
from analysis.draw.panel import COMPARED, KEPT, Panel, Series
from analysis.draw.points import Group
from analysis.draw.specification import Points

FRAME = pl.DataFrame(
    {
        "keep_ratio": [0.9, 0.5, 0.9],
        "value": [1.0, 2.0, 3.0],
        "low": [0.5, None, 2.5],
        "high": [1.5, None, 3.5],
        "kind": ["a", "a", "b"],
        "hollow": [False, False, True],
        "end": [False, False, False],
    }
)
VALUE = Axis("value", "figure", also=("low", "high"))
GROUP = Group(3, "toy · text", "cpu", {"model": "toy"}, FRAME)


@pytest.fixture
def panel():
    return Panel(FRAME, KEPT, VALUE, colour(["a", "b"], "kind", "kind"), Series.of(FRAME, "kind"))


def drawn(panel):
    """The layers as Vega-Lite has them."""
    return panel.chart("new", GROUP, Points("points", FRAME), "words").spec["layer"]


def test_a_chart_in_ten_lines_is_a_whole_one(panel):
    panel = (
        panel.rule(1.0, "dense")
        .band("low", "high", opacity=0.1)
        .line(order="keep_ratio:Q")
        .bars("low", "high")
    )
    panel = panel.among(COMPARED).dots([("kind", "kind"), ("figure", "value", ".3~f")]).holes(FRAME)
    chart = panel.chart(
        "new", GROUP, Points("points", FRAME), "a figure", "of cpu", "", part=2, where={"kind": "a"}
    )

    assert (chart.name, chart.description, chart.about) == ("new-3-2", "a figure", {"model": "toy"})
    assert chart.spec["title"] == {"text": "toy · text", "subtitle": ["of cpu"]}
    assert chart.spec["transform"][0] == {"filter": {"field": "kind", "equal": "a"}}
    assert chart.spec["data"] == {"name": "points"}
    marks = [layer["mark"]["type"] for layer in chart.spec["layer"]]
    assert marks == ["rule", "text", "area", "line", "rule", "point", "point"], "in the order of the calls"
    alt.LayerChart.from_dict(chart.spec | {"config": {}}, validate=True)


def test_all_marks_of_a_panel_have_its_scales_whatever_field_they_show(panel):
    layers = drawn(panel.rule(1.0, "dense").bars("low", "high").dots([]))
    scales = [layer["encoding"]["y"]["scale"] for layer in layers if "y" in layer["encoding"]]
    assert len(scales) == 4 and all(scale == scales[0] for scale in scales)
    low, high = scales[0]["domain"]
    assert low < 0.5 and high > 3.5, "the ends of the intervals fit"


def test_marks_stand_for_the_rows_that_were_chosen_last(panel):
    panel = panel.among(equal("kind", "a"), "datum.value > 1").line().among(COMPARED).dots([])
    line, dots = (layer["transform"] for layer in drawn(panel))
    first = {"filter": {"field": "kind", "equal": "a"}}
    assert line[:2] == [first, {"filter": "datum.value > 1"}]
    assert dots == [{"filter": {"field": "end", "equal": False}}]


def test_intervals_that_may_be_missing_are_left_out_and_no_others(panel):
    known = {"filter": "isValid(datum.low)"}
    some, every, across = drawn(
        panel.bars("low", "high").bars("low", "high", gaps=False).bars("low", "high", across=True)
    )
    assert some["transform"] == [known] and "transform" not in every
    assert {"y", "y2"} < some["encoding"].keys() and "x2" not in some["encoding"]
    assert {"x", "x2"} < across["encoding"].keys() and "y2" not in across["encoding"]


def test_a_series_has_a_line_a_dash_and_a_shape_each(panel):
    line, dots = drawn(panel.line().dots([]))
    assert line["encoding"]["detail"]["field"] == "kind" and line["encoding"]["strokeDash"]["field"] == "dash"
    assert line["transform"] == [{"calculate": "datum.kind", "as": "dash"}]
    assert dots["encoding"]["shape"]["scale"]["domain"] == ["a", "b"]


def test_holes_lie_on_the_hollow_points_alone_in_their_shape(panel):
    (hole,) = drawn(panel.holes(FRAME))
    assert {"filter": {"field": "kind", "equal": "b"}} in hole["transform"]
    assert {"filter": {"field": "hollow", "equal": True}} in hole["transform"]
    assert hole["mark"]["shape"] == "square", "the second series' shape"
    assert drawn(panel.dots([]).holes(FRAME.filter(~pl.col("hollow"))))[1:] == []


def test_a_dense_value_that_is_not_known_has_no_rule(panel):
    assert panel.dense(pl.Series([None], dtype=pl.Float64)).layers == ()
    _, text = panel.dense(pl.Series([None, 2.0])).layers
    assert text.to_dict()["data"]["values"] == [{"at": 2.0, "label": "dense 2"}]


def test_one_ink_colours_marks_without_a_legend():
    dots, line = drawn(Panel(FRAME, KEPT, VALUE, "black").dots([]).line(opacity=None))
    assert dots["mark"]["color"] == line["mark"]["color"] == "black"
    assert "color" not in dots["encoding"] and "opacity" not in line["mark"]
