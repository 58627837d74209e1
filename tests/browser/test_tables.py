"""Tables of the page: sorted, filtered, saved."""

from __future__ import annotations

import polars as pl
import pytest

from analysis.report import write_report
from tests.browser.columns import column
from tests.support.rows import (
    perplexity_row,
    write_run,
)

pytestmark = pytest.mark.slow


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


def test_of_a_long_table_some_rows_are_shown_and_all_are_sorted_filtered_and_saved(visit, tmp_path):
    rows = [perplexity_row(0, policy="dense")]
    rows += [perplexity_row(0, keep_ratio=round(0.001 * i, 3), nll_sum=200.0 + i) for i in range(1, 701)]
    page = visit(write_report([write_run(str(tmp_path / "run"), {"perplexity": rows})]))
    tools, body = page.locator(".tools[data-table=table-cells]"), page.locator("#table-cells tbody tr")
    assert body.count() == 200 and tools.locator("[role=status]").inner_text() == "200 of 701 rows"
    button, _ = column(page, "table-cells", "PPL")
    button.click()
    button.click()
    assert (
        column(page, "table-cells", "keep_ratio")[1][0] == "0.7"
    )  # the highest PPL, which was in no row of the document
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
