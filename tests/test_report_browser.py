"""The page in a real browser with the network off: charts are drawn, names do no harm, tables sort, nothing scrolls sideways."""

from __future__ import annotations

import os

import polars as pl
import pytest

from analysis.charts import SECTIONS
from analysis.report import write_report
from benchmarks.report import write_rows
from tests.rows import (
    NASTY,
    failure_row,
    generation_row,
    perplexity_row,
    retrieval_row,
    synthetic_run,
    tasks_rows,
    write_run,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no browser at {CHROMIUM}: install Debian's chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_report([synthetic_run(str(tmp_path_factory.mktemp("run")))])


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    return write_report([synthetic_run(str(tmp_path_factory.mktemp("two")), models=("toy", "other"))])


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    names = {"model": NASTY, "dataset": NASTY, "device_name": NASTY}
    rows = [perplexity_row(i, **names, policy=p, nll_sum=200.0 + i + len(p)) for i in range(3) for p in ("dense", "knorm", NASTY)]
    timed = [generation_row(i, **names, policy=p) for i in range(7) for p in ("dense", "knorm")]
    failed = [failure_row(**names, error_type=NASTY, message=NASTY, traceback=NASTY)]
    asked = [
        retrieval_row(i, **names, policy=p, kind=NASTY, context_tokens=n, correct=i > 0)
        for i in range(3) for p in ("dense", "knorm", NASTY) for n in (64, 512)
    ]  # fmt: skip
    texts = {"task_name": NASTY, "metric": NASTY, "filter": NASTY}
    scores = [row for p in ("dense", "knorm", NASTY) for row in tasks_rows([1.0, 0.0], policy=p, **texts, **names)]
    tables = {"perplexity": rows, "generation": timed, "failures": failed, "retrieval": asked, "tasks": scores}
    return write_report([write_run(str(tmp_path_factory.mktemp("nasty")), tables, name=NASTY, argv=[NASTY])])


@pytest.fixture
def visit(browser):
    """Opens a page; whatever it asks the network for, says on the console or pops up ends in ``trouble``."""
    opened = []

    def open_page(path, width=1400, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(page)
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))

        def only_files(route):
            if route.request.url.startswith("file://"):
                return route.continue_()
            page.trouble.append(f"request: {route.request.url}")
            return route.abort()

        page.route("**/*", only_files)
        page.goto(f"file://{path}")
        page.wait_for_selector("body[data-charts=drawn]", timeout=30_000)
        return page

    yield open_page
    for page in opened:
        page.close()


MARKS = ".role-mark.mark-symbol path, .role-mark.mark-rect path"


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
    assert all(box["height"] > 2 for box in [area.bounding_box() for area in chart.locator(".role-mark.mark-area path").all()])
    assert chart.locator(".role-mark.mark-symbol path[fill=transparent]").count() == 8


def test_points_of_a_cell_that_never_pruned_are_hollow(visit, whole):
    page = visit(whole)
    holes = "path[fill='var(--bg)']"
    counts = [page.locator(f"#chart-ucurve-1-{number} .role-mark {holes}").count() for number in (1, 2, 3)]
    assert counts == [0, 0, 6]


def shown_policies(page, chart):
    labels = page.locator(f"#{chart} .role-mark.mark-symbol path[aria-label]").evaluate_all("all => all.map(e => e.ariaLabel)")
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
    assert page.locator(f"#{shown} .role-axis-label").first.text_content() == axis  # the axes stay where they were
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
    page.locator("#chart-saw-1 select").select_option(next(name for name in cells if "prune_after 512" in name))
    page.wait_for_function(
        "before => document.querySelector('#chart-saw-1 .mark-line path').getAttribute('d') !== before", arg=before
    )
    assert len(line.get_attribute("d")) > 50


def test_retrieval_shows_the_length_the_policy_and_the_ratio_that_are_chosen(visit, whole):
    page = visit(whole)

    def shown(chart, mark):
        return page.locator(f"#{chart} .role-mark.mark-{mark} path[aria-label]").evaluate_all("all => all.map(e => e.ariaLabel)")

    def changed(chart, mark, list_number, value):
        before = shown(chart, mark)
        page.locator(f"#{chart} select").nth(list_number).select_option(value)
        page.wait_for_timeout(100)
        assert len(before) > 1 and shown(chart, mark) != before

    assert all("context tokens: 512" in label for label in shown("chart-accuracy-1", "symbol") if "policy" in label)
    changed("chart-accuracy-1", "symbol", 0, "256")
    assert all("context tokens: 256" in label for label in shown("chart-accuracy-1", "symbol") if "policy" in label)
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
    boxes = page.locator("div.chart svg").evaluate_all("all => all.map(s => s.getBoundingClientRect().toJSON())")
    frames = page.locator("figure").evaluate_all("all => all.map(s => s.getBoundingClientRect().toJSON())")
    assert len(boxes) == len(frames) > 20
    for box, frame in zip(boxes, frames, strict=True):
        assert frame["right"] <= 1030 and box["right"] <= frame["right"] + 1 and box["bottom"] <= frame["bottom"] + 1
        assert frame["height"] < 700  # a figure that is taller than a page would be cut
    assert max(page.locator("table").evaluate_all("all => all.map(t => t.getBoundingClientRect().right)")) <= 1031
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


def test_of_a_long_table_some_rows_are_shown_and_all_are_sorted_filtered_and_saved(visit, tmp_path):
    rows = [perplexity_row(0, policy="dense")]
    rows += [perplexity_row(0, keep_ratio=round(0.001 * i, 3), nll_sum=200.0 + i) for i in range(1, 701)]
    page = visit(write_report([write_run(str(tmp_path / "run"), {"perplexity": rows})]))
    tools, body = page.locator(".tools[data-table=table-cells]"), page.locator("#table-cells tbody tr")
    assert body.count() == 200 and tools.locator("[role=status]").inner_text() == "200 of 701 rows"
    button, _ = column(page, "table-cells", "PPL")
    button.click()
    button.click()
    assert column(page, "table-cells", "keep_ratio")[1][0] == "0.7"  # the highest PPL, which was in no row of the document
    tools.locator("input").fill("0.695")
    assert body.count() == 1
    tools.locator("input").fill("")
    with page.expect_download() as download:
        tools.locator(".save").click()
    download.value.save_as(tmp_path / "cells.csv")
    assert pl.read_csv(tmp_path / "cells.csv").height == 701
    tools.locator(".more").click()
    assert body.count() == 701 and not tools.locator(".more").is_visible()
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


def column(page, table, heading):
    index = page.locator(f"#{table} th").evaluate_all(
        "(all, name) => all.findIndex(h => h.innerText.trim().startsWith(name))", heading
    )
    cells = page.locator(f"#{table} tbody tr").evaluate_all("(rows, i) => rows.map(r => r.cells[i].dataset.sort)", index)
    return page.locator(f"#{table} th button").nth(index), cells


def test_pressing_a_heading_sorts_as_numbers_both_ways_with_nulls_last(visit, whole):
    page = visit(whole)
    button, before = column(page, "table-cells", "recent retained")
    button.click()
    _, up = column(page, "table-cells", "recent retained")
    button.click()
    _, down = column(page, "table-cells", "recent retained")
    numbers = sorted(float(value) for value in before if value)
    empty = before.count("")
    assert empty > 0
    assert [float(value) for value in up[:-empty]] == numbers
    assert [float(value) for value in down[:-empty]] == numbers[::-1]
    assert set(up[-empty:]) == set(down[-empty:]) == {""}


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


def test_a_table_is_filtered_by_words_and_saved_as_it_is_shown(visit, whole, tmp_path):
    page = visit(whole)
    tools, rows = page.locator(".tools[data-table=table-cells]"), page.locator("#table-cells tbody tr")
    everything = rows.count()
    tools.locator("input").fill("streaming 0.95")
    shown = page.locator("#table-cells tbody tr:not([hidden])")
    assert 0 < shown.count() < everything
    assert all("streaming" in text for text in shown.all_inner_texts())
    assert tools.locator("[role=status]").inner_text() == f"{shown.count()} of {everything} rows"
    with page.expect_download() as download:
        tools.locator(".save").click()
    download.value.save_as(tmp_path / "cells.csv")
    table = pl.read_csv(tmp_path / "cells.csv")
    assert table.height == shown.count()
    assert set(table["policy"]) == {"streaming"} and table["PPL"].dtype == pl.Float64
    assert table["95 % interval"][0].startswith("[") and "," in table["95 % interval"][0]
    tools.locator("input").fill("")
    assert page.locator("#table-cells tbody tr:not([hidden])").count() == everything
    assert page.trouble == []


def test_a_name_from_outside_is_no_formula_in_the_saved_table(visit, tmp_path):
    names = {"model": '=HYPERLINK("http://x")'}
    rows = [perplexity_row(i, policy=p, **names) for i in (0, 1) for p in ("dense", "knorm")]
    rows += [perplexity_row(i, policy=p, model="b") for i in (0, 1) for p in ("dense", "knorm")]
    page = visit(write_report([write_run(str(tmp_path / "run"), {"perplexity": rows})]))
    with page.expect_download() as download:
        page.locator(".tools[data-table=table-cells] .save").click()
    download.value.save_as(tmp_path / "cells.csv")
    assert set(pl.read_csv(tmp_path / "cells.csv")["model"]) == {'\'=HYPERLINK("http://x")', "b"}
