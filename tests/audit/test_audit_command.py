"""`kvsweep audit` as a user runs it, with a tiny model and text in place of the embedded ones."""

from __future__ import annotations

import csv
import json

import pytest

from analysis.generation.speed import FEWEST_ROUNDS
from analysis.statistics.pairs import FEW_WINDOWS
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from tests.support.command import kvsweep

TIMING = (
    "protocol: [interleaved, report_2025], prompt_tokens: [32], new_tokens: 4, repeats: 6, max_repeats: 6,"
    " warmup: 1"
)
SMALLER = [
    "exclude=[]",
    "policies=[knorm, knorm_sorted]",
    "keep_ratios=[0.9, 0.6, 0.3]",
    "prune_after=[16, 64]",
    "skip_layers=[[], [0], [1]]",  # the model has two layers
    "protect_recent=[0, 2]",
    "perplexity={window: 64, windows: 8}",
    (
        f"generation={{{TIMING}, policies: [knorm], keep_ratios: [0.6], prune_after: [16], skip_layers: [[]],"
        " protect_recent: [0]}"
    ),
    "retrieval=null",
]


@pytest.mark.slow
def test_the_audit_runs_the_sweep_and_judges_every_claim(tmp_path, tiny_model_dir, text_file):
    settings = [*SMALLER, f"datasets=['text:{text_file}']"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    done = kvsweep("audit", "--inline", "--out", "out", "--models", tiny_model_dir, *chosen, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *verdicts, place = done.stdout.splitlines()
    assert place == str(tmp_path / "out" / "report.html")
    assert [line.split()[0] for line in verdicts[::2]] == [f"{number}." for number in range(1, 12)]
    assert all(line.startswith(f"   {tiny_model_dir}: ") for line in verdicts[1::2])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the reports claimed, what was measured, what is true" in page
    again = kvsweep("report", "out", "--audit", "--csv", "csv", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    with (tmp_path / "csv" / "claims-1.csv").open(newline="") as file:
        rows = {int(row["number"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == list(range(1, 12))
    assert all(row["verdict"] and row["why"] for row in rows.values())
    assert {row["model"] for row in rows.values()} == {str(tiny_model_dir)}
    assert rows[3]["reproduced"].startswith("PPL ")  # 64 entries are never reached in a window of 64 tokens
    assert rows[7]["verdict"] == "not testable here"  # a Llama says nothing about Pythia's positions
    assert rows[11]["verdict"] == "not testable here"
    assert "1.000" in rows[4]["reproduced"]  # the same set in another order
    plain = kvsweep("report", "out", "-o", "plain.html", folder=tmp_path)
    assert plain.returncode == 0 and "What the reports claimed" not in (tmp_path / "plain.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        ([], "seed_reports"),
        (["--models", "reference-llama"], "seed_reports"),
        (["--short"], "seed_reports_short"),
        (["--models", "reference-neox", "--models", "other"], "seed_reports_short"),
        (["--models", "other", "--full"], "seed_reports"),
    ],
)
def test_a_model_that_is_not_embedded_is_audited_in_the_short_form_unless_asked_otherwise(
    tmp_path, arguments, form
):
    done = kvsweep(
        "audit", *arguments, "--set", "keep_ratios=[0.33]", folder=tmp_path
    )  # refused with the file's name
    assert done.returncode == 2 and f"sweeps/{form}.yaml" in done.stderr
    unasked = "other" in arguments and "--full" not in arguments
    assert ("note: by the short form of the audit" in done.stderr) == unasked


def test_the_short_form_has_what_every_claim_asks_for_and_is_a_part_of_the_whole():
    """The rules find their cells: thresholds, pairs and controls, from as many windows and rounds as a figure
    needs."""
    short, whole = (make_plan(load_spec(name)) for name in ("seed_reports_short", "seed_reports"))
    cells = {
        name: {_asked(cell) for cell in plan.grid.cells}
        for name, plan in (("short", short), ("whole", whole))
    }
    assert cells["short"] <= cells["whole"] and 4 * len(cells["short"]) < len(cells["whole"])
    assert short.spec.perplexity.windows == FEW_WINDOWS and short.spec.generation.repeats == FEWEST_ROUNDS

    def has(policy, ratio, after, skip=(), recent=0, positions="absolute"):
        return ("perplexity", policy, ratio, after, skip, recent, positions) in cells["short"]

    assert all(has("knorm", ratio, after) for ratio in (0.9, 0.8, 0.75, 0.7, 0.5, 0.3) for after in (32, 512))
    assert has("knorm", 0.5, 1024)  # never reached
    assert all(has("knorm_sorted", ratio, after) for ratio in (0.9, 0.5) for after in (32, 512))
    assert all(has("knorm", 0.9, after, skip) for skip in ((0,), (3,)) for after in (32, 512))
    assert all(has("knorm", 0.9, 512, skip, positions="cache_length") for skip in ((), (0,)))
    assert has("knorm", 0.9, 32, recent=16)
    assert all(has(policy, 0.9, 32) for policy in ("knorm_high", "random", "recent", "streaming"))
    assert all(has(policy, ratio, 512) for policy in ("h2o", "snapkv", "streaming") for ratio in (0.8, 0.7))
    assert {cell[2] for cell in cells["short"] if cell[:2] == ("retrieval", "knorm")} == {0.9, 0.8, 0.7, 0.5}
    timed = {(cell.policy, cell.prune_after) for cell in short.grid.cells if cell.task == "generation"}
    protocols = {
        json.loads(cell.settings)["protocol"] for cell in short.grid.cells if cell.task == "generation"
    }
    assert timed == {("dense", None), ("knorm", 32)} and protocols == {"interleaved", "report_2025"}


def _asked(cell):
    """What tells the cells of these sweeps apart but for their timing."""
    skip = cell.skip_layers if isinstance(cell.skip_layers, str) else tuple(cell.skip_layers)
    after = 0 if cell.policy == "dense" else cell.prune_after
    return cell.task, cell.policy, cell.keep_ratio, after, skip, cell.protect_recent, cell.position_mode


def test_an_audit_of_a_model_that_is_not_there_is_refused(tmp_path):
    done = kvsweep("audit", "--models", "absent/model", "--out", "out", folder=tmp_path)
    assert done.returncode == 2 and "absent/model" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
