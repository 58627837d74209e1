"""Tasks by name and digest, rows of a sweep, arguments, the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lm_eval")

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from workers.harness.arguments import parse
from workers.harness.model import PrunedModel
from workers.harness.task_rows import BOOTSTRAP, SEED, task_rows
from workers.harness.tasks import HarnessError, find_task, task_digest
from workers.messages.work import HarnessWork
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")
PRUNED = PruneSettings("knorm", 0.5, 24)
COLUMNS = {
    "task_name",
    "metric",
    "filter",
    "doc_index",
    "value",
    "stderr",
    "documents",
    "higher_is_better",
    "num_fewshot",
    "prune_events",
    "tokens_predicted",
    "tokens_predicted_pruned",
    "cache_tokens_mean",
}


def test_rows_of_a_task(model, facts, folder):
    result = task_rows(model, facts, CPU, PRUNED, HarnessWork("kv_choice", 2, None, str(folder)))
    assert all(row.keys() == COLUMNS for row in result.rows)
    (whole,) = [row for row in result.rows if row["metric"] == "acc" and row["doc_index"] is None]
    each = [row["value"] for row in result.rows if row["metric"] == "acc" and row["doc_index"] is not None]
    assert len(each) == whole["documents"] == 2
    assert whole["value"] == sum(each) / 2
    assert whole["higher_is_better"] is True
    assert whole["prune_events"] > 0
    assert result.warnings == []
    rolling = task_rows(
        model,
        facts,
        CPU,
        PruneSettings("knorm", 0.5, 10_000),
        HarnessWork("kv_rolling", None, 0, str(folder)),
    )
    assert {row["metric"] for row in rolling.rows} == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert all(row["doc_index"] is None and row["prune_events"] == 0 for row in rolling.rows)
    assert "nothing was ever pruned" in rolling.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, 2])
@pytest.mark.parametrize("own", [None, 0, 1])
def test_a_task_is_set_up_as_the_harness_sets_it_up(model, facts, pruned_model, folder, tmp_path, asked, own):
    """Judged by its ``simple_evaluate``, which also looks over the machine for each cell."""
    definition = yaml.safe_load((folder / "kv_choice.yaml").read_text())
    shots = {} if own is None else {"num_fewshot": own}
    (tmp_path / "kv_shots.yaml").write_text(
        yaml.safe_dump(
            {
                **definition,
                **shots,
                "task": "kv_shots",
                "fewshot_split": "test",
                "fewshot_config": {"sampler": "default"},
            }
        )
    )
    judge = simple_evaluate(
        model=pruned_model(PRUNED),
        tasks=[str(tmp_path / "kv_shots.yaml")],
        num_fewshot=asked,
        bootstrap_iters=BOOTSTRAP,
        task_manager=TaskManager(include_defaults=False),
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
    found = task_rows(model, facts, CPU, PRUNED, HarnessWork("kv_shots", None, asked, str(tmp_path))).rows
    whole = {row["metric"]: (row["value"], row["stderr"]) for row in found if row["doc_index"] is None}
    assert whole == {
        name: (
            judge["results"]["kv_shots"][f"{name},none"],
            judge["results"]["kv_shots"][f"{name}_stderr,none"],
        )
        for name in ("acc", "acc_norm")
    }
    assert (
        {row["num_fewshot"] for row in found}
        == {judge["n-shot"]["kv_shots"]}
        == {own if own == 0 else asked or own or 0}
    )


def test_no_process_is_started_for_a_cell(model, facts, folder, monkeypatch):
    def started(*words, **_):
        raise AssertionError(words)

    monkeypatch.setattr(subprocess, "Popen", started)
    assert task_rows(model, facts, CPU, PRUNED, HarnessWork("kv_choice", 1, None, str(folder))).rows


def test_a_digest_follows_the_definition_and_its_data(folder, tmp_path):
    digest = task_digest("kv_choice", str(folder))
    assert digest == task_digest("kv_choice", str(folder)) != task_digest("kv_text", str(folder))
    copied = yaml.safe_load((folder / "kv_choice.yaml").read_text())
    data = tmp_path / "data.jsonl"
    data.write_bytes((folder / "data.jsonl").read_bytes())
    copied["dataset_kwargs"]["data_files"]["test"] = str(data)
    (tmp_path / "kv_choice.yaml").write_text(yaml.safe_dump(copied))
    same = task_digest("kv_choice", str(tmp_path))
    data.write_text(data.read_text() + data.read_text())
    assert task_digest("kv_choice", str(tmp_path)) != same


def test_groups_and_folders_that_are_not_there_are_refused(folder, monkeypatch):
    import workers.harness.tasks as tasks

    monkeypatch.setattr(
        tasks, "_everywhere", lambda own, include_path: [Path(include_path)]
    )  # the harness's own take seconds
    with pytest.raises(
        HarnessError,
        match=r"'kv_group' is a group of tasks; name the tasks themselves: kv_choice, kv_rolling$",
    ):
        find_task("kv_group", str(folder))
    with pytest.raises(HarnessError, match=r"no task 'kv_chioce' in lm_eval .*; near it: kv_choice"):
        find_task("kv_chioce", str(folder))
    with pytest.raises(HarnessError, match="there is no such directory"):
        find_task("kv_choice", str(folder / "absent"))


def test_a_task_of_the_harness_is_found_by_name():
    assert find_task("wikitext").file.name == "wikitext.yaml"
    assert len(task_digest("wikitext")) == 16


def test_a_missing_harness_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"^lm_eval is not installed: pip install 'kvsweep\[lm-eval\]'$"):
        task_digest("wikitext")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_ration": 0.5}, "knows no argument 'keep_ration'; did you mean 'keep_ratio'"),
        ({"keep_ratio": 1.5}, r"keep_ratio must be in \(0, 1\]"),
        ({"keep_ratio": "half"}, "keep_ratio must be float or int"),
        ({"prune_after": True}, "prune_after must be int"),
        ({"policy": "nothing"}, "policy must be one of dense, knorm"),
        ({"skip_layers": "0:1"}, "skip_layers must be layers joined by"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"batch_size": "many"}, "batch_size must be a number"),
        ({"device": "toaster"}, "device 'toaster'"),
        (
            {"keep_ratio": 0.5, "prune_after": 8, "protect_recent": 20},
            "exceed the 4 entries that a prune at 8 keeps",
        ),
        ({"policy": "nowhere:policy"}, "policy 'nowhere:policy'"),
        ({"skip_layers": [7]}, r"skip_layers \[7\]: .* has layers 0..1"),
    ],
)
def test_wrong_arguments_are_refused(tiny_model_dir, arguments, message):
    with pytest.raises(HarnessError, match=message):
        PrunedModel.create_from_arg_obj({"pretrained": str(tiny_model_dir), **arguments}, {"device": "cpu"})


def test_arguments_as_the_harness_passes_them():
    given = {"pretrained": "reference-neox", "skip_layers": "1+0", "keep_ratio": 0.5, "device": "cuda:1"}
    parsed = parse(given, {"batch_size": "auto", "max_batch_size": 4, "device": "cuda:0"})
    assert parsed.settings == PruneSettings("knorm", 0.5, skip_layers=(0, 1))
    assert (parsed.device, parsed.batch_size) == ("cuda:1", 4)
    assert parse(
        {"pretrained": "x", "skip_layers": 2}, {"batch_size": "3", "device": None}
    ).settings.skip_layers == (2,)
    with pytest.raises(HarnessError, match="pretrained is required"):
        parse({}, {})


def test_a_string_of_arguments_makes_a_model(tiny_model_dir):
    lm = PrunedModel.create_from_arg_string(
        f"pretrained={tiny_model_dir},policy=tova,keep_ratio=0.5,skip_layers=0,seed=2",
        {"device": "cuda:0", "batch_size": 2},
    )
    assert lm.settings == PruneSettings("tova", 0.5, skip_layers=(0,), seed=2)
    assert lm.batch_size == 2
    assert (lm.max_length, lm.eot_token_id) == (256, 256)


def test_a_chat_template_without_a_system_role(pruned_model):
    lm = pruned_model(PRUNED)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}<{{ m.role"
        " }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    try:
        said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        assert lm.apply_chat_template(said) == "<user>hello<assistant>"
        assert (
            lm.apply_chat_template([*said[1:], {"role": "assistant", "content": "hi"}], False)
            == "<user>hello<assistant>hi"
        )
        assert lm.chat_template(True) == lm.tokenizer.chat_template
    finally:
        lm.tokenizer.chat_template = None


def command(*arguments):
    call = [sys.executable, "-m", "workers.harness.command", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.slow
def test_the_command_line_writes_prune_events(tiny_model_dir, folder, tmp_path):
    arguments = f"pretrained={tiny_model_dir},policy=knorm,keep_ratio=0.5,prune_after=24,skip_layers=0"
    done = command(
        "run",
        "--model",
        "kvsweep",
        "--model_args",
        arguments,
        "--tasks",
        "kv_choice",
        "--include_path",
        str(folder),
        "--device",
        "cpu",
        "--batch_size",
        "4",
        "--output_path",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "7 requests, prune_events " in done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert config["prune_events"] >= 7
    assert config["by_task"]["kv_choice"]["tokens_predicted_pruned"] > 0


@pytest.mark.slow
def test_the_command_line_refuses_in_one_line(folder):
    arguments, task = "pretrained=reference-neox,keep_ration=0.5", str(folder / "kv_text.yaml")
    done = command("run", "--model", "kvsweep", "--model_args", arguments, "--tasks", task)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "kvsweep: kvsweep knows no argument 'keep_ration'; did you mean 'keep_ratio'?"
    )


def test_a_sweeps_bos_reaches_the_contexts_of_a_task(model, facts, folder):
    """One more entry is held while answering."""
    held = {
        bos: (
            task_rows(
                model, facts, CPU, PruneSettings("dense"), HarnessWork("kv_choice", 2, None, str(folder), bos)
            ).rows[0]
        )
        for bos in ("auto", "always", "never")
    }
    assert (
        held["auto"]["cache_tokens_mean"]
        == held["never"]["cache_tokens_mean"]
        == held["always"]["cache_tokens_mean"] - 1
    )
