"""`kvsweep audit` as a user runs it, with a tiny model and text in place of the embedded ones."""

from __future__ import annotations

import csv

import pytest

from tests.command import kvsweep

TIMING = "protocol: [interleaved, report_2025], prompt_tokens: [32], new_tokens: 4, repeats: 6, max_repeats: 6, warmup: 1"
SMALLER = [
    "exclude=[]",
    "policies=[knorm, knorm_sorted]",
    "keep_ratios=[0.9, 0.6, 0.3]",
    "prune_after=[16, 64]",
    "skip_layers=[[], [0], [1]]",  # the model has two layers
    "protect_recent=[0, 2]",
    "perplexity={window: 64, windows: 8}",
    f"generation={{{TIMING}, policies: [knorm], keep_ratios: [0.6], prune_after: [16], skip_layers: [[]], protect_recent: [0]}}",
    "retrieval=null",
]


@pytest.mark.slow
def test_the_audit_runs_the_sweep_and_judges_every_claim(tmp_path, tiny_model_dir, text_file):
    settings = [*SMALLER, f"datasets=['text:{text_file}']"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    done = kvsweep("audit", "--inline", "--out", "out", "--models", tiny_model_dir, *chosen, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the reports claimed, what was measured, what is true" in page
    again = kvsweep("report", "out", "--audit", "--csv", "csv", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    with (tmp_path / "csv" / "claims-1.csv").open(newline="") as file:
        rows = {int(row["number"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == list(range(1, 12))
    assert all(row["verdict"] and row["why"] for row in rows.values())
    assert rows[3]["reproduced"].startswith("PPL ")  # 64 entries are never reached in a window of 64 tokens
    assert rows[7]["verdict"] == "not testable here"  # a Llama says nothing about Pythia's positions
    assert rows[11]["verdict"] == "not testable here"
    assert "1.000" in rows[4]["reproduced"]  # the same set in another order
    plain = kvsweep("report", "out", "-o", "plain.html", folder=tmp_path)
    assert plain.returncode == 0 and "What the reports claimed" not in (tmp_path / "plain.html").read_text()


def test_an_audit_of_a_model_that_is_not_there_is_refused(tmp_path):
    done = kvsweep("audit", "--models", "absent/model", "--out", "out", folder=tmp_path)
    assert done.returncode == 2 and "absent/model" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
