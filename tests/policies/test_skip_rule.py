"""``skip_layers: auto:k`` from the sweep file to the report."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from analysis import labels
from analysis.load import load as load_run
from analysis.page.norm_attention import correlations_in_words, norm_attention
from analysis.report import write_report
from pipeline.driving.run_sweep import DONE, SOME_FAILED
from pipeline.planning.cell_reach import planned_budget
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.store.run_store import RunStore
from tests.models.test_diagnosis import MODELS, of
from tests.support.command import run_inline
from tests.support.rows import perplexity_row, write_run
from workers.cache.pruned_cache import PrunedCache
from workers.harness.arguments import layers
from workers.harness.tasks import HarnessError
from workers.loaded.diagnosis import fixed_diagnosis
from workers.loaded.layer_choice import with_layers
from workers.loaded.load import load
from workers.models.model_files import find_model
from workers.policies.settings import PruneSettings
from workers.policies.skip_rule import checked_rule, skipped_count


@pytest.mark.parametrize(
    "wrong", ["auto", "auto:", "auto:0", "auto:-1", "auto:x", "auto:1.5", "auto:²", "Auto:1", "all"]
)
def test_other_rules_are_refused(wrong):
    with pytest.raises(ValueError, match="auto:k with k from 1 on"):
        checked_rule(wrong)


def test_a_rule_says_how_many_layers_it_skips():
    assert checked_rule("auto:02") == "auto:2"
    assert [skipped_count(skip) for skip in ("auto:2", (), (0, 5))] == [2, 0, 2]


def test_settings_with_a_rule_prune_nothing_before_a_model_resolved_it():
    settings = PruneSettings("knorm", 0.5, 8, "auto:1")
    with pytest.raises(ValueError, match="kvsweep diagnose MODEL"):
        settings.prunes(0)
    with pytest.raises(ValueError, match="auto:k"):
        PruneSettings("knorm", 0.5, 8, "auto:0")
    with pytest.raises(ValueError, match="kvsweep diagnose MODEL"):
        PrunedCache(find_config(), policy="knorm", keep_ratio=0.5, skip_layers="auto:1")


def find_config():
    from tests.support.tiny import tiny_model

    return tiny_model("llama").config


@pytest.mark.parametrize("name", MODELS)
def test_a_rule_becomes_the_layers_of_greatest_correlation(name):
    facts = find_model(name)
    model = load(facts, "float32", torch.device("cpu"))
    rounded = fixed_diagnosis(model, facts).rounded
    for k in (1, 3):
        wanted = sorted(sorted(range(6), key=lambda layer: (-rounded[layer], layer))[:k])
        assert list(with_layers(PruneSettings(skip_layers=f"auto:{k}"), model, facts).skipped) == wanted
    with pytest.raises(ValueError, match="auto:5 is the most"):
        with_layers(PruneSettings(skip_layers="auto:6"), model, facts)


def test_the_harness_takes_a_rule_and_refuses_what_is_none():
    assert layers("auto:2") == "auto:2" and layers("0+1") == (0, 1)
    with pytest.raises(HarnessError, match="auto:k with k from 1 on"):
        layers("auto:0")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[auto:0]", "skip_layers.0: must be a list of layers, or auto:k"),
        ("[auto]", "skip_layers.0: must be a list of layers, or auto:k"),
        ("[auto:99]", "skip_layers: auto:99 skips every layer"),
        ("[auto:2]", "auto:1 is the most"),
        ("[[0, x]]", "skip_layers.0.1"),
        ("[auto:1, auto:01]", "listed twice"),
    ],
)
def test_rules_that_cannot_work_are_refused_before_anything_runs(sweep_file, out, capsys, value, said):
    assert run_inline(sweep_file(skip_layers=value), out) == 2
    assert not out.exists()
    assert said in capsys.readouterr().err


def test_a_cell_is_known_by_its_rule_and_plans_by_how_many_layers_it_skips(sweep_file):
    plan = make_plan(load_spec(str(sweep_file(skip_layers="[auto:1, [0], [1]]", keep_ratios="[0.5]"))))
    pruning = [cell for cell in plan.grid.cells if cell.policy != "dense"]
    assert [cell.skip_layers for cell in pruning] == ["auto:1", (0,), (1,)]
    assert len({cell.cell_id for cell in pruning}) == 3
    budgets = [(planned_budget(cell), skipped_count(cell.skip_layers)) for cell in pruning]
    assert len({budget.over_layers(2, skipped) for budget, skipped in budgets if budget}) == 1


def test_a_filter_names_a_rule(sweep_file):
    file = sweep_file(skip_layers="[[], auto:1]", exclude="[{skip_layers: [auto:1], keep_ratios: [0.9]}]")
    cells = [cell for cell in make_plan(load_spec(str(file))).grid.cells if cell.policy != "dense"]
    assert [(cell.skip_layers, cell.keep_ratio) for cell in cells] == [((), 0.9), ((), 0.5), ("auto:1", 0.5)]


SWEEP = """\
name: rules
models: [reference-neox, reference-llama]
datasets: [pydocs]
devices: [cpu]
policies: [knorm, random]
keep_ratios: [0.9]
prune_after: [24]
skip_layers: [[], auto:1]
perplexity: {window: 64, stride: 64, windows: 2, policies: [knorm]}
retrieval: {kinds: [passkey], context_tokens: [256], depths: [0.5], questions: 1}
"""


@pytest.fixture(scope="module")
def rules_run(tmp_path_factory) -> tuple[Path, Path]:
    """The sweep and its finished run."""
    folder = tmp_path_factory.mktemp("rules")
    (folder / "sweep.yaml").write_text(SWEEP)
    assert run_inline(folder / "sweep.yaml", folder / "out") == DONE
    return folder / "sweep.yaml", folder / "out"


def test_a_run_with_a_rule_is_complete_and_taken_up_as_such(sweep_file, out):
    file = sweep_file(skip_layers="[auto:1]", keep_ratios="[0.5]")
    assert run_inline(file, out) == DONE
    rows = RunStore(str(out)).scan("perplexity").filter(pl.col("policy") == "knorm").collect()
    assert set(rows["skip_layers_rule"]) == {"auto:1"} and set(rows["skip_layers"].list.len()) == {1}
    files = sorted(path.name for path in out.rglob("*.parquet"))
    assert run_inline(file, out) == DONE and sorted(path.name for path in out.rglob("*.parquet")) == files


@pytest.mark.slow
def test_a_run_skips_the_layers_that_the_diagnosis_names(rules_run):
    store = RunStore(str(rules_run[1]))
    for task in ("perplexity", "retrieval"):
        rows = store.scan(task).filter(pl.col("skip_layers_rule") == "auto:1").collect()
        for name in MODELS:
            facts = find_model(name)
            found = fixed_diagnosis(load(facts, "float32", torch.device("cpu")), facts)
            own = rows.filter(pl.col("model") == name)
            assert own.height and set(own["policy"]) == (
                {"knorm"} if task == "perplexity" else {"knorm", "random"}
            )
            assert {tuple(layers) for layers in own["skip_layers"].to_list()} == {found.worst(1)}
            by_norm = own.filter(pl.col("policy") == "knorm")
            assert {tuple(values) for values in by_norm["norm_attention"].to_list()} == {tuple(found.rounded)}
            assert own.filter(pl.col("policy") != "knorm")["norm_attention"].is_null().all()
    held = store.scan("perplexity").filter(pl.col("skip_layers_rule") == "auto:1").collect()
    for layers_held, skipped in held.select("cache_tokens_final", "skip_layers").iter_rows():
        assert [i for i, entries in enumerate(layers_held) if entries == 63] == skipped
    plain = (
        store.scan("perplexity")
        .filter(pl.col("skip_layers_rule").is_null(), pl.col("policy") == "knorm")
        .collect()
    )
    assert plain["skip_layers"].to_list() == [[]] * plain.height
    assert plain["norm_attention"].is_not_null().all()


@pytest.mark.slow
def test_what_is_done_is_found_again(rules_run, capsys):
    before = sorted(path.name for path in rules_run[1].rglob("*.parquet"))
    assert run_inline(*rules_run) == DONE
    assert sorted(path.name for path in rules_run[1].rglob("*.parquet")) == before


@pytest.mark.slow
def test_the_report_names_the_rule_and_says_how_norm_and_attention_go_together(rules_run):
    page = Path(write_report([str(rules_run[1])])).read_text(encoding="utf-8")
    assert "skip auto:1 (4)" in page  # of reference-neox
    assert page.count("<h4>Key norm and attention</h4>") == 2  # beside perplexity and beside retrieval
    assert "Of 6 layers key norm and attention go together in 6" in page and "most in layer 4" in page
    found = norm_attention(load_run([str(rules_run[1])]), "perplexity")
    assert found["model"].to_list() == sorted(MODELS)
    assert "turned round by construction" in correlations_in_words(found)[0]


def test_words_for_rules_and_for_models():
    assert labels.skipped([3, 4], "auto:2") == "skip auto:2 (3,4)"
    assert labels.skipped(None, "auto:2") == "skip auto:2"
    assert labels.skipped([3, 4]) == "layers 3, 4 skipped"
    row = perplexity_row(
        policy="knorm", keep_ratio=0.9, skip_layers=[3, 4], skip_layers_rule="auto:2", protect_sink=1
    )
    assert labels.cell(row) == "knorm, keep_ratio 0.9, skip auto:2 (3,4), first 1 protected"
    about = {
        "model": ["a", "b", "c"],
        "model_revision": ["r"] * 3,
        "device": ["cpu"] * 3,
        "dtype": ["float32"] * 3,
    }
    said = correlations_in_words(
        pl.DataFrame({**about, "norm_attention": [[-0.1, -0.2], [-0.5, 0.25], None]})
    )
    assert "go together in 0, and in 2 low norms get more attention, as knorm presupposes." in said[0]
    assert "go together in 1, and in 1 low norms get more attention" in said[1] and "-0.50, +0.25" in said[1]
    assert "not recorded" in said[2]


def test_a_correlation_near_0_or_none_at_all_says_nothing_either_way():
    about = {
        "model": ["a", "b", "c"],
        "model_revision": ["r"] * 3,
        "device": ["cpu"] * 3,
        "dtype": ["float32"] * 3,
    }
    near, tiny, none = correlations_in_words(
        pl.DataFrame({**about, "norm_attention": [[-0.01, -0.02], [0.001, 0.3], [math.nan, math.nan]]})
    )
    assert (
        "together in 0, and in 0 low norms" in near
        and "in 2 neither is clear" in near
        and "turned round" not in near
    )
    assert "together in 1, and in 0 low norms" in tiny and "by construction" not in tiny
    assert "not recorded" in none


def test_a_file_without_the_columns_is_read(tmp_path):
    rows = [perplexity_row(i, policy=policy) for policy in ("dense", "knorm") for i in range(3)]
    write_run(str(tmp_path), {"perplexity": rows})
    page = Path(write_report([str(tmp_path)])).read_text(encoding="utf-8")
    assert "not recorded" in page and "no layer skipped" in page


def test_cells_without_a_rule_go_on_where_a_model_cannot_be_diagnosed(sweep_file, out, monkeypatch, capsys):
    monkeypatch.setattr(
        "workers.loaded.layer_choice.fixed_diagnosis", lambda *_: of(0.1, float("nan")).layers[9]
    )
    assert run_inline(sweep_file(skip_layers="[[], auto:1]", keep_ratios="[0.5]"), out) == SOME_FAILED
    said = capsys.readouterr()
    assert "how key norm and attention go together cannot be told (IndexError" in said.out + said.err
    rows = RunStore(str(out)).scan("perplexity").collect()
    assert rows["norm_attention"].is_null().all() and set(rows["policy"]) == {"dense", "knorm"}
    failed = RunStore(str(out)).scan("failures").collect()
    assert failed["skip_layers_rule"].to_list() == ["auto:1"] and failed["skip_layers"].to_list() == [None]


@pytest.mark.slow
def test_json_of_the_plan_says_the_rule(rules_run):
    run = json.loads((rules_run[1] / "run.json").read_text())
    assert run["spec"]["skip_layers"] == [[], "auto:1"]
