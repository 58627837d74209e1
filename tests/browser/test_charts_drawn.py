"""The page in a real browser with the network off: charts are drawn, names do no harm, tables sort, nothing
scrolls sideways."""

from __future__ import annotations

import os

import pytest

from analysis.page.charts import SECTIONS
from analysis.report import write_report
from benchmarks.report import write_rows
from tests.browser.columns import column
from tests.support.rows import (
    NASTY,
    failure_row,
    generation_row,
    perplexity_row,
    retrieval_row,
    synthetic_run,
    tasks_rows,
    write_run,
)

pytestmark = pytest.mark.slow

MARKS = ".role-mark.mark-symbol path, .role-mark.mark-rect path"


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    return write_report([synthetic_run(str(tmp_path_factory.mktemp("two")), models=("toy", "other"))])


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    names = {"model": NASTY, "dataset": NASTY, "device_name": NASTY}
    rows = [
        perplexity_row(i, **names, policy=p, nll_sum=200.0 + i + len(p))
        for i in range(3)
        for p in ("dense", "knorm", NASTY)
    ]
    timed = [generation_row(i, **names, policy=p) for i in range(7) for p in ("dense", "knorm")]
    failed = [failure_row(**names, error_type=NASTY, message=NASTY, traceback=NASTY)]
    asked = [
        retrieval_row(i, **names, policy=p, kind=NASTY, context_tokens=n, correct=i > 0)
        for i in range(3)
        for p in ("dense", "knorm", NASTY)
        for n in (64, 512)
    ]
    texts = {"task_name": NASTY, "metric": NASTY, "filter": NASTY}
    scores = [
        row for p in ("dense", "knorm", NASTY) for row in tasks_rows([1.0, 0.0], policy=p, **texts, **names)
    ]
    tables = {
        "perplexity": rows,
        "generation": timed,
        "failures": failed,
        "retrieval": asked,
        "tasks": scores,
    }
    return write_report([write_run(str(tmp_path_factory.mktemp("nasty")), tables, name=NASTY, argv=[NASTY])])


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (360, "dark")])
def test_every_chart_draws_its_points_and_nothing_is_asked_of_the_network(visit, whole, width, scheme):
    page = visit(whole, width, scheme)
    charts = page.locator("div.chart")
    assert charts.count() == page.locator("script.spec").count() > 20
    for index in range(charts.count()):
        chart = charts.nth(index)
        assert chart.locator(MARKS).count() >= 1, chart.get_attribute("id")
        assert chart.locator("svg").bounding_box()["width"] > 250
        assert len(chart.get_attribute("aria-label")) > 40
    for name in SECTIONS:
        assert page.locator(f"#chart-{name} figure").count() >= 1, name
    assert page.trouble == []


def test_bands_lines_and_the_minimum_are_drawn(visit, whole):
    page = visit(whole)
    chart = page.locator("#chart-ucurve-1-1")
    assert chart.locator(".role-mark.mark-area path").count() == 8  # four policies, two settings
    assert all(
        box["height"] > 2
        for box in [area.bounding_box() for area in chart.locator(".role-mark.mark-area path").all()]
    )
    assert chart.locator(".role-mark.mark-symbol path[fill=transparent]").count() == 8


def test_points_of_a_cell_that_never_pruned_are_hollow(visit, whole):
    page = visit(whole)
    holes = "path[fill='var(--bg)']"
    counts = [page.locator(f"#chart-ucurve-1-{number} .role-mark {holes}").count() for number in (1, 2, 3)]
    assert counts == [0, 0, 6]


def shown_policies(page, chart):
    labels = page.locator(f"#{chart} .role-mark.mark-symbol path[aria-label]").evaluate_all(
        "all => all.map(e => e.ariaLabel)"
    )
    return {label.split("policy: ")[1].split(";")[0] for label in labels if "policy: " in label}


def test_a_model_and_a_policy_chosen_once_are_chosen_everywhere(visit, two_models):
    page = visit(two_models)
    assert shown_policies(page, "chart-ucurve-1-1") == {"knorm", "knorm_high", "random", "streaming"}
    axis = page.locator("#chart-ucurve-1-1 .role-axis-label").first.text_content()
    page.locator("select[name=model]").select_option("toy")
    page.locator("select[name=policy]").select_option("random")
    page.wait_for_selector("body[data-charts=drawn]")
    figures = page.locator("figure:not([hidden])")
    assert 0 < figures.count() < page.locator("figure").count()
    assert set(figures.evaluate_all("all => all.map(f => f.dataset.model)")) == {"toy"}
    shown = page.locator("#chart-ucurve figure:not([hidden]) .chart").first.get_attribute("id")
    assert shown_policies(page, shown) == {"random"}
    assert (
        page.locator(f"#{shown} .role-axis-label").first.text_content() == axis
    )  # the axes stay where they were
    assert set(column(page, "table-cells", "model")[1]) == {"toy"}
    assert set(column(page, "table-cells", "policy")[1]) == {"dense", "random"}
    page.locator("select[name=policy]").select_option("")
    page.wait_for_selector("body[data-charts=drawn]")
    assert len(shown_policies(page, shown)) == 4
    assert page.trouble == []


def test_a_click_on_a_point_chooses_its_policy_and_another_lets_it_go(visit, whole):
    page = visit(whole)
    page.locator("#chart-ucurve-1-2").scroll_into_view_if_needed()
    for expected in ("random", ""):
        page.locator("#chart-ucurve-1-2 .mark-symbol path[aria-label*='policy: random']").last.click()
        page.wait_for_selector("body[data-charts=drawn]")
        assert page.locator("select[name=policy]").input_value() == expected


def test_the_saw_tooth_shows_the_cell_that_is_chosen(visit, whole):
    page = visit(whole)
    line = page.locator("#chart-saw-1 .role-mark.mark-line path")
    before = line.get_attribute("d")
    cells = page.locator("#chart-saw-1 option").all_inner_texts()
    page.locator("#chart-saw-1 select").select_option(
        next(name for name in cells if "prune_after 512" in name)
    )
    page.wait_for_function(
        "before => document.querySelector('#chart-saw-1 .mark-line path').getAttribute('d') !== before",
        arg=before,
    )
    assert len(line.get_attribute("d")) > 50


def test_retrieval_shows_the_length_the_policy_and_the_ratio_that_are_chosen(visit, whole):
    page = visit(whole)

    def shown(chart, mark):
        return page.locator(f"#{chart} .role-mark.mark-{mark} path[aria-label]").evaluate_all(
            "all => all.map(e => e.ariaLabel)"
        )

    def changed(chart, mark, list_number, value):
        before = shown(chart, mark)
        page.locator(f"#{chart} select").nth(list_number).select_option(value)
        page.wait_for_timeout(100)
        assert len(before) > 1 and shown(chart, mark) != before

    assert all(
        "context tokens: 512" in label for label in shown("chart-accuracy-1", "symbol") if "policy" in label
    )
    changed("chart-accuracy-1", "symbol", 0, "256")
    assert all(
        "context tokens: 256" in label for label in shown("chart-accuracy-1", "symbol") if "policy" in label
    )
    assert page.locator("#chart-accuracy-1 .mark-text.role-mark text").all_text_contents() == ["dense 100.0%"]
    changed("chart-disagreement-1", "symbol", 0, "256")
    changed("chart-outcomes-1", "rect", 0, "256")
    rows = page.locator("#chart-outcomes-1 .role-axis-label text").all_text_contents()
    assert len(shown("chart-outcomes-1", "rect")) >= 12 and {"knorm 0.9", "streaming 0.3"} < set(rows)
    series = page.locator("#chart-retrieval-1 option").all_inner_texts()
    changed("chart-retrieval-1", "rect", 0, next(name for name in series if name.startswith("streaming")))
    changed("chart-retrieval-1", "rect", 1, "0.3")
    squares = page.locator("#chart-retrieval-1 .role-mark.mark-rect path").count()
    assert squares == 6  # three depths of two lengths
    page.locator("#chart-retrieval-1 select").nth(0).select_option("dense")  # which has no such keep_ratio
    page.wait_for_timeout(100)
    assert page.locator("#chart-retrieval-1 .role-mark.mark-rect path").count() == squares
    page.locator("select[name=policy]").select_option("random")
    page.wait_for_selector("body[data-charts=drawn]")
    assert shown_policies(page, "chart-accuracy-1") == shown_policies(page, "chart-tasks-1") == {"random"}
    assert page.locator("#chart-accuracy-1 .mark-text.role-mark text").count() == 1  # the dense twin stays
    assert page.trouble == []


def test_the_print_preview_cuts_no_chart(visit, whole, tmp_path):
    page = visit(whole)
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1030, "height": 700})  # A4 on its side, without its margins
    boxes = page.locator("div.chart svg").evaluate_all(
        "all => all.map(s => s.getBoundingClientRect().toJSON())"
    )
    frames = page.locator("figure").evaluate_all("all => all.map(s => s.getBoundingClientRect().toJSON())")
    assert len(boxes) == len(frames) > 20
    for box, frame in zip(boxes, frames, strict=True):
        assert (
            frame["right"] <= 1030
            and box["right"] <= frame["right"] + 1
            and box["bottom"] <= frame["bottom"] + 1
        )
        assert frame["height"] < 700  # a figure that is taller than a page would be cut
    assert (
        max(page.locator("table").evaluate_all("all => all.map(t => t.getBoundingClientRect().right)"))
        <= 1031
    )
    assert not page.locator("#choose").is_visible()


def test_a_report_of_a_hundred_thousand_rows_stays_small_and_opens_on_one_model(visit, tmp_path):
    assert write_rows(str(tmp_path / "run"), 100_000) >= 100_000
    file = write_report([str(tmp_path / "run")])
    assert os.path.getsize(file) < 4_000_000
    page = visit(file)
    for chart in page.locator("figure:not([hidden]) div.chart").all():
        assert chart.locator(MARKS).count() >= 1, chart.get_attribute("id")
    assert page.trouble == []


def test_a_report_of_many_charts_opens_on_one_model_and_draws_the_others_when_asked(visit, tmp_path):
    page = visit(write_report([synthetic_run(str(tmp_path / "run"), models=("a", "b", "c"))]))
    assert page.locator("select[name=model]").input_value() == "a"
    figures, drawn = page.locator("figure"), page.locator("figure svg")
    assert 0 < page.locator("figure:not([hidden])").count() == drawn.count() < figures.count()
    page.locator("select[name=model]").select_option("")
    page.wait_for_selector("body[data-charts=drawn]")
    assert drawn.count() == figures.count() == page.locator("figure:not([hidden])").count()
    assert page.trouble == []


def test_colours_follow_the_scheme_without_a_second_drawing(visit, whole):
    seen = set()
    for scheme in ("light", "dark"):
        label = visit(whole, scheme=scheme).locator("#chart-ucurve-1-1 .role-axis-label text").first
        seen.add(label.evaluate("element => getComputedStyle(element).fill"))
    assert len(seen) == 2


@pytest.mark.parametrize("width", [1400, 360])
def test_malicious_names_are_shown_and_do_nothing(visit, nasty, width):
    page = visit(nasty, width)
    assert page.locator("img").count() == 0
    for chart in page.locator("div.chart").all():
        assert chart.locator(MARKS).count() >= 1, chart.get_attribute("id")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#chart-ucurve-1-1").scroll_into_view_if_needed()
    page.locator("#chart-ucurve-1-1 .mark-symbol.role-mark path").first.hover()
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    assert "keep_ratio" in tooltip.inner_text()
    for element in page.locator("summary").all():
        element.click()
    assert "alert(1)" in page.locator("h1").inner_text()
    assert page.trouble == []


def test_the_page_never_scrolls_sideways_on_a_phone_while_tables_do(visit, whole):
    page = visit(whole, 360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = page.locator("div.scroll").all()
    assert any(box.evaluate("e => e.scrollWidth > e.clientWidth") for box in boxes)


def test_a_chart_can_be_saved_with_its_colours_written_in(visit, whole, tmp_path):
    page = visit(whole)
    with page.expect_download() as waiting:
        page.locator("figure button.save").first.click()
    saved = tmp_path / "chart.svg"
    waiting.value.save_as(saved)
    text = saved.read_text()
    assert waiting.value.suggested_filename == "chart-ucurve-1-1.svg"
    assert "<svg" in text
    assert "var(--" not in text
    assert page.trouble == []


def test_own_policies_and_dense_have_colours_of_their_own(visit, tmp_path):
    own = ["mine:first@aa11", "mine:second@bb22"]
    rows = [
        perplexity_row(i, policy=p, keep_ratio=r)
        for i in range(3)
        for p in ("dense", *own)
        for r in (0.9, 0.5)
    ]
    asked = [retrieval_row(i, policy=p) for i in range(3) for p in ("dense", *own)]
    file = write_report([write_run(str(tmp_path / "run"), {"perplexity": rows, "retrieval": asked})])
    for scheme in ("light", "dark"):
        page = visit(file, scheme=scheme)
        dense = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--c-dense')")
        probe = (
            "colour => { const e = document.createElement('i'); e.style.color = colour;"
            " document.body.append(e); "
        )
        dense = page.evaluate(probe + "return getComputedStyle(e).color }", dense)
        found = [
            {policy: fill_of(page, chart, policy) for policy in own}
            for chart in ("ucurve-1-1", "budget-1-1", "accuracy-1")
        ]
        assert found[0] == found[1] == found[2]
        assert len({dense, *found[0].values()}) == 3, scheme
        assert page.trouble == []


def fill_of(page, chart, policy):
    """The colour in which the points of a policy are really filled."""
    points = page.locator(f"#chart-{chart} .role-mark.mark-symbol path[aria-label*='policy: {policy}']")
    (fill,) = set(points.evaluate_all("all => all.map(e => getComputedStyle(e).fill)"))
    return fill
