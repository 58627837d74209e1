"""One colour for a policy on the whole page, dense's for dense alone, and shapes where colours come again."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import polars as pl
import pytest

from analysis.draw.policy_looks import OWN_COLOURS, PALETTE
from analysis.load import load
from analysis.page.charts import SECTIONS, Drawing
from analysis.page.export import STYLE, write_charts
from analysis.page.page import contents
from analysis.tables import Tables
from tests.support.rows import charts_of, generation_row, perplexity_row, retrieval_row, tasks_rows, write_run

OWN = ["zeta:score@aa11", "alpha:score@bb22"]


def drawn(directory, policies, **settings):
    """The charts of a page on which every kind of row has these policies beside dense."""
    every = ["dense", *policies]
    tables = {
        "perplexity": [
            perplexity_row(i, policy=policy, nll=[2.0 + 0.01 * i] * 100, keep_ratio=ratio, **settings)
            for i in range(3)
            for policy in every
            for ratio in (0.9, 0.5)
        ],
        "generation": [
            generation_row(i, policy=policy, control=again)
            for i in range(6)
            for policy in every
            for again in (False, True)[: 1 + (policy == "dense")]
        ],
        "retrieval": [retrieval_row(i, policy=policy, correct=i > 0) for i in range(4) for policy in every],
        "tasks": [row for policy in every for row in tasks_rows([1.0, 0.0], policy=policy)],
    }
    return charts_of(contents(load([write_run(str(directory), tables)]), 0.01))


def scales(spec, field):
    """Every scale of a channel over a field, as a dictionary from name to look."""
    found = []
    for layer in spec["layer"]:
        for channel in ("color", "shape"):
            shown = layer.get("encoding", {}).get(channel)
            if isinstance(shown, dict) and shown.get("field", "").startswith(field):
                found.append(dict(zip(shown["scale"]["domain"], shown["scale"]["range"], strict=True)))
    return found


def coloured(charts):
    """All colours that each policy has on the page, and the charts that colour policies."""
    found, names = {}, set()
    for name, chart in charts.items():
        for scale in scales(chart.spec, "policy"):
            names.add(name.split("-")[0])
            for policy, colour in scale.items():
                found.setdefault(policy, set()).add(colour)
    return found, names


def test_own_policies_have_a_colour_each_the_same_in_every_chart(tmp_path):
    found, names = coloured(drawn(tmp_path / "run", [*OWN, "knorm"]))
    assert found["knorm"] == {"var(--c-knorm)"}
    assert [len(found[policy]) for policy in OWN] == [1, 1] and found[OWN[0]] != found[OWN[1]]
    assert not set.union(*(found[policy] for policy in OWN)) & {f"var(--c-{name})" for name in PALETTE}
    assert names == {
        "ucurve",
        "budget",
        "retained",
        "kl",
        "tradeoff",
        "beside",
        "position",
        "timed",
        "accuracy",
        "disagreement",
        "tasks",
    }
    again, _ = coloured(drawn(tmp_path / "again", [*OWN[::-1], "knorm"]))
    assert again == found


def test_a_name_like_a_built_in_one_is_one_of_the_others(tmp_path):
    found, _ = coloured(drawn(tmp_path / "run", ["Dense", "knorm2"]))
    assert found["Dense"] | found["knorm2"] == set(OWN_COLOURS[:2])


def test_a_policy_of_one_task_alone_has_a_colour_too(tmp_path):
    tables = {
        "perplexity": [perplexity_row(i, policy=policy) for i in range(3) for policy in ("dense", OWN[0])]
    }
    tables["tasks"] = [row for policy in ("dense", OWN[1]) for row in tasks_rows([1.0, 0.0], policy=policy)]
    found, _ = coloured(charts_of(contents(load([write_run(str(tmp_path / "run"), tables)]), 0.01)))
    assert found == {OWN[0]: {OWN_COLOURS[0]}, OWN[1]: {OWN_COLOURS[1]}}


@pytest.mark.parametrize("block", range(3), ids=["light", "dark", "print"])
def test_all_colours_differ_in_every_scheme(block):
    text = STYLE.read_text(encoding="utf-8").split(":root {")[block + 1].split("}")[0]
    values = {
        name: tuple(bytes.fromhex(value)) for name, value in re.findall(r"--c-([\w-]+): #(\w{6})", text)
    }
    assert set(values) == {*PALETTE, *[f"own-{number}" for number in range(1, len(OWN_COLOURS) + 1)]}
    for one, other in itertools.combinations(values, 2):
        apart = sum((a - b) ** 2 for a, b in zip(values[one], values[other], strict=True)) ** 0.5
        assert apart > (60 if "own" in one + other else 0), (one, other)


def test_where_colours_come_again_shapes_and_dashes_name_the_policy(tmp_path):
    many = [f"mine:score{number:02}" for number in range(len(OWN_COLOURS) + 2)]
    charts = drawn(tmp_path / "run", many)
    found, _ = coloured(charts)
    assert sorted(found) == many and found[many[8]] == found[many[0]] and found[many[9]] == found[many[1]]
    for name in (
        "ucurve-1-1",
        "kl-1-1",
        "retained-1-1",
        "tradeoff-1",
        "beside-1-1",
        "timed-1-1",
        "accuracy-1",
        "disagreement-1",
        "tasks-1",
    ):
        spec, frame = charts[name].spec, charts[name].points.frame
        (column,) = {
            layer["encoding"]["shape"]["field"]
            for layer in spec["layer"]
            if "shape" in layer.get("encoding", {})
        }
        (shapes, *_) = scales(spec, column)
        looks = dict(
            frame.filter(pl.col("policy").is_not_null()).select("policy", column).unique().iter_rows()
        )
        assert (
            many[8] in looks[many[8]]
            and len({shapes[looks[policy]] for policy in (many[0], many[8], many[9])}) == 3
        ), name
        domains = [
            layer["encoding"]["color"]["legend"]
            for layer in spec["layer"]
            if "color" in layer.get("encoding", {})
        ]
        assert domains and all(legend is not None for legend in domains)
        if "strokeDash" in json.dumps(spec["layer"]) and name not in (
            "tradeoff-1",
            "beside-1-1",
            "disagreement-1",
        ):
            assert f'"dash": "datum.{column}"' in json.dumps(
                spec
            ) or f'"calculate": "datum.{column}"' in json.dumps(spec), name


def test_pictures_have_the_colours_written_in(tmp_path):
    charts = drawn(tmp_path / "run", OWN)
    (file,) = write_charts([charts["ucurve-1-1"]], str(tmp_path / "svg"), "svg")
    text = Path(file).read_text(encoding="utf-8")
    assert "var(--c" not in text and "#9600ff" in text and "#005a00" in text


@pytest.mark.parametrize("section", ["timed", "accuracy", "tasks"])
def test_colours_are_the_page_s_whichever_charts_are_drawn(tmp_path, section):
    """A section by itself, in whose rows the policies come in another order than on the page, where
    perplexity is first."""
    rows = {
        "perplexity": [perplexity_row(i, policy=policy) for i in range(3) for policy in ("dense", OWN[0])],
        "generation": [generation_row(i, policy=policy) for i in range(6) for policy in ("dense", *OWN)],
        "retrieval": [retrieval_row(i, policy=policy) for i in range(4) for policy in ("dense", *OWN)],
        "tasks": [row for policy in ("dense", *OWN) for row in tasks_rows([1.0, 0.0], policy=policy)],
    }
    made = Tables.of(load([write_run(str(tmp_path / "run"), rows)]))
    assert made.harness["policy"].unique(maintain_order=True).to_list() == ["dense", *OWN[::-1]]

    charts = {chart.name: chart for panels in SECTIONS[section](Drawing(made)) for chart in panels}
    found, _ = coloured(charts)
    assert found == {OWN[0]: {OWN_COLOURS[0]}, OWN[1]: {OWN_COLOURS[1]}}
