"""The page: complete, self-contained, and harmless whatever the rows say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from analysis import coverage, labels
from analysis.draw.points import varies
from analysis.load import load
from analysis.page.charts import SECTIONS
from analysis.page.page import LAYOUT, script_safe
from analysis.report import main, write_report
from tests.support.rows import (
    NASTY,
    failure_row,
    generation_row,
    perplexity_row,
    retrieval_row,
    synthetic_run,
    write_run,
)

ROOT = Path(__file__).resolve().parents[2]


def page_of(directory, **tables):
    return Path(write_report([write_run(str(directory), tables)])).read_text()


def islands(page, kind):
    """The JSON in the page's scripts of one kind."""
    return [json.loads(text) for text in re.findall(rf'class="{kind}"[^>]*>(.*?)</script>', page, re.DOTALL)]


def specs_of(page):
    return islands(page, "spec")


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory):
    return Path(write_report([synthetic_run(str(tmp_path_factory.mktemp("run")))])).read_text()


def test_page_has_every_section_and_no_outside_address(whole_page):
    for name in LAYOUT:
        assert f'<table id="table-{name}"' in whole_page
    for name in SECTIONS:
        assert f'id="chart-{name}-1' in whole_page, name
    assert "default-src 'none'" in whole_page
    assert not re.search(
        r'<(?:script|img|link|iframe)[^>]+(?:src|href)\s*=\s*["\']?(?:https?:)?//', whole_page
    )


def test_u_curve_has_a_panel_per_threshold_and_the_never_pruned_points_are_marked(whole_page):
    titles = [(spec["title"]["text"], *spec["title"].get("subtitle", [])) for spec in specs_of(whole_page)]
    for after in (32, 512, 2048):
        assert titles.count(("toy · text", f"prune_after {after}")) >= 2
    points = next(columns for columns in islands(whole_page, "points") if "minimum_from" in columns)
    ends = zip(points["after"], points["hollow"], points["end"], strict=True)
    assert {(after, hollow) for after, hollow, end in ends if not end} == {
        ("32", False),
        ("512", False),
        ("2048", True),
    }


def test_every_chart_is_described_for_those_who_cannot_see_it(whole_page):
    assert all(len(spec["description"]) > 40 and ": " in spec["description"] for spec in specs_of(whole_page))


def test_names_from_outside_are_escaped_in_text_attributes_and_specs(tmp_path):
    names = {"model": NASTY, "dataset": NASTY, "device_name": NASTY}
    rows = [perplexity_row(i, **names, policy=policy) for i in range(2) for policy in ("dense", NASTY)]
    timed = [generation_row(i, **names, policy=policy) for i in range(2) for policy in ("dense", "knorm")]
    failed = [failure_row(**names, error_type=NASTY, message=NASTY, traceback=NASTY, node=NASTY)]
    info = {
        "name": NASTY,
        "models": [{"name": NASTY}],
        "argv": [NASTY],
        "hardware": {"cpu": NASTY},
        "notes": [NASTY],
    }
    directory = write_run(
        str(tmp_path / "run"), {"perplexity": rows, "generation": timed, "failures": failed}, **info
    )
    page = Path(write_report([directory])).read_text()
    assert "<script>alert" not in page
    assert "<img" not in page.split("<script>")[0]
    assert "</script><script>" not in page.replace("</script>\n<script>", "")
    shown = labels.text(NASTY)  # without the line ends that Vega cannot parse
    assert "⏎" in shown and any(shown in spec["title"]["text"] for spec in specs_of(page))


def test_script_safe_changes_no_value():
    text = json.dumps({"a": NASTY, "b": "\u2029"}, ensure_ascii=False)
    assert not set("<>&\u2028\u2029") & set(script_safe(text))
    assert json.loads(script_safe(text)) == json.loads(text)


NULLS = dict.fromkeys(
    [
        "nll_sum",
        "tokens_correct",
        "prune_events",
        "tokens_scored_pruned",
        "cache_tokens_mean",
        "recent_retained",
        "sink_retained",
    ]
)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "No perplexity rows."),
        ({"failures": [failure_row()]}, "OutOfMemoryError"),
        (
            {"perplexity": [perplexity_row(policy="dense")]},
            "No cell other than the dense twin has a perplexity.",
        ),
        ({"perplexity": [perplexity_row()]}, "No row of the dense twin"),
        ({"perplexity": [perplexity_row(policy="dense"), perplexity_row()]}, "Compared on one window"),
        (
            {"perplexity": [perplexity_row(policy="dense", **NULLS), perplexity_row(**NULLS)]},
            "No finite perplexity",
        ),
        (
            {"generation": [generation_row(ttft_seconds=None, tpot_seconds=None, tokens_per_second=None)]},
            "No perplexity rows.",
        ),
        ({"retrieval": [retrieval_row(correct=None)]}, "Retrieval"),
    ],
    ids=[
        "empty",
        "failures only",
        "dense only",
        "no twin",
        "one window",
        "nulls",
        "null times",
        "null answer",
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_poor_run_gives_a_page_that_says_what_it_can(tmp_path, tables, said):
    page = page_of(tmp_path / "run", **tables)
    assert said in page
    assert "NaN" not in page.split("<script>")[0]


def test_an_old_directory_without_facts_says_so(tmp_path):
    bare = {
        "run_id": "r",
        "name": "old",
        "started_at": "then",
        "schema_version": 1,
        "protocol_version": 0,
        "planned": {},
    }
    (tmp_path / "run.json").write_text(json.dumps(bare))
    page = Path(write_report([str(tmp_path)])).read_text()
    assert page.count("not recorded") >= 6


def test_a_broken_part_is_an_error_with_advice_not_a_traceback(tmp_path, capsys):
    directory = write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})
    (tmp_path / "run" / "perplexity" / "unit-1.parquet").write_bytes(b"PAR1 half a file")
    assert main([directory]) == 2
    assert "kvsweep run" in capsys.readouterr().err


def test_coverage_counts_a_partial_cell_as_missing_and_a_redone_one_as_done(tmp_path):
    rows = [perplexity_row(i, policy="dense") for i in range(3)] + [perplexity_row(i) for i in range(3)]
    rows += [perplexity_row(0, keep_ratio=0.5)]
    failed = [
        failure_row(),
        failure_row(policy="h2o"),
    ]  # the first is of the knorm cell above, which was completed later
    directory = write_run(
        str(tmp_path / "run"), {"perplexity": rows, "failures": failed}, planned={"perplexity": 5}
    )
    table = coverage.coverage(load([directory]))
    assert table.row(0, named=True) == {
        "run": "run-1",
        "task": "perplexity",
        "planned": 5,
        "done": 2,
        "failed": 1,
        "missing": 2,
    }


def test_texts_that_were_read_in_two_ways_are_warned_of_and_stay_apart(tmp_path):
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0, nll_sum=210.0)]
    other = [row | {"special_tokens_in_text": "parse", "nll_sum": row["nll_sum"] + 50} for row in rows]
    page = page_of(tmp_path / "run", perplexity=[*rows, *other])
    words = "were read as letters and as tokens; such rows are kept apart"
    assert words in page and words not in page_of(tmp_path / "one", perplexity=rows)
    assert "special_tokens_in_text parse" in page, "a chart's title tells"
    assert page.count("the only cell that counts") >= 2


def test_rows_with_and_without_bos_stay_apart_and_the_page_says_so(tmp_path):
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0, nll_sum=210.0)]
    other = [row | {"bos": True, "nll_sum": row["nll_sum"] - 50} for row in rows]
    older = [row | {"bos": None, "protocol_version": 0} for row in rows]
    page = page_of(tmp_path / "run", perplexity=[*rows, *other])
    words = "Texts of model toy began with BOS and without it; such rows are kept apart."
    assert words in page and "bos True" in page and page.count("the only cell that counts") >= 2
    assert words not in page_of(tmp_path / "older", perplexity=[*rows, *older])


@pytest.mark.parametrize(
    ("told", "words"), [(True, "with BOS"), (False, "without BOS"), (None, "BOS not recorded")]
)
def test_the_page_says_of_each_model_whether_texts_begin_with_bos(tmp_path, told, words):
    model = {"name": "toy", "revision": "r1", "layers": 2, "context": 1024} | (
        {} if told is None else {"bos": told}
    )
    directory = write_run(
        str(tmp_path / "run"), {"perplexity": [perplexity_row(0, policy="dense")]}, models=[model]
    )
    page = Path(write_report([directory], str(tmp_path / "page.html"))).read_text()
    assert f"toy (revision r1, 2 layers, {'' if told is None else 'texts begin '}{words})" in page


def test_failures_are_grouped_by_what_went_wrong(tmp_path):
    failed = [failure_row(keep_ratio=r) for r in (0.5, 0.6, 0.7)] + [
        failure_row(task="generation", message="other")
    ]
    kinds = coverage.failure_kinds(
        coverage.failures(load([write_run(str(tmp_path / "run"), {"failures": failed * 2})]))
    )
    assert dict(zip(kinds["message"], kinds["cells"], strict=True)) == {
        "tried to allocate 2 GiB": 3,
        "other": 1,
    }


def test_two_runs_give_one_page_and_cells_count_once(tmp_path):
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0)]
    first = write_run(str(tmp_path / "a"), {"perplexity": rows}, name="first")
    second = write_run(str(tmp_path / "b"), {"perplexity": rows}, name="second")
    out = tmp_path / "both.html"
    assert write_report([first, second], str(out)) == str(out)
    page = out.read_text()
    assert "first, second" in page
    assert len(re.findall(r">VALID<", page)) == 1


@pytest.mark.slow
def test_more_points_than_altairs_limit(tmp_path):
    rows = [perplexity_row(0, policy="dense")]
    rows += [perplexity_row(0, keep_ratio=round(0.0001 * i, 4)) for i in range(1, 5200)]
    assert {"ucurve-1-1", "budget-1-1", "tradeoff-1"} <= set(
        re.findall(r'data-chart="chart-([\w-]+)"', page_of(tmp_path / "run", perplexity=rows))
    )


@pytest.mark.slow
def test_script_runs_from_anywhere_and_refuses_what_is_no_run(tmp_path):
    directory = write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "analysis" / "report.py")]
    done = subprocess.run(
        [*command, "run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"{directory}/report.html"), done.stderr
    refused = subprocess.run(
        [*command, "absent"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "no such directory" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_importing_the_report_loads_no_torch_and_no_ray():
    code = "import sys, analysis.report; print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_cells_differing_only_in_the_protocol_are_shown_apart(tmp_path):
    rows = [
        perplexity_row(0, policy=policy, protocol_version=version)
        for policy in ("dense", "knorm")
        for version in (1, 2)
    ]
    page = page_of(tmp_path / "run", perplexity=rows)
    assert "more than one protocol version" in page
    assert {line for spec in specs_of(page) for line in spec["title"].get("subtitle", [])} >= {
        "prune_after 32 · protocol_version 1",
        "prune_after 32 · protocol_version 2",
    }


def test_null_versions_still_find_their_twin(tmp_path):
    rows = [perplexity_row(0, policy=policy, model_revision=None) for policy in ("dense", "knorm")]
    page = page_of(tmp_path / "run", perplexity=rows)
    assert "No row of the dense twin" not in page


def test_a_chart_names_a_revision_only_where_one_model_has_several():
    two_models = pl.DataFrame({"model": ["a", "b"], "model_revision": ["1", "2"]})
    two_revisions = pl.DataFrame({"model": ["a", "a"], "model_revision": ["1", "2"]})
    assert not varies(two_models, "model_revision")
    assert varies(two_revisions, "model_revision")


def test_every_chart_is_exported_as_a_picture_and_every_table_as_csv(tmp_path, capsys):
    run = write_run(
        str(tmp_path / "run"),
        {
            "perplexity": [
                perplexity_row(i, policy=p, model=NASTY) for i in (0, 1) for p in ("dense", "knorm")
            ]
        },
    )
    folders = [str(tmp_path / name) for name in ("png", "svg")]
    assert main([run, "--png", folders[0], "--svg", folders[1]]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    names = sorted(set(re.findall(r'data-chart="chart-([\w-]+)"', page)))
    assert names == ["budget-1-1", "bytes-1", "kl-1-1", "retained-1-1", "tradeoff-1", "ucurve-1-1"]
    for name in names:
        assert (tmp_path / "png" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawing = (tmp_path / "svg" / f"{name}.svg").read_text()
        assert drawing.startswith("<svg") and "<script" not in drawing and "var(--" not in drawing
    assert main([run, "--csv", str(tmp_path / "csv")]) == 0
    cells = pl.read_csv(tmp_path / "csv" / "cells.csv")
    assert (
        cells["policy"].to_list() == ["dense", "knorm"]
        and cells["model"][0] == NASTY
        and cells["ratio"].to_list() == [1.0, 1.0]
    )
    assert main([run, "--png", str(tmp_path / "run" / "report.html")]) == 2  # a file is in the way
    assert "report.html" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["1.5", "-1%", "much"])
def test_a_tolerance_that_is_no_share_is_refused(tmp_path, capsys, share):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), f"--max-ppl-increase={share}"])
    assert caught.value.code == 2
    assert "is no share between 0 and 1" in capsys.readouterr().err
