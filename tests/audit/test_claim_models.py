"""Whose verdict each of the audit's is: its model beside it, disagreements first, and a word where only ours
were looked at."""

from __future__ import annotations

import csv
import math
import re

import pytest

from analysis.audit import claim_models
from analysis.report import main
from tests.support.rows import perplexity_row, write_run
from workers.models.model_files import EMBEDDED_NAMES

CAUTION = "that we trained, and key norms and attention go together there."


def rows_of(model, sorted_factor):
    """Claim 4 alone is settled: knorm at 1.2 of dense, and the same kept set in another order at
    ``sorted_factor`` of that."""
    cells = [("dense", 1.0), ("knorm", 1.2), ("knorm_sorted", 1.2 * sorted_factor)]
    return [
        perplexity_row(i, model=model, policy=policy, nll_sum=200 + 100 * math.log(factor))
        for policy, factor in cells
        for i in range(8)
    ]


def report(tmp_path, capsys, factors, names=None):
    """What ``kvsweep report --audit`` prints of models with these factors, its page, and the rows of its
    tables of claims."""
    rows = [row for model, factor in factors.items() for row in rows_of(model, factor)]
    models = [{"name": name, "revision": "r1", "architecture": "llama"} for name in names or factors]
    run = write_run(str(tmp_path / "run"), {"perplexity": rows}, models=models)
    assert main([run, "--audit", "-o", str(tmp_path / "page.html"), "--csv", str(tmp_path / "csv")]) == 0
    tables = []
    for file in sorted((tmp_path / "csv").glob("claims-*.csv")):
        with file.open(newline="") as lines:
            tables += list(csv.DictReader(lines))
    return capsys.readouterr().out.splitlines(), (tmp_path / "page.html").read_text(), tables


def test_models_that_disagree_are_told_first_and_every_verdict_names_its_model(tmp_path, capsys):
    lines, page, tables = report(tmp_path, capsys, {"smollm2": 1.0, "reference-neox": 1.25})
    told = (
        "Models disagree on claim 4, PPL rises because sorting shuffles the order: reference-neox: confirmed;"
        " smollm2: refuted."
    )
    assert lines[0] == told and sum(line.startswith("Models disagree") for line in lines) == 1
    assert lines[-1] == str(tmp_path / "page.html")
    assert CAUTION not in "".join(lines) and CAUTION not in page  # one of them is no model of ours

    fourth = lines.index("4. PPL rises because sorting shuffles the order")
    assert re.match(r" +reference-neox: confirmed \(order changes PPL", lines[fourth + 1])
    assert re.match(r" +smollm2: refuted \(order changes PPL", lines[fourth + 2])
    assert len(lines) == 1 + 3 * 11 + 1
    section = page.partition('<section id="audit">')[2]
    assert section.index(told) < section.index("How to read this")
    assert {(row["model"], row["verdict"]) for row in tables if row["number"] == "4"} == {
        ("reference-neox", "confirmed"),
        ("smollm2", "refuted"),
    }


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"reference-neox": 1.25}, "Only reference-neox was looked at: it is a small model"),
        (
            {"reference-neox": 1.25, "reference-llama": 1.25},
            "Only reference-llama and reference-neox were looked at: they are small models",
        ),
    ],
)
def test_verdicts_from_our_small_models_alone_say_so_before_any_of_them(tmp_path, capsys, factors, words):
    lines, page, _ = report(tmp_path, capsys, factors)
    found = next(i for i, line in enumerate(lines) if line.startswith(words) and CAUTION in line)
    assert found < next(i for i, line in enumerate(lines) if line.startswith("1. "))
    section = page.partition('<section id="audit">')[2]
    assert section.index(words) < section.index("How to read this")


def test_another_model_has_no_such_sentence(tmp_path, capsys):
    lines, page, _ = report(tmp_path, capsys, {"smollm2": 1.25})
    assert lines[0].startswith("1. ") and CAUTION not in page


def test_models_that_agree_are_said_to_and_how_much_that_rests_on(tmp_path, capsys):
    lines, _, _ = report(tmp_path, capsys, {"smollm2": 1.25, "reference-neox": 1.25})
    assert lines[0] == "The models disagree on no claim; 2 claims are settled by more than one of them."


def test_what_a_model_cannot_settle_is_no_disagreement(tmp_path, capsys):
    rows = [row for row in rows_of("smollm2", 1.25) if row["policy"] != "knorm_sorted"] + rows_of(
        "reference-neox", 1.25
    )
    run = write_run(str(tmp_path / "run"), {"perplexity": rows})
    assert main([run, "--audit"]) == 0
    assert capsys.readouterr().out.startswith(
        "The models disagree on no claim; 1 claim is settled by more than one"
    )


def test_a_model_with_two_texts_is_named_with_each(tmp_path, capsys):
    rows = [perplexity_row(i, **settings) for settings in ({}, {"dataset": "other"}) for i in range(2)]
    run = write_run(str(tmp_path / "run"), {"perplexity": rows})
    assert main([run, "--audit"]) == 0
    printed = capsys.readouterr().out
    assert (
        "   toy · text · cpu · float32: not testable" in printed
        and "   toy · other · cpu · float32: not" in printed
    )


def test_a_models_name_steers_no_terminal(tmp_path, capsys):
    lines, _, _ = report(tmp_path, capsys, {"toy\x1b[2J": 1.25})
    assert "\x1b" not in "".join(lines)


def test_the_models_that_the_analysis_takes_for_ours_are_those_that_are_embedded():
    assert set(claim_models.EMBEDDED) == set(EMBEDDED_NAMES)
