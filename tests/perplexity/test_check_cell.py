"""``kvsweep check``: a cell as a run evaluates it beside one token per pass, and what is said where they
part."""

import csv
import math

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec

KEYS = {
    "policies": "[knorm, h2o]", "keep_ratios": "[0.9, 0.5]", "prune_after": "[16]",
    "perplexity": "{window: 64, stride: 64, windows: 3}",
}  # fmt: skip


def ids(path, policy):
    cells = make_plan(load_spec(str(path))).grid.cells
    return [cell.cell_id for cell in cells if cell.policy.startswith(policy)]


def check(*words):
    return CliRunner().invoke(app, ["check", *map(str, words)])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("policy", "storage"),
    [
        ("knorm", "slot_layer"),
        pytest.param("h2o", "cell_batch", marks=SLOW),
        pytest.param("dense", "dense pass alone", marks=SLOW),
    ],
)
def test_a_cell_is_what_its_reference_is(sweep_file, tmp_path, policy, storage):
    path, table = sweep_file(**KEYS), tmp_path / "tokens.csv"
    cell = ids(path, policy)[0]
    done = check(path, "--cell", cell[:8], "--windows", 2, "--csv", table)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"cell {cell}: {policy}") and "2 windows of 64 tokens" in lines[0]
    assert storage in lines[2] and "63 passes of one token" in lines[3] and "they never part" in lines[-1]

    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 2 * 63 and [row["token"] for row in rows[:2]] == ["1", "2"]
    for name, line in (("nll_events", lines[1]), ("nll_reference", lines[3])):
        mean = sum(float(row[name]) for row in rows) / len(rows)
        assert f"PPL {math.exp(mean):.6g}," in line


OWN = """
def turncoat(view):
    '''Another order in a batch of texts than of one alone, which the contract forbids.'''
    return view.positions.float() * (1 if view.keys.shape[0] == 1 else -1)


def fails(view):
    raise RuntimeError("no scores today")
"""


@pytest.fixture
def own_policies(tmp_path, monkeypatch):
    (tmp_path / "check_policies.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_where_they_part_is_told(sweep_file, own_policies):
    path = sweep_file(**{**KEYS, "policies": '["check_policies:turncoat"]'})
    done = check(path, "--cell", ids(path, "check_policies")[-1])
    assert done.exit_code == 1
    assert "they part by more than 0.0001 nats at" in done.stdout and ", first at window " in done.stdout


def test_a_cell_that_fails_is_an_error_in_a_line(sweep_file, own_policies):
    path = sweep_file(**{**KEYS, "policies": '["check_policies:fails"]'})
    done = check(path, "--cell", ids(path, "check_policies")[-1])
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("fails: RuntimeError: no scores today")


def test_what_names_no_cell_is_refused(sweep_file, tmp_path):
    path = sweep_file(**KEYS, retrieval="{context_tokens: [240], depths: [0.5], questions: 2}")
    other = next(
        cell.cell_id for cell in make_plan(load_spec(str(path))).grid.cells if cell.task == "retrieval"
    )
    cases = {
        ("--cell", "zzzzz"): "no cell of the sweep has an id that begins so",
        (): "give 4 letters of a cell's id at least",
        ("--cell", other): "is a cell of retrieval; only the likelihood of a text",
        ("--cell", ids(path, "knorm")[0], "--csv", tmp_path): "is a directory",
        ("--cell", ids(path, "knorm")[0], "--csv", tmp_path / ("x" * 300)): "names no file",
        ("--cell", ids(path, "knorm")[0], "--csv", "~nobody-at-all/x.csv"): "names no file",
    }
    for words, told in cases.items():
        done = check(path, *words)
        assert done.exit_code == 2 and told in done.stderr and done.stdout == "", done.output


def test_a_plan_of_all_cells_shows_their_ids(sweep_file):
    path = sweep_file(**KEYS)
    shown = CliRunner().invoke(app, ["plan", str(path), "--all", "--no-measure"]).stdout
    assert all(cell[:10] in shown for policy in ("dense", "knorm", "h2o") for cell in ids(path, policy))
    assert (
        ids(path, "knorm")[0][:10] not in CliRunner().invoke(app, ["plan", str(path), "--no-measure"]).stdout
    )
